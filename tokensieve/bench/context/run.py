"""Run: every question under every line, written down as it goes, so that a second run goes on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tokensieve.bench.context.asking import PromptAsker, timed
from tokensieve.bench.context.cells import NONE, PromptCell, cells
from tokensieve.bench.context.rows import rows_of
from tokensieve.bench.loading import found, language_model
from tokensieve.bench.metrics import METRICS
from tokensieve.bench.questions import Question, read_questions
from tokensieve.bench.results import Results, Settings
from tokensieve.prompt.compress import WORDS, Compressor
from tokensieve.prompt.compressed import Compressed
from tokensieve.retrieval.encoders.loading import MINILM, load_encoder

Step = Callable[[str, int, int], None]
SHOWN = 3
"""Questions of which the page shows what each line left."""


@dataclass(frozen=True)
class PromptSettings(Settings):
    """Those of a bench of prompts.

    Attributes:
        encoder, lm: what texts are read by, besides the model that answers.
    """

    encoder: str = ""
    lm: str = ""


@dataclass(frozen=True)
class PromptConfig:
    """The arguments of a bench of prompts.

    Attributes:
        data: the file of questions, with contexts; plans: files of saved plans, which run beside the methods.
        batch: questions that are answered at once; times are then each one's share.
        encoder: a sentence encoder; None for the embedded one. lm: a language model for surprisal; None for the one that answers.
    """

    model: str
    data: Path
    methods: Sequence[str]
    budgets: Sequence[int | float]
    out: Path
    plans: Sequence[Path] = ()
    limit: int | None = None
    new_tokens: int = 24
    seed: int = 0
    dtype: str = "auto"
    device: str = "auto"
    encoder: str | None = None
    lm: str | None = None
    batch: int = 1

    def settings(self, items: int) -> PromptSettings:
        """What decides the numbers."""
        return PromptSettings(
            model=self.model, data=str(self.data), question="", samples=items, seed=self.seed, batch=self.batch,
            new_tokens=self.new_tokens, **found(self.device, self.dtype),
            encoder=self.encoder or MINILM, lm=self.lm or self.model,
        )  # fmt: skip


@dataclass
class _Work:
    """What a run works with."""

    asker: PromptAsker
    compressor: Compressor
    made: Sequence[PromptCell]
    notes: list[str] = field(default_factory=list)


def run(asked: PromptConfig, step: Step) -> Results:
    """Ask every question under every line; rows and records are in the results, which are on disk after every question.

    Args:
        step: told what is being done, how many answers there are, and of how many.

    Raises:
        ValueError, FileNotFoundError: what was asked for cannot be done; the message says why.
    """
    made = cells(asked.methods, asked.budgets, asked.plans)
    step("reading the questions", 0, 1)
    found = read_questions(asked.data)
    with_text = [q for q in found.items if q.context and not q.images and not q.choices]
    bare = len(found.items) - len(with_text)
    if not with_text:
        raise ValueError(f'--data {asked.data}: no line has a context, text to answer from: "context": ".." or [".."]')
    items = with_text[: asked.limit]
    step("loading the model", 0, 1)
    model, tokenizer = language_model(asked.model, asked.device, asked.dtype)
    lm = (model, tokenizer) if asked.lm is None else language_model(asked.lm, asked.device, asked.dtype)
    encoder = None if asked.encoder is None else load_encoder(asked.encoder)
    work = _Work(
        PromptAsker(model, tokenizer, asked.new_tokens, asked.seed),
        Compressor(tokenizer, encoder=encoder, lm=lm, seed=asked.seed), made, list(found.notes),
    )  # fmt: skip
    if bare:
        work.notes.append(f"{bare} lines have no context, or images or choices, and were left out")
    results = Results.open(asked.out, asked.settings(len(items)), found.skipped, [q.to_json() for q in items])
    _measured(results, work, items, asked.batch, step)
    data = results.data
    data["notes"] = [*work.notes, *_told(data["records"], made)]
    kinds = {q.name: q.kind for q in items}
    data["rows"] = rows_of(data["records"], made, kinds)
    data["shown"] = _shown(work, items)
    results.write()
    return results


def _measured(results: Results, work: _Work, items: Sequence[Question], batch: int, step: Step) -> None:
    records = results.data.setdefault("records", {})
    of = len(items) * len(work.made)
    done = sum(q.name in records.get(c.key, {}) for c in work.made for q in items)
    warm = False
    for start in range(0, len(items), batch):
        fresh = False
        for cell in work.made:
            own = records.setdefault(cell.key, {})
            left = [q for q in items[start : start + batch] if q.name not in own]
            if not left:
                continue
            if not warm:  # what loads at the first call is in no measured time
                _answered(work, cell, left[:1])
                for other in work.made:
                    if other.plan is not None:
                        compressed(work.compressor, other, left[0])
            own |= {q.name: record for q, record in zip(left, _answered(work, cell, left), strict=True)}
            warm = fresh = True
            done += len(left)
            step(f"{cell.key}: {left[-1].name}", done, of)
        if fresh:
            results.write()


def _told(records: dict[str, Any], made: Sequence[PromptCell]) -> list[str]:
    """What was said of texts while they were compressed: of each line the first note, and of how many texts there was one."""
    out = []
    for cell in made:
        noted = [r["notes"][0] for r in records[cell.key].values() if r["notes"]]
        if noted:
            out.append(
                f"{cell.key}: of {len(noted)} of {len(records[cell.key])} texts something is to be said: {noted[0]}"
            )
    return out


def compressed(compressor: Compressor, cell: PromptCell, item: Question) -> Compressed:
    """What a line leaves of a question's text; every unit is read anew, as a text that comes for the first time is."""
    compressor.forget()
    return compressor(item.context, item.question, plan=cell.plan)


def _answered(work: _Work, cell: PromptCell, items: Sequence[Question]) -> list[dict[str, Any]]:
    """The records of answers that are given at once."""
    texts, seconds, told = list[str](), list[float](), list[list[str]]()
    for item in items:
        context, taken, notes = "" if cell.key == NONE else "\n\n".join(item.context), 0.0, list[str]()
        if cell.plan is not None:
            made, taken = timed(lambda item=item: compressed(work.compressor, cell, item))
            context, notes = made.text, [note for note in made.notes if note != WORDS]
        texts.append(context)
        seconds.append(round(taken, 4))
        told.append(notes)
    replies = work.asker.together([(t, q.question, q.system) for t, q in zip(texts, items, strict=True)], cell.inside)
    return [
        {
            "said": reply.said, "contained": METRICS.get("contains")(reply.said, item.answers),
            "exact": METRICS.get("exact")(reply.said, item.answers), "survived": float(survived(context, item.answers)),
            "tokens": reply.tokens, "context": work.compressor.count(context), "compress": taken,
            "answer": round(reply.seconds, 4), "notes": notes,
        }
        for item, context, taken, notes, reply in zip(items, texts, seconds, told, replies, strict=True)
    ]  # fmt: skip


def survived(context: str, answers: Sequence[str]) -> bool:
    """Whether one of the answers stands in a text, whatever its blanks and case."""
    text = " ".join(context.casefold().split())
    return any(" ".join(a.casefold().split()) in text for a in answers)


def _shown(work: _Work, items: Sequence[Question]) -> list[dict[str, Any]]:
    """What lines leave of the first questions, at their smallest budgets."""
    least: dict[str, PromptCell] = {}
    for cell in work.made:
        if cell.plan is not None and (cell.method not in least or (cell.keep or 0) < (least[cell.method].keep or 0)):
            least[cell.method] = cell
    out = []
    for item in items[:SHOWN]:
        lines = {c.key: compressed(work.compressor, c, item) for c in least.values()}
        out.append(
            {"question": item.question, "answers": list(item.answers), "name": item.name,
             "lines": {k: {"source": m.source, "starts": m.starts, "spans": m.spans, "before": m.before, "after": m.after,
                           "counted": m.counted} for k, m in lines.items()}}
        )  # fmt: skip
    return out
