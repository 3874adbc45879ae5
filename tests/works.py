"""What works under a sieve: situations by site, as code that runs; `benchmarks/works.py` makes a page of what came of it.

A situation is a function of a :class:`Setting`: it asserts what is right, or raises what is refused.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

import tokensieve as ts
from tests.models import IMAGE, SIDE, llava, prompt
from tokensieve.bench.compat.cross import CrossCase

SITES = ("encoder", "handoff", "prefill", "focus", "cross", "cache", "reading")
THINNED = ("encoder", "handoff", "prefill", "cache")
VISUAL = ("encoder", "handoff", "prefill", "focus", "cross")
STAGES: dict[str, tuple[str, dict[str, Any]]] = {
    "encoder": ("divprune", {"keep": 16, "site": "encoder"}),
    "handoff": ("fastervlm", {"keep": 16}),
    "prefill": ("fastv", {"keep": 16}),
    "focus": ("yopo", {"keep": 0.5, "site": "focus"}),
    "cross": ("trimmed-llama", {"keep": 5}),
    "cache": ("streamingllm", {"keep": 20}),
    "reading": ("tidaldecode", {"keep": 0.5}),
}
GREEDY: dict[str, Any] = {"max_new_tokens": 6, "do_sample": False}
WORKS, NONE = "works", ""


class Setting:
    """One site: a tiny model with a stage there, and a prompt with a picture."""

    def __init__(self, site: str):
        self.site = site
        self.name, self.options = STAGES[site]

    def make(self, attn: str = "sdpa", seed: int = 0) -> Any:
        if self.site != "cross":
            return llava(attn, seed=seed)
        model = CrossCase("mllama", attn).model
        model.generation_config.suppress_tokens = list(range(8))
        return model

    @cached_property
    def inputs(self) -> dict[str, torch.Tensor]:
        return CrossCase("mllama").batch((1,)) if self.site == "cross" else prompt((1,))

    @property
    def text(self) -> dict[str, torch.Tensor]:
        """A prompt without a picture."""
        return {k: self.inputs[k][:, -6:] for k in ("input_ids", "attention_mask")}

    def sieve(self, model: Any, **changed: Any) -> ts.sieve:
        return ts.sieve(model, self.name, **{**self.options, **changed})

    def answer(self, model: Any, inputs: Any = None, **options: Any) -> torch.Tensor:
        return model.generate(**(self.inputs if inputs is None else inputs), **{**GREEDY, **options})

    @torch.no_grad()
    def logits(self, model: Any, *args: Any, **inputs: Any) -> torch.Tensor:
        return model(*args, **(inputs or ({} if args else self.inputs))).logits

    @cached_property
    def want(self) -> torch.Tensor:
        """The sieved answer, in the plainest situation."""
        model = self.make()
        with self.sieve(model):
            return self.answer(model)

    def same(self, got: torch.Tensor) -> None:
        assert torch.equal(got, self.want), (got, self.want)


@dataclass(frozen=True)
class Situation:
    """A row of the page.

    Attributes:
        run: asserts what is right at one site, or raises.
        expect: for each site "works", "refused" or "" (does not apply).
        says: what a refusal's sentence holds; guard: the guards, one of which it is of.
        needs: a package; slow: whether it takes seconds.
    """

    name: str
    run: Callable[[Setting], None]
    expect: dict[str, str]
    says: str
    guard: tuple[str, ...]
    needs: str
    slow: bool


SITUATIONS: dict[str, Situation] = {}


def situation(
    name: str,
    works: tuple[str, ...] = (),
    refused: tuple[str, ...] = (),
    says: str = "",
    guard: str | tuple[str, ...] = (),
    needs: str = "",
    slow: bool = False,
) -> Callable[[Callable[[Setting], None]], Callable[[Setting], None]]:
    """A row; where neither ``works`` nor ``refused`` is given, every site works."""
    works = SITES if not works and not refused else works

    def note(run: Callable[[Setting], None]) -> Callable[[Setting], None]:
        expect = {s: WORKS if s in works else "refused" if s in refused else NONE for s in SITES}
        names = (guard,) if isinstance(guard, str) else guard
        SITUATIONS[name] = Situation(name, run, expect, says, names, needs, slow)
        return run

    return note


def outcome(name: str, site: str) -> tuple[str, str]:
    """Run a cell: ("works", "") or ("refused", the sentence).

    Raises:
        AssertionError: a wrong answer.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            SITUATIONS[name].run(Setting(site))
        except AssertionError:
            raise
        except Exception as error:  # what is refused is told apart by its sentence
            return "refused", str(error)
    return WORKS, ""


def without(sites: tuple[str, ...], *gone: str) -> tuple[str, ...]:
    return tuple(s for s in sites if s not in gone)


VLM = without(SITES, "cross")
"""Sites at which the model of these tests is a LLaVA."""


def blocks(model: Any) -> Any:
    """The layers of a language model, wherever it is."""
    return next(m for n, m in model.named_modules() if n.endswith("language_model")).layers


def image_last(seed: int = 0) -> dict[str, torch.Tensor]:
    """A prompt that ends in an image."""
    pixels = torch.randn(1, 3, SIDE * 4, SIDE * 4, generator=torch.Generator().manual_seed(seed))
    ids = torch.tensor([[7, 8, 9] + [IMAGE] * SIDE * SIDE])
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": pixels}


def merged(setting: Setting, model: Any) -> dict[str, torch.Tensor]:
    """The prompt as embeddings, with features put in by the caller."""
    with torch.no_grad():
        features = model.get_image_features(pixel_values=setting.inputs["pixel_values"]).pooler_output
        ids = setting.inputs["input_ids"]
        rows = torch.cat([f.reshape(-1, f.shape[-1]) for f in features])
        embeds = model.get_input_embeddings()(ids).masked_scatter((ids == IMAGE)[..., None], rows)
    return {"inputs_embeds": embeds, "attention_mask": setting.inputs["attention_mask"]}
