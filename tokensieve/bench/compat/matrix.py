"""Which architectures a sieve runs on: every one of transformers' image-text-to-text models, built tiny and checked."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib import resources

from tokensieve.bench.compat import cross, tiny_models
from tokensieve.bench.compat.check import Case, Differs
from tokensieve.sites.model.quirks import REFUSED
from tokensieve.sites.model.structure import find
from tokensieve.sites.visual.layout import Unmapped


@dataclass
class Verdict:
    """One architecture.

    Attributes:
        name: its model type.
        status: "works"; "refused", by a ValueError from :func:`sieve`; "wrong", where a check fails; "unchecked", where it could
            not be built or given a prompt here.
        checked: what was checked, in words.
        why: why it does not work, or what of it does not.
    """

    name: str
    status: str = "unchecked"
    checked: list[str] = field(default_factory=list)
    why: str = ""


CHECKS: dict[str, Callable[[Case], bool]] = {
    "keep=all": Case.keeping_all,
    "handoff": Case.dropping,
    "prefill": lambda case: case.dropping(layer=2),
    "rows alone": Case.rows_alone,
}
EITHER = ("handoff", "prefill")  # checked again under the other kernel, and with videos


def check(name: str) -> Verdict:
    """Build one architecture and check it."""
    made = Verdict(name)
    if name in REFUSED:
        return Verdict(name, "refused", [], REFUSED[name])
    try:
        if (size := tiny_models.size(name)) > tiny_models.MOST:
            return Verdict(name, why=f"not built here: {size / 1e6:.0f} million parameters after shrinking")
        model = tiny_models.model(name)
    except Exception as error:  # whatever a foreign constructor raises
        made.why = f"not built here: {_line(error)}"
        return made
    if cross.crosses(model):
        return Verdict(name, *cross.run(name))
    try:
        find(model)
    except ValueError as error:
        made.status, made.why = "refused", _line(error)
        return made
    try:
        case = Case(name)
        case.generate()
    except Exception as error:  # likewise
        made.why = f"no prompt here: {_line(error)}"
        return made
    try:
        _checked(case, made)
    except Differs as error:
        made.status, made.why = "wrong", _line(error)
    except Exception as error:  # it was built and answers: a sieve has to answer too, or refuse
        made.status, made.why = "wrong", f"{type(error).__name__}: {_line(error)}"
    return made


def _checked(case: Case, made: Verdict) -> None:
    for attn in ("sdpa", "eager"):
        try:
            case = Case(case.name, attn)
        except ValueError:  # this one is not offered
            continue
        for what, run in CHECKS.items():
            if (what not in made.checked or what in EITHER) and run(case) and what not in made.checked:
                made.checked.append(what)
        made.checked.append(attn)
    made.status = "works"
    try:
        Case(case.name).encoder_rows()
        made.checked.append("encoder signals")
    except (Unmapped, ValueError) as error:
        made.why = f"methods that read features only: {_line(error).split(';')[0]}"
    if hasattr(case.anatomy.base, "get_video_features"):
        try:
            film = Case(case.name, video=True)
            film.generate()
        except Exception as error:  # a prompt with a video could not be made
            made.why = made.why or f"no video here: {_line(error)}"
            return
        for what in EITHER:
            CHECKS[what](film)
        made.checked.append("video")


def matrix(names: Sequence[str] = ()) -> list[Verdict]:
    """The verdict on each architecture, all of them by default."""
    return [check(name) for name in names or tiny_models.names()]


def recorded() -> list[Verdict]:
    """What `python -m benchmarks.models` last found."""
    file = resources.files("tokensieve").joinpath("bench/compat/models.json")
    return [Verdict(**row) for row in json.loads(file.read_text(encoding="utf-8"))["models"]]


def _line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:160]
