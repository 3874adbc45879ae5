"""Every cell of the page "What works under a sieve", and the table of guards."""

from pathlib import Path

import pytest
import torch

from tests import works_models, works_running  # noqa: F401 (they fill the table)
from tests.models import llava
from tests.works import SITES, SITUATIONS, Setting, outcome
from tokensieve.sites.model import guards

CELLS = [
    pytest.param(name, site, marks=[pytest.mark.slow] if one.slow else [])
    for name, one in SITUATIONS.items()
    for site in SITES
    if one.expect[site]
]


@pytest.mark.parametrize(("name", "site"), CELLS)
def test_a_situation_is_answered_right_or_refused_by_name(name, site):
    one = SITUATIONS[name]
    if one.needs:
        pytest.importorskip(one.needs)
    got, sentence = outcome(name, site)
    assert got == one.expect[site], sentence
    if got == "refused":
        assert one.says in sentence
        assert not one.guard or any(_fits(guard, sentence) for guard in one.guard)


@pytest.mark.slow
@pytest.mark.parametrize("site", ["handoff", "focus", "cache"])
def test_a_compiled_forward_is_sieved_or_refused(site):
    setting = Setting(site)
    model, reference = llava(layers=2), llava(layers=2)
    with setting.sieve(reference):
        want = setting.logits(reference)
    torch._dynamo.reset()
    wrapper = torch.compile(model, backend="eager")  # which the model knows nothing of
    plain = setting.logits(wrapper)
    said = ""
    with setting.sieve(model):
        try:
            torch.testing.assert_close(setting.logits(wrapper), want)
        except RuntimeError as error:
            said = str(error)
    assert not said or _fits("compiled", said) or _fits("unheard", said)
    torch.testing.assert_close(setting.logits(wrapper), plain)


def _fits(name, sentence):
    """Whether a sentence is a guard's, whatever facts stand in it."""
    parts = [p.split("}")[-1] for p in guards.GUARDS[name].says.split("{")]
    return all(part in sentence for part in parts)


def test_every_guard_is_met_at_each_of_its_sites():
    for name, guard in guards.GUARDS.items():
        met = {s for one in SITUATIONS.values() if name in one.guard for s in SITES if one.expect[s] == "refused"}
        # Denoisers are run in ways of their own, in tests/test_diffusion.py; what never enters an encoder is refused by its site.
        assert met >= set(guard.sites) - {"diffusion", "patch"}, name


def test_the_page_says_what_is_expected():
    rows = [
        line.strip("|").split("|")
        for line in Path("docs/measured/works.md").read_text().splitlines()
        if line.startswith("| ")
    ]
    told = {name.strip(): [cell.strip() for cell in cells] for name, *cells in rows if name.strip()}
    assert told == {name: [one.expect[s] for s in SITES] for name, one in SITUATIONS.items()}
