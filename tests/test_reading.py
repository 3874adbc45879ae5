"""Reading by chunks: what is read, what is forgotten, where it stops, and the probes that say so."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM

import tokensieve as ts
from tokensieve.parts.probes import Probes, fit
from tokensieve.sites.cache import reading
from tokensieve.sites.cache.prefix import prefill

SIZES = {
    "vocab_size": 50, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "eos_token_id": None,
}  # fmt: skip
QUESTION = torch.tensor([7, 8, 9])


def llama(**options):
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**SIZES | options)).eval()


def mistral():
    torch.manual_seed(0)
    return MistralForCausalLM(MistralConfig(**SIZES, sliding_window=16)).eval()


def always(threshold):
    """Probes that say one half whatever they see."""
    return Probes(torch.tensor([[0, 0], [1, 3]]), torch.zeros(2, 8), torch.zeros(2), threshold, 1.0)


def text(n=40):
    return torch.randint(50, (n,), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("model", [llama, mistral])
def test_heads_are_those_that_the_output_projection_gets(model):
    made = model()
    got = []
    for layer in made.model.layers:
        layer.self_attn.o_proj.register_forward_pre_hook(lambda m, a: got.append(a[0][:, -1].unflatten(-1, (4, 8))))
    cache = prefill(made, text()[None])
    got.clear()
    seen = reading.asked(made, cache, QUESTION[None])
    assert torch.allclose(seen, torch.stack(got, 1), atol=1e-5)
    assert cache.get_seq_length() == 40
    # asked again behind the same cache, the answer is the same: the question was forgotten
    assert torch.equal(seen, reading.asked(made, cache, QUESTION[None]))


@pytest.mark.parametrize("model", [llama, mistral])
@pytest.mark.parametrize(("threshold", "read"), [(0.4, 12), (0.6, 40)])
def test_it_answers_as_the_plain_model_does_of_what_was_read(model, threshold, read):
    made = model()
    found = ts.reading(made, always(threshold), chunk=12)(text(), QUESTION)
    assert (found.read, found.of, found.stopped) == (read, 40, read < 40)
    assert found.probabilities == (0.5,) * (1 if read < 40 else 3)
    assert found.probed == 3 * len(found.probabilities)
    ids = torch.cat([text()[:read], QUESTION])[None]
    assert torch.equal(found.ids, ids)
    plain = made.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=8, do_sample=False, pad_token_id=0)
    out = made.generate(**found.inputs, max_new_tokens=8, do_sample=False, pad_token_id=0)
    assert torch.equal(out, plain)


def test_the_model_is_what_it_was():
    made = llama()
    before = made.config._attn_implementation
    ts.reading(made, always(0.4), chunk=12)(text(), QUESTION)
    assert made.config._attn_implementation == before


def test_a_question_of_one_token_and_a_text_of_one_chunk():
    made = llama()
    found = ts.reading(made, always(0.4), chunk=64)(text(), QUESTION[:1])
    assert (found.read, found.probabilities, found.stopped, found.probed) == (40, (), False, 0)
    assert made.generate(**found.inputs, max_new_tokens=2, do_sample=False, pad_token_id=0).shape == (1, 43)


def planted(n=60, chunks=5, seed=0):
    """States of which head (1, 2) alone tells the label: (N, 2 layers, 4 heads, 8), labels and groups."""
    rng = np.random.default_rng(seed)
    groups = np.repeat(np.arange(n), chunks)
    labels = np.tile(np.arange(chunks), n) >= np.repeat(rng.integers(0, chunks + 1, n), chunks)
    states = rng.normal(size=(n * chunks, 2, 4, 8))
    states[:, 1, 2, 3] += 6 * labels
    return torch.tensor(states, dtype=torch.float32), labels.tolist(), groups.tolist()


def test_the_head_that_knows_is_found(tmp_path):
    states, labels, groups = planted()
    probes = fit(states, labels, groups, heads=1)
    assert probes.heads.tolist() == [[1, 2]]
    assert probes.f1 > 0.95
    other, truth, _ = planted(seed=1)
    said = probes.probability(other) >= probes.threshold
    assert (said == torch.tensor(truth)).float().mean() > 0.95
    probes.save(tmp_path / "probes.safetensors")
    assert torch.equal(Probes.load(tmp_path / "probes.safetensors").probability(other), probes.probability(other))


def test_the_threshold_is_as_sure_as_asked():
    states, labels, groups = planted()
    states[:, 1, 2, 3] -= 4 * torch.tensor(labels)  # less sure
    low, high = (fit(states, labels, groups, heads=2, precision=p) for p in (0.6, 0.99))
    assert low.threshold < high.threshold


def test_probes_are_fitted_to_where_the_answer_stands():
    made = llama()
    rng = np.random.default_rng(0)
    samples = []
    for _ in range(30):
        ids = torch.tensor(rng.integers(10, 50, 36))
        at = int(rng.integers(0, 36))
        ids[at:] = 3  # the text is another from there on
        samples.append(reading.ReadingSample(ids, QUESTION, at))
    probes = ts.fit_probes(made, samples, chunk=6, heads=2)
    assert probes.f1 > 0.8
    assert probes.weight.shape == (2, 8)


def test_what_cannot_be_read_is_refused(tmp_path):
    made = llama()
    with pytest.raises(ValueError, match="chunk=0"):
        ts.reading(made, always(0.5), chunk=0)
    with pytest.raises(ValueError, match=r"text has shape \(2, 40\); one row"):
        ts.reading(made, always(0.5))(text().expand(2, -1), QUESTION)
    with pytest.raises(ValueError, match=r"question has shape \(0,\)"):
        ts.reading(made, always(0.5))(text(), QUESTION[:0])
    with pytest.raises(ValueError, match="fit probes for this model"):
        ts.reading(llama(hidden_size=64), always(0.5), chunk=12)(text(), QUESTION)
    with pytest.raises(ValueError, match="no samples"):
        ts.fit_probes(made, [])
    states, labels, groups = planted(6)
    with pytest.raises(ValueError, match="all are labelled alike"):
        fit(states, [True] * len(labels), groups)
    with pytest.raises(ValueError, match="heads=9 of 8"):
        fit(states, labels, groups, heads=9)
    from safetensors.torch import save_file

    save_file({"a": torch.ones(1)}, tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match="holds no probes"):
        Probes.load(tmp_path / "a.safetensors")
