"""FLOPs and cache bytes of transformer layers, from a config and a number of tokens."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any


def of_layer(config: Any, tokens: float) -> float:
    """FLOPs (two per multiply-add) of one layer over ``tokens`` tokens: projections, full attention, feed-forward.

    Attention counts all pairs, as kernels without causal skipping compute them. Layers with RMSNorm are taken to have a gated
    feed-forward of three matrices, others two. Where layers differ, the mean of them all.
    """
    if len(each := _each(config)) > 1:
        return sum(of_layer(one, tokens) for one in each) / len(each)
    return of_pairs(config, tokens, 0, tokens * tokens, 0)


def of_pairs(
    config: Any, text: float, visual: float, text_pairs: float, visual_pairs: float, off: Collection[int] = ()
) -> float:
    """As :func:`of_layer`, where pairs of tokens are hidden and heads rest on vision, for a kernel that computes neither.

    Args:
        text_pairs: pairs of text with text; visual_pairs: pairs with a visual token, that are seen.
        off: heads that compute nothing for visual tokens and show none to the text.
    """
    width, heads, head = _sizes(config)
    groups = getattr(config, "num_key_value_heads", None) or heads
    inner = getattr(config, "intermediate_size", None) or int(width * getattr(config, "mlp_ratio", 4))
    matrices = 3 if hasattr(config, "rms_norm_eps") else 2
    on = [h for h in range(heads) if h not in off]
    shared = {h * groups // heads for h in on}
    project = 2 * width * head * (text * (2 * heads + 2 * groups) + visual * (2 * len(on) + 2 * len(shared)))
    attend = 4 * head * (text_pairs * heads + visual_pairs * len(on))
    return float(project + attend + 2 * (text + visual) * width * inner * matrices)


def of_block(config: Any, weights: int, tokens: float) -> float:
    """As :func:`of_layer`, for a layer whose matrices are known to hold so many weights."""
    _, heads, head = _sizes(config)
    return float(2 * tokens * weights + 4 * tokens * tokens * heads * head)


def _sizes(config: Any) -> tuple[int, int, int]:
    """Width, heads, width of a head. Where a config has both, ``hidden_size`` is what leaves the encoder."""
    width, heads = getattr(config, "embed_dim", None) or config.hidden_size, config.num_attention_heads
    return width, heads, getattr(config, "head_dim", None) or width // heads


def _each(config: Any) -> list[Any]:
    """The config, or one for each layer where they differ in what is counted here."""
    try:
        for name in ("hidden_size", "num_attention_heads", "num_key_value_heads", "head_dim", "intermediate_size"):
            getattr(config, name, None)
    except RuntimeError:  # such configs refuse to name one value for all
        return [config.per_layer_config[i] for i in range(config.num_hidden_layers)]
    return [config]


def kv_bytes(config: Any, tokens: float, itemsize: int = 2) -> float:
    """Bytes of keys and values that one layer holds for ``tokens`` tokens; where layers differ, the mean of them all."""
    if len(each := _each(config)) > 1:
        return sum(kv_bytes(one, tokens, itemsize) for one in each) / len(each)
    heads = config.num_attention_heads
    groups = getattr(config, "num_key_value_heads", None) or heads
    head = getattr(config, "head_dim", None) or config.hidden_size // heads
    return float(2 * tokens * groups * head * itemsize)
