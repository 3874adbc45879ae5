"""Compress: fewer tokens of text in front of a model, with the answer still in them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from functools import cached_property
from itertools import accumulate
from typing import Any, cast

from torch import Tensor

from tokensieve.core import budget
from tokensieve.core.method import Method, PromptMethod
from tokensieve.core.plan import Plan
from tokensieve.core.stage import Stage, stage
from tokensieve.prompt.compressed import Compressed, back, forth
from tokensieve.retrieval.encoders.loading import MINILM, load_encoder
from tokensieve.sites.prompt.counting import TokenCounter
from tokensieve.sites.prompt.cutting import joined
from tokensieve.sites.prompt.protect import Protected, Span, protected
from tokensieve.sites.prompt.site import TextReaders, shorten
from tokensieve.sites.prompt.vectors import Memory
from tokensieve.text.loading import open_tokenizer

BETWEEN = "\n\n"
"""What stands between passages."""

WORDS = "words left from the midst of sentences: a model may no longer find what is still there; measure it by bench-prompts"


class Compressor:
    """Compresses texts; it reads each unit of text once, however often it comes.

    Args:
        tokenizer: the target's: a fast tokenizer of transformers, a folder or file, a hub name, a name of tiktoken. By default
            that of the encoder.
        encoder: of sentences, with one vector a text; the embedded MiniLM by default, loaded when a method needs it.
        lm: a causal language model and its tokenizer, ``(model, tokenizer)``, for methods that read surprisal.
        seed: for methods that draw.

    Raises:
        ValueError: no such tokenizer.
    """

    def __init__(self, tokenizer: Any = None, *, encoder: Any = None, lm: tuple[Any, Any] | None = None, seed: int = 0):
        self.lm, self.seed = lm, seed
        self._given, self._tokenizer = encoder, tokenizer
        self._count = None if tokenizer is None else TokenCounter(open_tokenizer(tokenizer))
        self._memory = Memory(lambda texts: self._single(self._encoder.documents(texts)))

    def __call__(
        self,
        text: str | Sequence[str],
        question: str = "",
        keep: budget.Budget | None = None,
        *,
        method: str | Method | None = None,
        plan: Plan | Stage | None = None,
        protect: Iterable[Protected] = (),
        each: bool = False,
        **options: Any,
    ) -> Compressed:
        """As :func:`compress`."""
        source, starts = _joined(text)
        stages = _stages(question, keep, method, plan, options)
        stay = protected(source, starts, [*protect, *([question] if question and question in source else [])])
        before, notes = self.count(source), list[str]()
        if not source.strip():
            notes.append("the text is empty")
        run = self._each if each else self._staged
        spans = run(source, starts, stages, question, stay, notes)
        left = "".join(source[a:b] for a, b in spans)
        if left != source and any(getattr(s.method, "unit", "") == "word" for s in stages):
            notes.append(WORDS)
        if self._count is None:
            notes.append(
                f"tokens are counted by the tokenizer of {self._name}; pass the target's as tokenizer= (--tokenizer)"
            )
        if self._given is None and any(_embeds(s) for s in stages):
            foreign = [what for what, words in (("question", question), ("text", source)) if _foreign(words)]
            if foreign:
                notes.append(
                    f"the {' and the '.join(foreign)} {'is' if len(foreign) == 1 else 'are'} hardly in Latin letters, and the "
                    "embedded MiniLM was trained on English; pass another as encoder= (--encoder)"
                )
        counted = self._name if self._count is None else _named(self._tokenizer)
        return Compressed(source, starts, tuple(spans), before, self.count(left), counted, tuple(dict.fromkeys(notes)))

    def count(self, text: str) -> int:
        """The tokens of a text, by the target's tokenizer."""
        return self._counter(text)

    def forget(self) -> None:
        """Forget what was read, so that the next text costs what a new one does."""
        self._memory.forget()

    # ---- running ----------------------------------------------------------------------------------------------------

    def _each(
        self,
        source: str,
        starts: Sequence[int],
        stages: Sequence[Stage],
        question: str,
        stay: Sequence[Span],
        notes: list[str],
    ) -> list[Span]:
        """Every passage with a budget of its own, and what stood between them."""
        ends = [s - len(BETWEEN) for s in starts[1:]] + [len(source)]
        out: list[Span] = []
        for a, b in zip(starts, ends, strict=True):
            own = [(max(s, a) - a, min(e, b) - a) for s, e in stay if s < b and e > a]
            kept = self._staged(source[a:b], (0,), stages, question, own, notes)
            if out and kept:
                out.append((a - len(BETWEEN), a))
            out += [(s + a, e + a) for s, e in kept]
        return joined(out)

    def _staged(
        self,
        source: str,
        starts: Sequence[int],
        stages: Sequence[Stage],
        question: str,
        stay: Sequence[Span],
        notes: list[str],
    ) -> list[Span]:
        """The stages one after the other, each on what the one before left."""
        spans: list[Span] = [(0, len(source))] if source else []
        for one in stages:
            text = "".join(source[a:b] for a, b in spans)
            size = self.count(text)
            room = _room(one, size)
            if size <= room:
                continue
            begins = tuple(dict.fromkeys(p for p in (forth(spans, s) for s in starts) if p < len(text)))
            own = [(forth(spans, a), forth(spans, b)) for a, b in stay]
            filled = shorten(text, begins, one, room, self._counter, self._readers, question, own, self.seed)
            notes += filled.notes
            spans = back(spans, filled.spans)
        return spans

    @property
    def _counter(self) -> TokenCounter:
        return self._own_count if self._count is None else self._count

    @cached_property
    def _own_count(self) -> TokenCounter:
        return TokenCounter(open_tokenizer(self._encoder.tokenizer))

    @cached_property
    def _encoder(self) -> Any:
        return load_encoder() if self._given is None else self._given

    @property
    def _name(self) -> str:
        return MINILM if self._given is None else getattr(self._given, "name", type(self._given).__name__)

    @cached_property
    def _readers(self) -> TextReaders:
        return TextReaders(
            self._memory,
            lambda texts: self._single(self._encoder.queries(texts)),
            lambda texts: self._single(self._encoder.documents(texts)),
            # Other encoders than those of this package need not say so.
            lambda: getattr(getattr(self._encoder, "reading", None), "document_length", None),
            self.lm,
        )

    def _single(self, encoded: Any) -> Tensor:
        if encoded.single is None:
            raise ValueError(f"the encoder {self._name} has no single vector for a text; pass one that has (MiniLM)")
        return encoded.single


def compress(
    text: str | Sequence[str],
    question: str = "",
    keep: budget.Budget | None = None,
    *,
    method: str | Method | None = None,
    plan: Plan | Stage | None = None,
    tokenizer: Any = None,
    encoder: Any = None,
    lm: tuple[Any, Any] | None = None,
    protect: Iterable[Protected] = (),
    each: bool = False,
    seed: int = 0,
    **options: Any,
) -> Compressed:
    """Compress a text in front of a model: some of its sentences, lines, words or passages stay, in their order.

    Args:
        text: a text, or passages (from a search, say).
        question: what is to be answered from it; it stays where it stands in the text.
        keep: the budget, in tokens of the target's tokenizer: a number of them, or a share. What comes out never has more.
        method: a registered name (``tokensieve.list_methods(site="prompt")``) or a method; "question" by default.
        plan: in the place of method and keep: a plan whose stages at site="prompt" run one after the other; others are for
            ``tokensieve.sieve``.
        tokenizer, encoder, lm: see :class:`Compressor`; make one where many texts are compressed.
        protect: what stays besides: "numbers", "code", "quotes", "urls", words of the text, patterns of ``re``, or (start, end).
            Units that hold some of it stay whole. Chat markers always do.
        each: whether every passage has the budget for itself (the line ends between them come on top); otherwise they share it.
        seed: for methods that draw.
        options: of the method: ``unit="line"``.

    Returns:
        a :class:`Compressed`: its text, spans, tokens before and after, and what was dropped.

    Raises:
        ValueError: no budget, one below what is protected (it says how much that is), an unknown method or option, or a method
            that reads what was not given. ImportError: a package is missing; it says how it is installed.

    Example:
        >>> c = ts.compress(passages, question="Which port does it use?", keep=512, tokenizer=tok)  # doctest: +SKIP
        >>> c.text, c.before, c.after                                                               # doctest: +SKIP
    """
    made = Compressor(tokenizer, encoder=encoder, lm=lm, seed=seed)
    return made(text, question, keep, method=method, plan=plan, protect=protect, each=each, **options)


def _joined(text: str | Sequence[str]) -> tuple[str, tuple[int, ...]]:
    passages = [text] if isinstance(text, str) else list(text)
    for number, passage in enumerate(passages):
        if not isinstance(passage, str):
            raise ValueError(
                f"passage {number} is a {type(passage).__name__}; text must be a string or a list of strings"
            )
        try:
            passage.encode()
        except UnicodeEncodeError as error:
            raise ValueError(
                f"passage {number} holds half of a character at {error.start} (a lone surrogate); read it as UTF-8"
            ) from error
    passages = passages or [""]
    starts = list(accumulate((len(p) + len(BETWEEN) for p in passages[:-1]), initial=0))
    return BETWEEN.join(passages), tuple(starts)


def _stages(
    question: str,
    keep: budget.Budget | None,
    method: str | Method | None,
    plan: Plan | Stage | None,
    options: dict[str, Any],
) -> list[Stage]:
    if plan is not None:
        if keep is not None or method is not None or options:
            raise ValueError("a plan carries its own methods, budgets and options; pass text, question and plan only")
        found = [s for s in (plan if isinstance(plan, Plan) else Plan(plan)).stages if s.site == "prompt"]
        if not found:
            raise ValueError("the plan has no stage at site='prompt'; tokensieve.sieve runs its stages in a model")
        return found
    if keep is None:
        raise ValueError("keep is missing; say how many tokens to keep: compress(text, question, keep=512), or a share")
    if method is None and not question.strip():
        raise ValueError(
            "say what the text is for: question=..., or choose a method that needs none: "
            "method='surprisal' (with lm=), 'crag', 'tcra'"
        )
    made = stage(method or "question", keep, **options)
    if not isinstance(made.method, PromptMethod):
        raise ValueError(
            f"{made.method.name} does not run at site='prompt'; tokensieve.list_methods(site='prompt') lists what does"
        )
    return [made]


def _room(stage: Stage, size: int) -> int:
    """The budget in tokens, of a text of ``size``."""
    keep = stage.keep.direct if isinstance(stage.keep, budget.Keep) else stage.keep
    return keep if isinstance(keep, int) else max(1, math.floor(keep * size + 1e-9))


def _named(tokenizer: Any) -> str:
    return str(
        getattr(tokenizer, "name_or_path", "")
        or (tokenizer if isinstance(tokenizer, str) else type(tokenizer).__name__)
    )


def _embeds(stage: Stage) -> bool:
    """Whether a stage chooses by vectors of the encoder."""
    return cast(PromptMethod, stage.method).vectors or any(need.name in ("text", "shift") for need in stage.needs)


def _foreign(words: str) -> bool:
    letters = [c for c in words if c.isalpha()]
    return bool(letters) and sum(c.isascii() for c in letters) < len(letters) / 2
