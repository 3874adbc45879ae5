"""What differs between releases of transformers: found by names and signatures, in one file."""

import ast
import logging
import runpy
import warnings
from pathlib import Path

import pytest
import torch
import transformers
from torch import nn
from transformers import cache_utils
from transformers.utils.logging import warning_once

import tokensieve as ts
from tests.models import decoder, llava, prompt, text
from tokensieve.bench.compat import tiny_models
from tokensieve.bench.compat.check import Case
from tokensieve.bench.compat.cross import CrossCase
from tokensieve.planner.quality import answered, quality
from tokensieve.sites.model import compatibility

PACKAGE = Path(ts.__file__).parent
FILE = Path(compatibility.__file__)


class Old(nn.Module):
    def forward(self, hidden_states, attention_mask=None, past_key_values=None, **kwargs):
        return hidden_states


class New(nn.Module):
    def forward(self, hidden_states, attention_mask=None, cache=None, **kwargs):
        return hidden_states


class Next(nn.Module):
    def forward(self, hidden_states, attention_mask=None, store=None):
        return hidden_states


class Wrapper(nn.Module):
    def forward(self, *args, **kwargs):
        return args


class Root(nn.Module):
    def forward(self, inputs_embeds=None, attention_mask=None, cache=None):
        return inputs_embeds


# ---- names --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["cache", "past_key_values", "layer_past"])
def test_a_cache_is_found_under_all_its_names(name):
    assert compatibility.cache_of({"attention_mask": 1, name: 7}) == 7
    assert compatibility.cache_of({"cache": None, name: 7}) == 7
    assert compatibility.cache_of({name: None}) is None
    assert compatibility.cache_in({"logits": 1, name: 7}) == 7
    assert compatibility.cache_in((1, 7)) is None


@pytest.mark.parametrize("cache", [transformers.DynamicCache()])
def test_a_cache_that_holds_nothing_is_one_all_the_same(cache):
    assert compatibility.cache_of({"past_key_values": cache}) is cache


def test_a_cache_is_handed_over_under_the_name_that_is_taken():
    assert compatibility.cache_argument(Old(), 7) == {"past_key_values": 7}
    assert compatibility.cache_argument(New(), 7) == {"cache": 7}
    (own,) = compatibility.cache_argument(decoder(), 7)
    assert compatibility.cache_argument(Wrapper(), 7) == {own: 7}
    with pytest.raises(ValueError, match=rf"transformers {transformers.__version__}: Next.forward takes no cache as"):
        compatibility.cache_argument(Next(), 7)


def test_pixels_are_found_under_all_their_names():
    older, newer = {"pixel_values": 3, "grid": 1}, {"pixel_values_videos": 3, "pixel_values": 4}
    assert [compatibility.pixels_in(given, "video") for given in (older, newer, {})] == [3, 3, None]
    assert [compatibility.pixels_name(given, "video") for given in (older, newer)] == [
        "pixel_values",
        "pixel_values_videos",
    ]
    assert compatibility.pixels_name({"pixel_values_images"}, "image") == "pixel_values_images"


# ---- what releases lack -------------------------------------------------------------------------------------------------


def test_releases_without_layers_that_hold_nothing(monkeypatch):
    monkeypatch.delattr(cache_utils, "DummyLayer", raising=False)
    monkeypatch.delattr(cache_utils, "BaseQuantizedLayer", raising=False)
    found = runpy.run_path(str(FILE))
    assert found["EMPTY"] == ()
    assert found["BaseQuantizedLayer"] is cache_utils.QuantizedLayer


@pytest.mark.parametrize(
    ("module", "name"),
    [(cache_utils, "DynamicSlidingWindowLayer"), (transformers.masking_utils, "create_masks_for_generate")],
)
def test_what_nothing_works_without_is_named(monkeypatch, module, name):
    monkeypatch.delattr(module, name)
    with pytest.raises(ImportError, match=rf"transformers {transformers.__version__} lacks.*{name}.*5\.16\.1 to"):
        runpy.run_path(str(FILE))


def test_caches_that_leave_out_layers_which_share(monkeypatch):
    config = tiny_models.config("gemma4").text_config
    whole = compatibility.layers_of(config)
    assert len(whole) == 6
    kept = [layer for layer in whole[:4] if layer is not None]
    monkeypatch.setattr(compatibility, "DynamicCache", lambda config: type("Cache", (), {"layers": kept}))
    assert compatibility.layers_of(config) == [*kept, None, None]
    config.num_kv_shared_layers = 0
    assert compatibility.layers_of(config) == kept


def test_entries_are_gone_after_a_reset_whatever_the_base_class_does(monkeypatch):
    def zeros(self):  # as in some releases
        if self.is_initialized:
            self.keys.zero_()

    monkeypatch.setattr(cache_utils.DynamicLayer, "reset", zeros)
    model = decoder()
    with ts.sieve(model, "snapkv", keep=12, window=4):
        cache = ts.prefill(model, text(48))
        cache.reset()
    assert {layer.keys for layer in cache.layers} == {None}


def test_masks_of_kinds_that_do_not_take_all_arguments(monkeypatch):
    config, x, real = (
        tiny_models.config("llama4").text_config,
        torch.zeros(1, 40, 64),
        torch.ones(1, 40, dtype=torch.long),
    )
    config._attn_implementation = "sdpa"
    whole = compatibility.masks_of(config, x, real, None)
    makers = dict(compatibility.LAYER_PATTERN_TO_MASK_FUNCTION_MAPPING)
    chunked = makers["chunked_attention"]
    makers["chunked_attention"] = lambda config, inputs_embeds, attention_mask, cache, ids: chunked(
        config, inputs_embeds, attention_mask, cache, ids
    )
    monkeypatch.setattr(compatibility, "LAYER_PATTERN_TO_MASK_FUNCTION_MAPPING", makers)
    monkeypatch.setattr(compatibility, "create_masks_for_generate", forbidden)
    parts = compatibility.masks_of(config, x, real, None)
    assert set(parts) == set(whole) == {"full_attention", "chunked_attention"}
    assert torch.equal(parts["chunked_attention"], whole["chunked_attention"])


def forbidden(config, inputs_embeds, attention_mask, cache, block_sequence_ids=None):
    raise AssertionError("it hands on what not all take")


def test_rotary_tables_by_axis_are_gathered():
    from tokensieve.sites.model import masks

    table, index = torch.arange(3 * 2 * 7 * 4.0).view(3, 2, 7, 4), torch.tensor([[0, 3], [2, 6]])
    out = masks.arguments({"position_embeddings": (table, table)}, index, 7)["position_embeddings"][1]
    assert torch.equal(out, torch.stack([table[:, 0, [0, 3]], table[:, 1, [2, 6]]], 1))


# ---- hooks --------------------------------------------------------------------------------------------------------------


def test_hooks_are_found_by_name_and_signature(monkeypatch):
    compatibility.check_hooks(Root(), [Old(), New(), Wrapper()])
    with pytest.raises(ValueError, match=r"which was tested: Next.forward takes no cache as cache or past_key_values"):
        compatibility.check_hooks(Root(), [Next()])
    monkeypatch.setattr(compatibility.transformers, "__version__", "99.0")
    with pytest.raises(ValueError, match=r"^transformers 99.0, which is untested: Next.forward takes no inputs_embeds"):
        compatibility.check_hooks(Next(), [])


@pytest.mark.parametrize("make", [decoder, llava])
def test_a_model_whose_layers_call_their_cache_otherwise_is_refused(make):
    model = make()
    layers = getattr(model.model, "language_model", model.model).layers
    layers[1].forward = Next().forward
    method = "divprune" if make is llava else "snapkv"
    with pytest.raises(ValueError, match=r"LlamaDecoderLayer.forward takes no cache as cache or past_key_values"):
        ts.sieve(model, method, keep=12)


def test_an_untested_release_is_told_once(monkeypatch):
    monkeypatch.setattr(compatibility.transformers, "__version__", "99.0")
    model = decoder()
    compatibility.warn_untested.cache_clear()
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        for _ in range(2):
            with ts.sieve(model, "snapkv", keep=12):
                pass
    compatibility.warn_untested.cache_clear()
    assert [str(w.message) for w in told] == ["transformers 99.0 is untested; run `tokensieve doctor`"]


def test_a_tested_release_is_not_spoken_of(monkeypatch):
    monkeypatch.setattr(compatibility.transformers, "__version__", compatibility.TESTED[0])
    compatibility.warn_untested.cache_clear()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        compatibility.warn_untested()


# ---- deprecations -------------------------------------------------------------------------------------------------------


def visual():
    model, inputs = llava(), prompt((1, 2))
    return model, lambda: model.generate(**inputs, max_new_tokens=3, do_sample=False)


def causal():
    model, inputs = decoder(), text(33, 48)
    return model, lambda: model.generate(**inputs, max_new_tokens=3, do_sample=False)


def calibrated():
    model = llava()
    batches = answered(model, [prompt((1,))])
    batches[0]["labels"] = torch.tensor([[3, 4]])
    return model, lambda: quality(model, batches)


def prefilled():
    model, inputs = decoder(), text(33, 48)
    return model, lambda: ts.prefill(model, inputs, chunk=20)


def crossed():
    case = CrossCase("mllama")
    return case.model, case.generate


def filmed():
    case = Case("qwen2_5_vl", video=True)
    return case.model, case.generate


CALLS = [
    (visual, "fastervlm", {}),
    (visual, "divprune", {"positions": "compact"}),
    (visual, "fastv", {}),
    (visual, "tome", {}),
    (visual, "yopo", {}),
    (visual, "vasparse", {"site": "cache"}),
    (causal, "snapkv", {"window": 4}),
    (causal, "adakv", {"window": 4}),
    (causal, "tidaldecode", {}),
    (causal, "anchor-attention", {}),
    (prefilled, "snapkv", {"window": 4}),
    (calibrated, "divprune", {}),
    (crossed, "trimmed-llama", {}),
    (filmed, "divprune", {}),
]


@pytest.mark.parametrize(("make", "name", "where"), CALLS, ids=lambda x: getattr(x, "__name__", str(x)))
def test_a_sieve_adds_no_deprecated_calls(make, name, where, caplog):
    """Whatever a model warns of by itself, it warns of no more under a sieve."""
    model, call = make()

    def told() -> set[str]:
        warning_once.cache_clear()
        caplog.clear()
        with warnings.catch_warnings(record=True) as found, caplog.at_level(logging.WARNING, "transformers"):
            warnings.simplefilter("always")
            call()
        kinds = (DeprecationWarning, PendingDeprecationWarning, FutureWarning)
        seen = [str(w.message) for w in found if issubclass(w.category, kinds)] + caplog.messages
        return {message for message in seen if "deprecat" in message}

    plain = told() if make not in (prefilled, calibrated) else set()
    with ts.sieve(model, name, keep=0.5, **where):
        assert told() <= plain


# ---- the one place ------------------------------------------------------------------------------------------------------


def files():
    return [path for path in sorted(PACKAGE.rglob("*.py")) if path != FILE]


MOVED = {"cache_utils", "masking_utils", "modeling_utils", "vision_utils", "generation", "cache"}


def test_nothing_else_imports_what_moves_between_releases():
    for path in files():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "transformers":
                where = set(node.module.split(".")[1:]) & MOVED
                names = {a.name for a in node.names} & set(compatibility.__all__)
                assert not where | names, f"{path}:{node.lineno} takes {where | names} from transformers"


def test_nothing_else_reads_the_release_or_spells_the_name_of_a_cache():
    for path in files():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            where = f"{path}:{getattr(node, 'lineno', 0)}"
            if isinstance(node, ast.Attribute) and node.attr == "__version__":
                assert not (isinstance(node.value, ast.Name) and node.value.id == "transformers"), where
            spelled = {getattr(node, "arg", None), getattr(node, "attr", None), getattr(node, "value", None)}
            if isinstance(node, (ast.keyword, ast.Attribute, ast.Constant)):
                assert not {"past_key_values", "layer_past"} & {s for s in spelled if isinstance(s, str)}, where


def test_what_was_tested_is_what_the_project_says():
    project = (PACKAGE.parent / "pyproject.toml").read_text(encoding="utf-8")
    assert f'"transformers>={compatibility.TESTED[0]}"' in project
    assert f"# Tested: {', '.join(compatibility.TESTED)}.\n" in project
    constraints = (PACKAGE.parent / "constraints.txt").read_text(encoding="utf-8")
    assert any(f"transformers=={release}\n" in constraints for release in compatibility.TESTED)
