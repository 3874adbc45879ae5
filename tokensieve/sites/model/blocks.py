"""A stack: a run of transformer blocks, and where one is found."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import Tensor, nn

from tokensieve.sites.model import compatibility

BEHIND = ("detection_tokens",)
"""Parameters whose tokens stand behind the patches."""


@dataclass(frozen=True)
class Stack:
    """A run of transformer blocks.

    Attributes:
        root: the module whose forward runs the blocks and returns their hidden states.
        layers: the blocks.
        attentions: the attention module of each block (None where a block has none).
        specials: tokens before the patches (CLS, registers); 0 in language models.
        cls: True where the first of them is a CLS token.
    """

    root: nn.Module
    layers: tuple[nn.Module, ...]
    attentions: tuple[nn.Module | None, ...]
    specials: int = 0
    cls: bool = False

    @property
    def config(self) -> Any:
        return self.root.config

    @property
    def attending(self) -> list[nn.Module]:
        """The blocks that have attention."""
        return [layer for layer, attention in zip(self.layers, self.attentions, strict=True) if attention is not None]

    @cached_property
    def behind(self) -> int:
        """Tokens behind the patches."""
        return sum(p.shape[-2] for n, p in self.root.named_parameters() if n.rsplit(".", 1)[-1] in BEHIND)

    @cached_property
    def ragged(self) -> bool:
        """Whether it takes pictures of all sizes in one row."""
        known = inspect.signature(self.root.forward).parameters
        return "image_sizes" in known or any(name.endswith("grid_thw") for name in known)

    @cached_property
    def placed(self) -> bool:
        """Whether it is told where each token stands, in rotations, borders or shapes that do not leave with it."""
        root, layer = (inspect.signature(m.forward).parameters for m in (self.root, self.layers[0]))
        places = ("cu_seqlens", "freqs", "spatial_shapes", "target_sizes")
        # Position ids that a root takes may go into its embeddings alone.
        return any(n.startswith(places) for n in (*root, *layer)) or any(n.startswith("position") for n in layer)

    @cached_property
    def sources(self) -> tuple[int, ...]:
        """For each block the one whose keys and values it attends to; most attend to their own."""
        out, last = [], {}
        for i, attention in enumerate(self.attentions):
            kind = getattr(attention, "layer_type", None)
            if not getattr(attention, "is_kv_shared_layer", False):
                last[kind] = i
            out.append(last.get(kind, i))
        return tuple(out)

    def patches(self, hidden: Tensor) -> tuple[int, ...]:
        """Of states in front of a block ``(count, tokens)`` without special tokens, or ``(tokens,)`` where pictures of all sizes
        stand in one row."""
        packed = hidden.dim() == 2 or (hidden.shape[0] == 1 and self.ragged)
        return (hidden.shape[-2],) if packed else (hidden.shape[0], hidden.shape[1] - self.specials)

    def given(self, args: Any, kwargs: dict[str, Any]) -> Tensor:
        """The states that the first block is called with, under whatever name."""
        return args[0] if args else kwargs[next(iter(inspect.signature(self.layers[0].forward).parameters))]

    def begun(self, args: Any, kwargs: dict[str, Any]) -> tuple[Tensor, int]:
        """What a pass of a language model is given, embeddings or ids, and how many tokens its cache has seen."""
        x: Any = kwargs.get("inputs_embeds")
        x = kwargs.get("input_ids", args[0] if args else None) if x is None else x
        cache = compatibility.cache_of(kwargs)
        return x, 0 if cache is None else int(cache.get_seq_length())

    def layer(self, index: int | float) -> int:
        """A block's index from one that may count from the end, or from a share of the depth (never the first block).

        Raises:
            ValueError: outside the stack.
        """
        depth = len(self.layers)
        if isinstance(index, float):
            if not 0 < index < 1:
                raise ValueError(f"layer={index}; a share of the depth lies between 0 and 1")
            return min(max(round(index * depth), 1), depth - 1)
        if not -depth <= index < depth:
            raise ValueError(f"layer={index}; {type(self.root).__name__} has layers 0 to {depth - 1}")
        return index % depth


def stack_of(root: nn.Module) -> Stack:
    """The longest list of blocks that hold attention."""
    layers = blocks(root)
    if not layers:
        raise ValueError(f"{type(root).__name__} has no recognisable transformer blocks")
    return Stack(root, layers, tuple(attention_of(layer) for layer in layers))


def blocks(root: nn.Module) -> tuple[nn.Module, ...]:
    lists = [m for m in root.modules() if isinstance(m, nn.ModuleList) and any(attention_of(x) is not None for x in m)]
    return max((tuple(blocks) for blocks in lists), key=len, default=())


def attention_of(layer: nn.Module) -> nn.Module | None:
    """The module of a block that calls the attention kernel: it knows whether it is causal, or at least its scale."""
    named = [m for m in layer.modules() if "Attention" in type(m).__name__]
    found = [m for m in named if hasattr(m, "is_causal")] or [m for m in named if hasattr(m, "scaling")]
    return found[0] if found else None


def neurons(layer: nn.Module, inner: int) -> nn.Module:
    """The projection out of a block's feed-forward network of ``inner`` neurons; what enters it are their activations.

    Raises:
        ValueError: none is recognised (a mixture of experts has no one network).
    """
    named = [(n, m) for n, m in layer.named_modules() if getattr(m, "in_features", None) == inner and "expert" not in n]
    # An adapter around a projection holds it, and some of its own.
    found = [m for name, m in named if not any(name.startswith(f"{other}.") for other, _ in named)]
    if len(found) != 1:
        raise ValueError(
            f"{type(layer).__name__} has no recognisable feed-forward network of {inner} neurons to read activations from"
        )
    return found[0]


def encoder_of(root: nn.Module) -> Stack:
    stack = stack_of(root)
    return Stack(root, stack.layers, stack.attentions, *specials(root))


def specials(root: nn.Module) -> tuple[int, bool]:
    """(tokens before the patches, whether the first is CLS), read off the embedding's own parameters."""
    tokens = {name.rsplit(".", 1)[-1]: p for name, p in root.named_parameters()}
    cls = next((tokens[k] for k in ("cls_token", "class_embedding") if k in tokens), None)
    registers = tokens.get("register_tokens")
    extra = registers.shape[-2] if registers is not None else 0
    distillation = int("distillation_token" in tokens)
    return int(cls is not None) + extra + distillation, cls is not None
