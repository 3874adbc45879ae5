"""Guards: what a sieve refuses instead of answering wrongly, site by site, and the sentence that names the way out.

The table says where each guard stands and when it speaks; :mod:`ledger`, :mod:`copies`, :mod:`decoding` and the cache's layers
ask :func:`refusal` for the error. A guard of one site holds at its neighbours: those it does not stand at have nothing to guard.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from torch import nn

from tokensieve.sites.model import compiled, taps

VISUAL = ("patch", "encoder", "handoff", "prefill", "focus")
"""Sites whose stages act in passes that bring pictures."""
THINNED = ("encoder", "handoff", "prefill", "cache")
"""Sites behind which layers of the cache hold fewer entries than the sequence has tokens. At "cross" the prompt's are all there,
and whoever reads the image keys reads those that were kept."""
SITES = ("encoder", "handoff", "prefill", "focus", "cross", "cache", "reading", "diffusion")
"""All; "reading" are methods at `cache` under which nothing leaves."""
LANGUAGE = SITES[:-1]
"""Those of models that read text."""


@dataclass(frozen=True)
class Guard:
    """One thing that is refused.

    Attributes:
        sites: where it stands.
        when: it speaks at "attach", in a "pass", when a "cache" is read, on a "copy" of the model, or at "detach".
        error: what it raises, with the sentence ``says``; braces in it are facts.
    """

    name: str
    sites: tuple[str, ...]
    when: str
    error: type[Exception]
    says: str


GUARDS = {
    guard.name: guard
    for guard in (
        Guard(
            "threads", SITES, "pass", RuntimeError,
            "this model is running in another thread under the same sieve; let one at a time run it (a lock around each call, "
            "or a model of its own for each thread)",
        ),
        Guard(
            "settling", SITES, "detach", RuntimeError,
            "this model is running in another thread; let that end (join the thread), then attach or detach a sieve",
        ),
        Guard(
            "flex", ("encoder", "handoff", "prefill", "cross", "cache", "reading"), "attach", ValueError,
            "attn_implementation={kind!r} takes no mask of the tokens that are left; load the model with "
            "attn_implementation='sdpa'",
        ),
        Guard(
            "pairs", ("focus",), "attach", ValueError,
            "attn_implementation={kind!r} takes no mask of pairs; for site='focus' load the model with "
            "attn_implementation='sdpa' or 'eager'",
        ),
        Guard(
            "meta", SITES, "attach", ValueError,
            "{model} has weights on the meta device, which hold no numbers; load them (from_pretrained, or to_empty and "
            "load_state_dict) before a sieve is used",
        ),
        Guard(
            "compiled", SITES, "pass", RuntimeError,
            "{stages} did not run in a pass that called for it: the model's forward was compiled, or replaced, before the sieve "
            "was attached; attach the sieve first, or call the model as it was before torch.compile",
        ),
        Guard(
            "unheard", ("encoder", "handoff"), "pass", RuntimeError,
            "{signals} of the encoder did not reach the method: a forward that was compiled, or replaced, goes past the hooks "
            "that read it; call the model itself under a sieve, or take a method that reads features only, such as 'divprune'",
        ),
        Guard(
            "precompiled", SITES, "attach", RuntimeError,
            "{model} holds a forward that torch.compile made, which does not see a sieve's hooks; attach it to the model as it "
            "was before (load it again, or del model.forward)",
        ),
        Guard(
            "merged", VISUAL, "pass", RuntimeError,
            "inputs_embeds came without pictures, behind pictures that were encoded under this sieve: features that the caller "
            "has merged cannot be told from text; pass input_ids with pixel_values, or inputs_embeds with pixel_values",
        ),
        Guard(
            "continuous", LANGUAGE, "pass", RuntimeError,
            "continuous batching keeps entries in pages of its own, from which none can leave; use generate() under a sieve",
        ),
        Guard(
            "contrastive", LANGUAGE, "pass", ValueError,
            "penalty_alpha={penalty} asks for contrastive search, which compares the states of all tokens, those that have left "
            "too; leave it out: greedy search, sampling and beams work under a sieve",
        ),
        Guard(
            "ending", ("encoder",), "pass", RuntimeError,
            "the prompt ends in an image whose last token, where the answer begins, has left in the encoder; end it with text, "
            "or use site='handoff'",
        ),
        Guard(
            "unread", THINNED, "cache", RuntimeError,
            "tokens have left this cache; attach a sieve to the model that reads it (one that evicts nothing more: "
            "sieve(model, Plan([])))",
        ),
        Guard(
            "unlimited", ("focus",), "cache", RuntimeError,
            "site='focus' limits what is seen of the images in this cache; attach the sieve under which it was filled to the "
            "model that reads it",
        ),
        Guard(
            "broken", THINNED, "cache", RuntimeError,
            "a pass over this cache broke off: its layers have seen {least} to {most} tokens; fill a new cache",
        ),
        Guard(
            "sliced", THINNED, "cache", RuntimeError,
            "this cache holds {held} entries of {rows} rows where {known} of {batch} are known: it was changed past its own "
            "methods; use crop(), reorder_cache(), batch_select_indices() or batch_repeat_interleave(), or fill a new cache",
        ),
        Guard(
            "other model", THINNED, "cache", ValueError,
            "layer {layer} of this cache was filled by another model; fill a new cache with this one",
        ),
        Guard(
            "unpictured", ("diffusion",), "pass", ValueError,
            "{model} was called with nothing that latents of pictures could be (a tensor of 3 to 5 dimensions, or a list of "
            "equal ones); detach the sieve from it",
        ),
        Guard(
            "untouched", ("diffusion",), "pass", RuntimeError,
            "no tokens of the latents were met in {model} by form={form!r}, so that nothing would be spared: its self-attention, "
            "or its blocks, see others; try the other form, or run it without a sieve",
        ),
        Guard(
            "unfit", ("diffusion",), "pass", RuntimeError,
            "{model} does not run on fewer tokens in form={form!r} ({error}); try the other form, or run it without a sieve",
        ),
        Guard(
            "copy", SITES, "copy", RuntimeError,
            "a copy of {model} would share hooks with it while a sieve is attached; detach() first, copy (or pickle), and attach "
            "sieves to both",
        ),
    )
}  # fmt: skip

UNCACHED = "{stages} evicted nothing: the pass had no cache (use_cache=False, which gradient checkpointing sets too)"
"""A warning, once: the answer is the plain model's, and right."""


def refusal(name: str, **facts: Any) -> Exception:
    """The error of a guard."""
    guard = GUARDS[name]
    return guard.error(guard.says.format(**facts))


def attachable(model: nn.Module, configs: Iterable[Any]) -> None:
    """Refuse what can be told before a pass.

    Args:
        configs: of the parts whose attention is read or limited, or whose tokens leave.

    Raises:
        ValueError: an attention implementation, or weights, under which no stage can work.
        RuntimeError: a forward that was compiled.
    """
    for config in configs:
        kind = taps.kind(config)
        if "flex" in kind:
            raise refusal("flex", kind=kind)
    if compiled.visibly(model):
        raise refusal("precompiled", model=type(model).__name__)
    # Offloaded weights are on the meta device too, between the passes.
    if any(p.is_meta for p in model.parameters()) and not any(hasattr(m, "_hf_hook") for m in model.modules()):
        raise refusal("meta", model=type(model).__name__)
