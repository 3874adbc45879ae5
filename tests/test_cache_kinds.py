"""The cache site on language models of many kinds: what works equals masking, what does not is refused by layer and kind."""

import pytest
import torch
import transformers
from transformers import QuantizedCache

import tokensieve as ts
from tests.models import decoder, eight_bits, text
from tests.test_cache import GREEDY, SMALL, masked, steps
from tokensieve.bench.compat import tiny_models
from tokensieve.bench.compat.cross import CrossCase
from tokensieve.sites.cache.evicted_layer import EvictedLayer
from tokensieve.sites.model.compatibility import cache_of
from tokensieve.sites.model.decoder import decoder as site
from tokensieve.sites.model.decoder import full_layers
from tokensieve.sites.model.position_ids import apply_rope, uses_rope
from tokensieve.sites.model.taps import attach

MLA = {
    "head_dim": 8,
    "kv_lora_rank": 16,
    "q_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 16,
}
MLA |= {"kv_heads": 4, "first_k_dense_replace": 3, "n_group": 1, "topk_group": 1}
MIXED = {"sliding_window": 16, "layer_types": ["sliding_attention", "full_attention", "full_attention"]}
SHARED = {
    "layers": 4,
    "sliding_window": 16,
    "layer_types": ["sliding_attention", "full_attention"] * 2,
    "num_kv_shared_layers": 2,
}
KINDS = {
    "GPT2": {"kv_heads": 4},
    "GPTNeoX": {"kv_heads": 4},  # its layers call the cache by another name
    "OPT": {"kv_heads": 4, "ffn_dim": 96, "word_embed_proj_dim": 64},  # called past the model around its decoder
    "Phi": {"kv_heads": 4},
    "Cohere2": MIXED,
    "Gemma3Text": MIXED,
    "Gemma4Text": {**SHARED, "global_head_dim": 16, "hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": 64},
    "DeepseekV3": MLA,
    "Jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "use_mamba_kernels": False, "num_experts": 2},
}  # fmt: skip


def made(family):
    return decoder(family=family, **KINDS[family])


@pytest.mark.parametrize("family", KINDS)
def test_kinds_of_models(family):
    model, inputs = made(family), text(33, 48)
    full, extra = full_layers(site(model)), {"beam": {"num_beams": 3}, "sample": {"do_sample": True}, "greedy": {}}

    def run(how, **more):
        torch.manual_seed(0)
        return model.generate(**inputs, **(GREEDY | extra[how]), **more)

    plain = {how: run(how) for how in extra}
    with ts.sieve(model, "h2o", keep=500, every=2):
        for how in extra:
            assert torch.equal(run(how), plain[how]), how
    for name, options, passes in (("snapkv", SMALL, 3), ("h2o", {}, 1), ("keydiff", {}, 1), ("caote", {}, 1)):
        with ts.sieve(model, name, keep=12, every=2, **options):
            logits, ids, mask, cache, saw = steps(model, inputs, passes, 5)
        real = mask.bool()
        torch.testing.assert_close(logits[real], masked(model, ids, mask, saw)[real], atol=1e-3, rtol=1e-2)
        for i, layer in enumerate(cache.layers):
            assert isinstance(layer, EvictedLayer) == (i in full)
            assert i not in full or layer.keys.shape[2] == 12 + 5 % 2
    assert torch.equal(run("greedy"), plain["greedy"])


MANY = [
    "afmoe", "apertus", "arcee", "aria_text", "biogpt", "bitnet", "cohere", "cohere2", "cwm", "emu3", "ernie4_5",
    "ernie4_5_moe", "exaone4", "flex_olmo", "gemma", "glm", "glm4", "glm4_moe", "gpt2", "gpt_neox", "gpt_oss",
    "granite", "granitemoe", "helium", "hunyuan_v1_dense", "hunyuan_v1_moe", "laguna", "lfm3", "llama", "llama4_text",
    "mellum", "mimo_v2_flash", "minimax_m2", "nanochat", "nemotron", "olmo", "olmo2", "olmo3", "olmo_hybrid", "olmoe",
    "opt", "persimmon", "phi", "qwen2", "qwen2_moe", "qwen3", "qwen3_moe", "qwen3_next", "seed_oss", "smollm3",
    "solar_open", "stablelm", "vaultgemma",
]  # fmt: skip
TERMS = {"gpt_oss", "vaultgemma"}  # in attention, that ragged heads cannot have


@pytest.mark.slow
@pytest.mark.parametrize("name", MANY)
def test_many_architectures(name):
    model, inputs = tiny_models.causal(name), text(33, 48)
    language, plain = site(model), model.generate(**inputs, **GREEDY)
    for method, options in (("snapkv", SMALL), ("adakv", SMALL), ("expected-attention", {"future": 9})):
        if method == "adakv" and name in TERMS:
            with (
                ts.sieve(model, method, keep=12, **options),
                pytest.raises(ValueError, match="which heads that hold different"),
            ):
                steps(model, inputs, 3, 4)
            continue
        with ts.sieve(model, method, keep=500, every=2, **options):
            assert torch.equal(model.generate(**inputs, **GREEDY), plain)
        with ts.sieve(model, method, keep=12, every=2, **options):
            logits, ids, mask, cache, saw = steps(model, inputs, 3, 4)
        real = mask.bool()
        torch.testing.assert_close(logits[real], masked(model, ids, mask, saw)[real], atol=1e-3, rtol=1e-2)
        assert all(isinstance(cache.layers[i], EvictedLayer) for i in full_layers(language))
    assert torch.equal(model.generate(**inputs, **GREEDY), plain)


@pytest.mark.parametrize("family", ["Gemma3Text", "Gemma4Text", "DeepseekV3"])
@pytest.mark.parametrize("name", ["snapkv", "h2o"])
def test_a_prefix_is_saved_with_all_its_layers(family, name, tmp_path):
    """Also those that see a window; and what the method has noted, so that it goes on as if in memory."""
    model, inputs = made(family), text(33, 48)
    ids = torch.cat([inputs["input_ids"], torch.full((2, 7), 9)], 1)
    mask = torch.cat([inputs["attention_mask"], torch.ones(2, 7, dtype=torch.long)], 1)
    with ts.sieve(model, name, keep=12, every=2, **(SMALL if name == "snapkv" else {})):
        cache = ts.prefill(model, inputs)
        ts.save_cache(cache, tmp_path / "prefix")
        back = ts.load_cache(tmp_path / "prefix", model)
        assert torch.equal(
            model.generate(ids, attention_mask=mask, past_key_values=back, **GREEDY),
            model.generate(ids, attention_mask=mask, past_key_values=cache, **GREEDY),
        )
    for one, two in zip(back.layers, cache.layers, strict=True):
        assert type(one) is type(two)
        assert one.keys is two.keys or torch.equal(one.keys, two.keys)
        assert (
            torch.equal(one.accumulated_attention, two.accumulated_attention)
            if getattr(two, "accumulated_attention", None) is not None
            else True
        )


@eight_bits
def test_quantized_caches_are_not_saved(tmp_path):
    llama = decoder()
    with ts.sieve(llama, "snapkv", keep=12, **SMALL):
        quantized = ts.prefill(llama, text(48), cache=QuantizedCache("fp8", llama.config))
    with pytest.raises(ValueError, match="layer 0 of the cache is packed in few bits"):
        ts.save_cache(quantized, tmp_path / "prefix")
    assert not list(tmp_path.iterdir())


def test_caches_that_hold_states_are_not_saved(tmp_path):
    jamba = made("Jamba")
    with ts.sieve(jamba, "snapkv", keep=12, **SMALL):
        state = ts.prefill(jamba, text(48))
    with pytest.raises(ValueError, match=r"layer 0 of the cache is a LinearAttentionLayer.*a state of one size"):
        ts.save_cache(state, tmp_path / "prefix")
    assert not list(tmp_path.iterdir())


TURNED = [
    ("GPTNeoX", True),
    ("Phi", True),
    ("Gemma3Text", True),
    ("Gemma4Text", True),
    ("GPT2", False),
    ("Cohere2", False),
]


@pytest.mark.parametrize(("family", "does"), TURNED)
def test_queries_are_turned_back(family, does):
    """Those of equal tokens differ by their position alone."""
    model, seen, tables = made(family), [], []
    attention = site(model).attentions[1]
    hook = lambda m, a, kw: tables.append(kw.get("position_embeddings"))  # noqa: E731
    attention.register_forward_pre_hook(hook, with_kwargs=True)
    undo = attach(attention, observe=seen.append)
    with torch.no_grad():
        if family == "GPT2":
            model.transformer.wpe.weight.zero_()
        model(torch.full((1, 12), 9))
    undo()
    query = seen[0].query
    assert uses_rope(attention, tables[0]) == does
    if does:
        assert not torch.allclose(query, query[:, :, :1].expand_as(query), atol=1e-2)
        plain = apply_rope(attention, query, tables[0], back=True)
        torch.testing.assert_close(apply_rope(attention, plain, tables[0]), query, atol=1e-4, rtol=1e-4)
        query = plain
    torch.testing.assert_close(query, query[:, :, :1].expand_as(query), atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("family", ["GPT2", "Cohere2", "GPTNeoX", "Gemma3Text", "Phi"])
def test_expected_attention_of_many_kinds(family):
    model = made(family)
    with ts.sieve(model, "expected-attention", keep=12, future=16, every=2):
        cache = ts.prefill(model, text(48, 40))
    assert {cache.layers[i].keys.shape[2] for i in full_layers(site(model))} == {12}


def test_layers_that_attend_to_images_are_left_alone():
    case = CrossCase("mllama")
    inputs = case.inputs | GREEDY
    plain = case.model.generate(**inputs)
    with ts.sieve(case.model, "h2o", keep=500, every=2):
        assert torch.equal(case.model.generate(**inputs), plain)
    with ts.sieve(case.model, "snapkv", keep=8, window=4):
        cache = case.model.generate(**inputs, return_dict_in_generate=True).past_key_values
    assert [isinstance(layer, EvictedLayer) for layer in cache.layers] == [True, False, True, False]


def test_ragged_heads_are_refused_where_later_layers_read_them():
    with pytest.raises(ValueError, match="later layers attend to the keys of layer 1"):
        ts.sieve(made("Gemma4Text"), "adakv", keep=12)


def test_entries_of_latent_attention_are_not_merged():
    model = made("DeepseekV3")
    with (
        ts.sieve(model, "ems", keep=12, window=4),
        pytest.raises(ValueError, match="layer 0 caches less than its attention"),
    ):
        ts.prefill(model, text(48))
    with (
        ts.sieve(model, "expected-attention", keep=12),
        pytest.raises(ValueError, match="DeepseekV3Attention turns queries in a way that is not known"),
    ):
        ts.prefill(model, text(48))


SMALLER = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "vocab_size": 64}
REFUSED = {
    "Falcon": "FalconModel: layer 0 is of kind 'FalconAttention', which computes attention by itself",
    "Bloom": "BloomModel: layer 0 is of kind 'BloomAttention', which computes attention by itself",
    "Mamba": "MambaModel has no attention",
    "FalconH1": "FalconH1Model: layer 0 is of kind 'hybrid', whose entries cannot leave",
    "XGLM": r"XGLMForCausalLM: layer 0 \(XGLMAttention\) does not say that it is causal",
    "RecurrentGemma": "its layers are of kind .*sliding_attention; none sees every token",
}


@pytest.mark.parametrize("family", REFUSED)
def test_kinds_that_are_refused(family):
    config = getattr(transformers, f"{family}Config")(**SMALLER)
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config)
    with pytest.raises(ValueError, match=REFUSED[family]):
        ts.sieve(model, "tova", keep=12)


def test_attention_in_several_calls_is_refused():
    model = decoder(family="DiffLlama", kv_heads=4)
    with (
        ts.sieve(model, "tova", keep=12),
        pytest.raises(ValueError, match="'DiffLlamaAttention', which calls its attention several"),
    ):
        model.generate(**text(48), **GREEDY)


def test_attention_that_no_tap_sees_is_not_passed_over():
    model = decoder(layers=1)
    own = model.model.layers[0].self_attn
    own.forward = lambda hidden_states, **given: (
        hidden_states,
        cache_of(given).update(*torch.zeros(2, 1, 2, 48, 16), 0),
    )
    with (
        ts.sieve(model, "tova", keep=12),
        pytest.raises(ValueError, match="layer 0 is of kind 'LlamaAttention', which computes"),
    ):
        model(**text(48))
