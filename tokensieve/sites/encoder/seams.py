"""Seams: where in a block, between its attention and its feed-forward network, tokens can leave.

Where no gradient is recorded, the states that the attention's output was added to are made those of fewer tokens in place, and
what the block does with them from there on, it does with fewer.

Else the block itself goes on adding what both give to states of the old length. So of a block that normalises in front (ViT and
its kin) the network is handed fewer tokens, what it gives is spread to the old length, and what the block puts out is reduced: a
mean of states that all got the same added is that mean with it added. Blocks whose network adds to its own input (BERT, T5) are
handed fewer tokens there, and put out fewer.
"""

from __future__ import annotations

import ast
import functools
import inspect
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from tokensieve.core.stage import Stage
from tokensieve.sites.model.blocks import Stack
from tokensieve.sites.model.calls import Detach

OWN_SUM = frozenset(
    {"attention", "crossattention", "intermediate", "output", "layernorm_before", "layernorm_after", "LayerNorm"}
)
"""The submodules of blocks whose network adds to its own input."""


@dataclass(frozen=True)
class Seam:
    """One block's seam.

    Attributes:
        entry: the first module behind the attention; it is called with the states that the attention's output was added to.
        takers: modules behind it that are given the same states again.
        end: the module whose output is added to those states; None where the block puts out what the network does.
    """

    entry: nn.Module
    takers: tuple[nn.Module, ...] = ()
    end: nn.Module | None = None


def seam(block: nn.Module) -> Seam | None:
    """The seam of a block; None where none is known, as in blocks that normalise behind the sum."""
    children = dict(block.named_children())
    if "intermediate" in children and "output" in children:
        norm = next((children[n] for n in ("layernorm_after", "LayerNorm") if n in children), children["intermediate"])
        return Seam(norm, (children["output"],)) if set(children) <= OWN_SUM else None
    parts = children.get("layer")
    if isinstance(parts, nn.ModuleList) and len(parts) == 2 and type(parts[1]).__name__.endswith("LayerFF"):
        return Seam(parts[1])
    kind: Any = type(block)
    order = [n for n in _called(kind) if n in children]
    attending = [n for n in order if _attends(children[n])]
    if len(set(attending)) != 1 or "Conv" in "".join(type(m).__name__ for m in block.modules()):
        return None
    at = order.index(attending[0])
    before = [n for n in order[:at] if _norm(children[n]) or isinstance(children[n], nn.Identity)]
    behind = [n for n in order[at + 1 :] if _norm(children[n]) or _weighs(children[n])]
    if (
        len(before) != 1
        or len(behind) < 2
        or not _norm(children[behind[0]])
        or any(_norm(children[n]) for n in behind[1:])
    ):
        return None
    return Seam(children[behind[0]], (), children[behind[-1]])


def between(stage: Stage, stack: Stack, found: Sequence[Seam | None], alone: bool) -> bool:
    """Whether the tokens of a stage leave at the blocks' seams.

    Raises:
        ValueError: they are to, and a block has none.
    """
    if stage.between and None in found:
        block = stack.layers[list(found).index(None)]
        raise ValueError(
            f"between=True: {type(block).__name__} of {type(stack.root).__name__} has no place between its attention and its MLP "
            "that is known; leave it out, and tokens leave behind the block"
        )
    usual = stage.method.between and stage.site == "encoder" and alone
    return (usual and None not in found) if stage.between is None else stage.between


def attach(
    found: Seam,
    reduce: Callable[[Tensor], Tensor],
    spread: Callable[[Tensor], Tensor],
    own: Callable[[Tensor], bool],
) -> list[Detach]:
    """Have tokens leave at a seam.

    Args:
        reduce: from the states behind the attention to fewer; the same tensor where none leave.
        spread: from fewer states to as many as there were.
        own: whether states are the block's own, and no gradient of them is asked for, so that they may become others in place.
    """
    held: dict[str, Tensor] = {}

    def enter(module: nn.Module, args: Any) -> Any:
        fewer = reduce(args[0])
        held.clear()
        if fewer is args[0]:
            return None
        if own(args[0]):
            args[0].set_(fewer)
            return None
        held.update(whole=args[0], fewer=fewer)
        return (fewer, *args[1:])

    def take(module: nn.Module, args: Any) -> Any:
        if "whole" not in held:
            return None
        return tuple(held["fewer"] if a is held["whole"] else a for a in args)

    def leave(module: nn.Module, args: Any, output: Any) -> Any:
        return spread(output) if held else None

    out = [found.entry.register_forward_pre_hook(enter).remove]
    out += [taker.register_forward_pre_hook(take).remove for taker in found.takers]
    return out if found.end is None else [*out, found.end.register_forward_hook(leave).remove]


def _norm(module: nn.Module) -> bool:
    return "Norm" in type(module).__name__


def _attends(module: nn.Module) -> bool:
    return any("Attention" in type(m).__name__ for m in module.modules())


def _weighs(module: nn.Module) -> bool:
    return any(isinstance(m, nn.Linear) for m in module.modules())


@functools.cache
def _called(block: Any) -> list[str]:
    """The submodules that a block's forward calls, in the order in which they run."""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(inspect.unwrap(block.forward))))
    except (OSError, SyntaxError, TypeError):
        return []
    out: list[str] = []

    class Calls(ast.NodeVisitor):
        def visit_Call(self, node: ast.Call) -> None:
            for inner in (
                *node.args,
                *(k.value for k in node.keywords),
            ):  # what is passed runs before what it is passed to
                self.visit(inner)
            function = node.func
            if (
                isinstance(function, ast.Attribute)
                and isinstance(function.value, ast.Name)
                and function.value.id == "self"
            ):
                out.append(function.attr)
            else:
                self.visit(function)

    Calls().visit(tree)
    return out
