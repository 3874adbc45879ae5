"""What the commands do: a bench from its arguments to the files on disk."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from tokensieve.bench import overlay, plots, report
from tokensieve.bench.data import Sample, from_folder, from_testbed
from tokensieve.bench.results import Results, Settings
from tokensieve.bench.run import BASELINES, cells, run
from tokensieve.bench.subject import Subject
from tokensieve.bench.tables import table
from tokensieve.core.plan import applied


@dataclass(frozen=True)
class BenchConfig:
    """The arguments of a bench."""

    model: str
    methods: Sequence[str]
    budgets: Sequence[int | float]
    out: Path
    which: str = "scenes"
    images: Path | None = None
    question: str = "Describe the image."
    limit: int | None = None
    batch: int = 20
    seed: int = 0
    dtype: str = "float32"
    device: str = "cpu"
    new_tokens: int | None = None


def bench(asked: BenchConfig, console: Console) -> Results:
    """Run the matrix, then write table, plots and page.

    Raises:
        ValueError, FileNotFoundError: what was asked for cannot be done; the message says why.
    """
    pairs = cells(asked.methods, asked.budgets)
    if asked.images is not None:
        samples, skipped = from_folder(asked.images, asked.question, asked.limit)
    else:
        samples, skipped = from_testbed(asked.limit or 300, asked.seed, asked.which), []
    with _bar(console) as bar:
        task = bar.add_task("loading the model", total=None)
        subject = Subject.load(asked.model, asked.device, asked.dtype, asked.which != "scenes")
        settings = Settings(
            model=asked.model,
            data=_data(asked),
            question="" if asked.images is None else asked.question,
            samples=len(samples),
            seed=asked.seed,
            batch=asked.batch,
            new_tokens=asked.new_tokens or (4 if asked.images is None else 16),
            dtype=asked.dtype,
            device=asked.device,
        )

        def step(done: int, total: int, what: str) -> None:
            bar.update(task, completed=done, total=total, description=what)

        results = run(subject, samples, pairs, asked.out, settings, skipped, step)
        bar.update(task, description="drawing", completed=len(pairs) + 1)
        plots.pareto(results.data, asked.out)
        report.write(results.data, asked.out, _overlays(subject, samples, asked))
    console.print(table(results.data, console.width))
    if skipped:
        console.print(f"[yellow]{len(skipped)} images could not be read and were skipped:[/] " + "; ".join(skipped[:3]))
    console.print(
        f"report   {asked.out / 'report.html'}\nplot     {asked.out / 'pareto.png'}\nnumbers  {asked.out / 'results.json'}"
    )
    return results


def _data(asked: BenchConfig) -> str:
    if asked.images is not None:
        return str(asked.images)
    return "testbed" if asked.which == "scenes" else f"testbed {asked.which}"


def _overlays(
    subject: Subject, samples: Sequence[Sample], asked: BenchConfig
) -> list[tuple[str, str, overlay.Image.Image]]:
    """One sheet for each method at the budget nearest 64, on the first image; none where prompts hold several."""
    if samples[0].several is not None:
        return []
    keep = min(asked.budgets, key=lambda k: abs(float(k) - 64))
    out = []
    for name in dict.fromkeys([*BASELINES, *asked.methods]):
        try:
            shown = overlay.look(subject, samples[0], applied(name, keep), asked.seed)
        except ValueError:
            continue  # no grid to draw on; the table stands without the picture
        title = f"{name}, keep {keep}"
        out.append((name, f"{title}: “{samples[0].question}” {shown.answer}", overlay.sheet(shown, title, 224)))
    return out


def _bar(console: Console) -> Progress:
    columns = (TextColumn("{task.description:28}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    return Progress(*columns, console=console, transient=True)
