"""The floor: what prefill costs where the tokens to keep are given for nothing."""

from __future__ import annotations

from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from tokensieve.bench.clocks import now
from tokensieve.sites.anatomy import Anatomy

REPEATS = 3


@torch.no_grad()
def prefill(anatomy: Anatomy, text: Tensor, counts: list[float]) -> float:
    """Milliseconds of a prefill with ``counts[i]`` visual tokens in layer i and no selection; median of 3 after a warm-up.

    The language model is called directly with embeddings of that length. Where a later layer holds fewer tokens, the last ones are cut
    off in front of it: nothing is read, ranked or gathered.

    Args:
        text: ``(B, T)`` bool, the text tokens of each prompt; False at padding, on the left.
    """
    language = anatomy.language
    assert language is not None
    lengths = [text.shape[1] + round(n) for n in counts]
    embed = anatomy.model.get_input_embeddings()  # type: ignore[operator]
    ids = torch.zeros(len(text), lengths[0], dtype=torch.long, device=text.device)
    mask = torch.cat([text, text.new_ones(len(text), lengths[0] - text.shape[1])], 1).long()
    cut = [i for i in range(1, len(lengths)) if lengths[i] < lengths[0]]
    hooks = [language.layers[i].register_forward_pre_hook(_cutter(lengths[i]), with_kwargs=True) for i in cut]
    times = []
    try:
        for _ in range(REPEATS + 1):
            x = embed(ids)
            began = now()
            language.root(inputs_embeds=x, attention_mask=mask, use_cache=True)
            times.append(now() - began)
    finally:
        for hook in hooks:
            hook.remove()
    return 1000 * median(times[1:])


def _cutter(length: int) -> Any:
    def hook(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
        changed = dict(kwargs)
        if kwargs.get("position_ids") is not None:
            changed["position_ids"] = kwargs["position_ids"][..., :length]
        if kwargs.get("position_embeddings") is not None:
            changed["position_embeddings"] = tuple(x[..., :length, :] for x in kwargs["position_embeddings"])
        mask = kwargs.get("attention_mask")
        if mask is not None:
            changed["attention_mask"] = mask[:, :length] if mask.dim() == 2 else mask[..., :length, :length]
        if args:
            return (args[0][:, :length], *args[1:]), changed
        return args, {**changed, "hidden_states": kwargs["hidden_states"][:, :length]}

    return hook
