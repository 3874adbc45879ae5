"""People's own data: a bench of their questions or texts, from its arguments to the files on disk."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from tokensieve.bench import overlay, plots, report
from tokensieve.bench.answers import Answers
from tokensieve.bench.continuations import Continuations
from tokensieve.bench.data import Sample
from tokensieve.bench.equal import EQUAL, FULL, RANDOM, Cell, Shape, by_bytes, cached, cells, from_files
from tokensieve.bench.loading import found, language_model
from tokensieve.bench.metrics import METRICS
from tokensieve.bench.questions import Question, read_questions
from tokensieve.bench.results import OwnSettings, Results
from tokensieve.bench.rounds import Rounds
from tokensieve.bench.run import BASELINES
from tokensieve.bench.subject import Subject
from tokensieve.bench.summary import by_kind, continued, rows
from tokensieve.bench.tables import kinds as by_kinds
from tokensieve.bench.tables import table
from tokensieve.bench.texts import read_texts
from tokensieve.core.plan import applied
from tokensieve.testbed.lm.tasks import speech

SPARE = 64
"""Tokens of the context that questions and timed steps may take behind a text's window."""
WORDS = 32
"""Words that a tokenizer must have as single tokens, for facts to be told in."""
SHOWN = 8
"""Faults that are named on the terminal; the page names all."""


@dataclass(frozen=True)
class OwnConfig:
    """The arguments of a bench of people's own data.

    Attributes:
        data: the file of questions, or the folder of texts.
        plans: files of saved plans, which run beside the methods.
        score: the name of a metric (questions).
        equal: what is made equal, of ``EQUAL`` (questions).
        window: tokens of each text that are read (texts).
    """

    model: str
    data: Path
    methods: Sequence[str]
    budgets: Sequence[int | float]
    out: Path
    plans: Sequence[Path] = ()
    score: str = "exact"
    equal: str = "mean"
    limit: int | None = None
    batch: int = 20
    new_tokens: int = 16
    seed: int = 0
    dtype: str = "auto"
    device: str = "auto"
    window: int = 2048

    def settings(self, items: int) -> OwnSettings:
        """What decides the numbers, with the device and precision that "auto" found."""
        return OwnSettings(
            model=self.model, data=str(self.data), question="", samples=items, seed=self.seed, batch=self.batch,
            new_tokens=self.new_tokens, **found(self.device, self.dtype),
            score=self.score, equal=self.equal,
        )  # fmt: skip


def questions(asked: OwnConfig, console: Console) -> Results:
    """Ask a file of questions under every plan, then write table, plots and page.

    Raises:
        ValueError, FileNotFoundError: what was asked for cannot be done; the message says why.
    """
    try:
        METRICS.get(asked.score)("1", ["1"])  # said before anything is loaded
    except ImportError as error:
        raise ValueError(f"--metric {asked.score}: {error}") from error
    if asked.equal not in EQUAL:
        raise ValueError(f"--equal {asked.equal}: it must be one of {', '.join(EQUAL)}")
    for name in asked.methods:
        for keep in asked.budgets:
            applied(name, keep)
    asked.settings(0)  # so is a device that is not there
    with bar(console) as shown:
        task = shown.add_task("reading the questions", total=None)
        found = read_questions(asked.data, asked.limit, lambda line: shown.update(task, completed=line))
        shown.update(task, description="loading the model")
        subject = Subject.load(asked.model, asked.device, asked.dtype)
        work = Answers(subject, asked.score, asked.new_tokens, asked.seed)
        names = list(dict.fromkeys([*BASELINES, *asked.methods]))
        made, left = cells(subject.model, names, asked.budgets, asked.equal, shape_of(work, found.items))
        made += from_files(subject.model, asked.plans)
        settings = asked.settings(len(found.items))
        results = Results.open(asked.out, settings, found.skipped, [q.to_json() for q in found.items])
        results.data["asked"] = "questions"
        rounds = _measured(results, work, made, found.items, asked.batch, shown, task)
        rounds.left.update(left)
        rounds.notes[:] = list(dict.fromkeys([*found.notes, *work.prompts.notes, *rounds.notes]))
        _questions_rows(rounds)
        shown.update(task, description="drawing")
        plots.pareto(results.data, asked.out)
        report.write(results.data, asked.out, _overlays(subject, found.items, rounds.cells, asked.seed))
    tell(results, asked.out, console, found.skipped, "lines of the file")
    return results


def texts(asked: OwnConfig, console: Console) -> Results:
    """Have a language model continue the texts of a folder under every plan of the cache, then write table, plots and page.

    Raises:
        ValueError, FileNotFoundError: what was asked for cannot be done; the message says why.
    """
    with bar(console) as shown:
        task = shown.add_task("loading the model", total=None)
        model, tokenizer = language_model(asked.model, asked.device, asked.dtype)
        longest = getattr(model.config.get_text_config(decoder=True), "max_position_embeddings", None)
        if longest is not None and asked.window + SPARE > longest:
            raise ValueError(
                f"--window {asked.window}: the model's context ends at {longest}, questions included; at most {longest - SPARE}"
            )
        say = speech(tokenizer)
        told = len(say.words) >= WORDS
        shown.update(task, description="reading the texts")
        found = read_texts(asked.data, tokenizer, say if told else None, asked.window, asked.limit, asked.seed)
        made, left = cached(model, tokenizer, list(dict.fromkeys([RANDOM, *asked.methods])), asked.budgets)
        made += from_files(model, asked.plans)
        others = [c.key for c in made if c.plan is not None and not by_bytes(c.plan)]
        if others:
            raise ValueError(
                f"--plan {others[0]}: --texts compares plans of the prompt and the cache, and this one acts elsewhere; "
                "use --questions"
            )
        settings = asked.settings(len(found.items))
        results = Results.open(asked.out, settings, found.skipped, [t.to_json() for t in found.items])
        results.data["asked"] = "texts"
        rounds = _measured(results, Continuations(model, asked.seed, tokenizer), made, found.items, 1, shown, task)
        rounds.left.update(left)
        dumb = (
            []
            if told
            else [f"the tokenizer has {len(say.words)} plain words, too few to tell facts in: none were planted"]
        )
        rounds.notes[:] = list(dict.fromkeys([*found.notes, *dumb, *rounds.notes]))
        _texts_rows(rounds)
        shown.update(task, description="drawing")
        plots.held(results.data, asked.out)
        report.write(results.data, asked.out)
    tell(results, asked.out, console, found.skipped, "files")
    return results


def _measured(
    results: Results, work: Any, made: Sequence[Cell], items: Sequence[Any], size: int, shown: Progress, task: Any
) -> Rounds:
    def step(done: int, total: int, what: str) -> None:
        shown.update(task, completed=done, total=total, description=what)

    rounds = Rounds(results, work, made, step)
    rounds.run(items, size)
    return rounds


def _texts_rows(rounds: Rounds) -> None:
    data = rounds.results.data
    scores: Any = {
        "likelihood": lambda record: -record["nats"],
        "after": lambda record: record.get("after"),
        "before": lambda record: record.get("before"),
    }
    made, names = rows(rounds, scores)
    for key, row in made.items():
        row |= continued([rounds.records[key][n] for n in names])
        row["held"] = round(row["kv_bytes"] / made[FULL]["kv_bytes"], 4)
    data["rows"], data["items"] = made, names
    rounds.results.write()


def _questions_rows(rounds: Rounds) -> None:
    data = rounds.results.data
    made, names = rows(rounds, {"score": lambda record: record["score"]})
    kinds = {s["name"]: s["kind"] for s in data["samples"]}
    for key, row in made.items():
        row |= by_kind([rounds.records[key][n] for n in names], [kinds[n] for n in names])
    data["rows"], data["items"] = made, names
    rounds.results.write()


def shape_of(work: Answers, items: Sequence[Question]) -> Shape:
    """What the first questions with an image are like."""
    some = [q for q in items if q.images][:4]
    sizes = [work.sizes(q) for q in some]
    return Shape(round(mean(v for v, _ in sizes)), round(mean(t for _, t in sizes))) if sizes else Shape(0, 0)


def _overlays(
    subject: Subject, items: Sequence[Question], made: Sequence[Cell], seed: int
) -> list[tuple[str, str, overlay.Image.Image]]:
    """A sheet for each method at its smallest budget, on the first question about one image."""
    first = next((q for q in items if len(q.images) == 1), None)
    if first is None:
        return []
    sample = Sample(first.pictures()[0], first.question, name=first.name)
    asked = [c for c in made if c.keep is not None and not c.added]
    least = {c.method: c for c in sorted(asked, key=lambda c: -float(c.keep or 0))}
    out = []
    for name, cell in least.items():
        assert cell.plan is not None
        try:
            shown = overlay.look(subject, sample, cell.plan, seed)
        except ValueError:
            continue  # no grid to draw on, or nothing leaves in front of the language model
        title = f"{name}, keep {cell.keep}"
        out.append((name, f"{title}: “{sample.question}” {shown.answer}", overlay.sheet(shown, title, 224)))
    return out


def tell(results: Results, out: Path, console: Console, skipped: Sequence[str], what: str) -> None:
    """The table, and all that should be known of the run, on the terminal."""
    data = results.data
    console.print(table(data, console.width))
    if (kinds := by_kinds(data)) is not None:
        console.print(kinds)
    if skipped:
        console.print(f"{len(skipped)} {what} were skipped:", style="yellow")
        for line in skipped[:SHOWN]:
            console.print(f"  {line}", markup=False, highlight=False)
        if len(skipped) > SHOWN:
            console.print(f"  and {len(skipped) - SHOWN} more; report.html names them")
    for key, why in data["left"].items():
        console.print(f"left out: {key}: {why}", markup=False, highlight=False, style="yellow")
    for note in data["notes"]:
        console.print(f"note: {note}", markup=False, highlight=False)
    console.print(f"report   {out / 'report.html'}\nplot     {out / 'pareto.png'}\nnumbers  {out / 'results.json'}")


def bar(console: Console) -> Progress:
    columns = (
        TextColumn("{task.description:28}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    return Progress(*columns, console=console, transient=True)
