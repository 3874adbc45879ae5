"""Advise: which plan, what it loses on your data, what it saves; or that nothing pays."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from random import Random
from typing import Any

from rich.console import Console

from tokensieve.bench.answers import Answers
from tokensieve.bench.continuations import Continuations
from tokensieve.bench.data import SUFFIXES, Found, read_image
from tokensieve.bench.equal import Cell, Shape
from tokensieve.bench.loading import language_model, packaged
from tokensieve.bench.own import SPARE, bar, shape_of
from tokensieve.bench.questions import Question, read_questions
from tokensieve.bench.rounds import Measuring
from tokensieve.bench.subject import Subject
from tokensieve.bench.texts import read_texts
from tokensieve.core.plan import Plan
from tokensieve.planner import advice, asking, page
from tokensieve.planner.advice import Advice
from tokensieve.planner.advise_config import AdviseConfig
from tokensieve.planner.candidates import Candidates, candidates_of
from tokensieve.planner.encoders.bench import EncoderAdvice, bench_encoder
from tokensieve.planner.encoders.items import read_items
from tokensieve.planner.encoders.subject import EncoderSubject
from tokensieve.planner.halving import Outcome, needed, search
from tokensieve.planner.runtimes import RUNTIMES
from tokensieve.sites.loading import encodes

PLAN, SEARCH, ANSWERS = "plan.json", "search.json", "answers.json"


@dataclass(frozen=True)
class Setup:
    """What is asked, of what, among which plans."""

    measuring: Measuring
    score: asking.Score
    candidates: Candidates


def advise(
    model: Any,
    processor: Any = None,
    *,
    questions: str | Path | None = None,
    images: str | Path | None = None,
    texts: str | Path | None = None,
    inputs: str | Path | None = None,
    out: str | Path = "advice",
    console: Console | None = None,
    **options: Any,
) -> Advice | EncoderAdvice:
    """Look for the plan that costs least and keeps a share of the full model's quality on your data.

    Methods, budgets and sites are searched by successive halving (:mod:`tokensieve.planner.halving`), with random, uniform and
    pool among them, which may win. Interrupted, it goes on from where it was.

    Args:
        model: a name, as for ``tokensieve bench``, or a loaded model.
        processor: of a loaded model; with ``texts`` its tokenizer.
        questions: a file of JSON lines (:func:`tokensieve.bench.questions.read_questions`): quality is the score by ``metric``
            over the full model's.
        images: a folder: each image is asked ``question``, and quality is token F1 with the full model's answer.
        texts: a folder: quality is 1 minus the relative rise of bits per byte of what comes next, under plans of the cache.
        inputs: of an encoder, a folder of images, sound or texts: what stays is told against the full encoder, and the plan is
            that of :func:`tokensieve.planner.encoders.bench.bench_encoder`, which takes the ``options`` (``quality`` is its
            ``fidelity``).
        out: the folder for ``plan.json``, ``advice.html`` and what the search was told.
        console: where a bar is shown; nowhere by default.
        options: ``quality=0.98``, the share that has to stay; ``target="latency"`` ("memory", "flops"), what is to be least;
            ``minutes=20``, of asking; ``methods``, ``keep`` (budgets), ``sites`` ("encoder", "handoff", "prefill", "cache") and
            ``runtime`` ("vllm") limit what is tried; ``metric="exact"``; ``limit=400`` items, drawn by ``seed=0``; ``batch=20``;
            ``new_tokens=16``; ``window=2048``; ``dtype``, ``device`` of a model that is loaded by name.

    Raises:
        ValueError, FileNotFoundError: what was asked for cannot be done; the message says why. In particular ``out`` holds a
            search on other terms, or a ``plan.json`` that was changed since; or the model is an encoder, and no ``inputs`` are
            given.
        OSError: no room on the disk; what was asked before is intact.
    """
    if inputs is not None:
        return _of_encoder(model, processor, Path(inputs), [questions, images, texts], out, console, options)
    where: dict[str, Any] = {
        "questions": None if questions is None else Path(questions), "images": None if images is None else Path(images),
        "texts": None if texts is None else Path(texts), "out": Path(out),
    }  # fmt: skip
    asked = AdviseConfig(model, processor, **where, **options)
    with bar(console or Console(quiet=True)) as shown:
        task = shown.add_task("reading", total=None)

        def step(done: int, total: int | None, what: str) -> None:
            shown.update(task, completed=done, total=total, description=what)

        return _advise(asked, step)


def _of_encoder(
    model: Any,
    processor: Any,
    inputs: Path,
    others: Sequence[Any],
    out: str | Path,
    console: Any,
    options: dict[str, Any],
) -> EncoderAdvice:
    if any(given is not None for given in others):
        raise ValueError(
            "--inputs judges an encoder; --questions, --images and --texts judge other models: say one of them"
        )
    if "quality" in options:
        options = {**{k: v for k, v in options.items() if k != "quality"}, "fidelity": options["quality"]}
    if not isinstance(model, str | EncoderSubject):
        if processor is None:
            raise ValueError("a loaded encoder needs what prepares its inputs: advise(model, processor, inputs=...)")
        model = EncoderSubject(type(model).__name__, model, processor, read_items(inputs, None, 1)[0][0].kind)
    return bench_encoder(model, inputs, out=out, console=console, **options)


def _advise(asked: AdviseConfig, step: Any) -> Advice:
    if not packaged(asked.model) and encodes(asked.model):
        name = asked.model if isinstance(asked.model, str) else type(asked.model).__name__
        raise ValueError(
            f"{name} is an encoder; its plans are judged by a folder of what it encodes: give --inputs FOLDER"
        )
    loaded, found = _found(asked, step)
    items, terms = found.items, asked.terms(found.items)
    asked.out.mkdir(parents=True, exist_ok=True)
    if few := needed(len(items), terms):
        outcome = Outcome(None, "few", few, {}, [], {}, [], 0.0, 0)
        return _done(asked, outcome, {}, None, items, found)
    step(0, None, "loading the model")
    work = _work(asked, loaded or _load(asked), items)
    if (asked.out / PLAN).exists() and not (asked.out / SEARCH).exists():
        raise ValueError(f"{asked.out / PLAN} is of another search; move it, or choose another --out")
    cost = asking.COSTS[asked.target]
    ask = asking.Asking(work.measuring, work.candidates.cells, items, work.score, cost, asked.out / ANSWERS)
    outcome = search(list(work.candidates.cells), [i.name for i in items], ask, terms, asked.out / SEARCH, step)
    outcome = replace(outcome, left={**work.candidates.left, **outcome.left})
    step(len(items), len(items), "drawing")
    return _done(asked, outcome, work.candidates.cells, ask, items, found)


# ---- what is asked ------------------------------------------------------------------------------------------------------


def _found(asked: AdviseConfig, step: Any) -> tuple[Any, Found]:
    """The items, and the model where it takes its tokenizer to read them."""
    if asked.questions is not None:
        found = read_questions(asked.questions, None, lambda line: step(line, None, "reading the questions"))
        return None, _drawn(found, asked)
    if asked.images is not None:
        return None, _drawn(_images(asked.images, asked.question), asked)
    assert asked.texts is not None
    step(0, None, "loading the model")
    model, tokenizer = loaded = _load(asked)
    longest = getattr(model.config.get_text_config(decoder=True), "max_position_embeddings", None)
    if longest is not None and asked.window + SPARE > longest:
        raise ValueError(f"--window {asked.window}: the model's context ends at {longest}; at most {longest - SPARE}")
    step(0, None, "reading the texts")
    return loaded, _drawn(read_texts(asked.texts, tokenizer, None, asked.window, None, asked.seed), asked)


def _drawn(found: Found, asked: AdviseConfig) -> Found:
    """At most ``limit`` of the items, drawn by the seed."""
    if len(found.items) <= asked.limit:
        return found
    kept = set(Random(asked.seed).sample(range(len(found.items)), asked.limit))
    note = f"{asked.limit} of {len(found.items)} {asked.what} were drawn (--limit)"
    return replace(found, items=[x for i, x in enumerate(found.items) if i in kept], notes=[note, *found.notes])


def _images(folder: Path, question: str) -> Found:
    """A question about each image of a folder; its answer is the full model's."""
    if not folder.is_dir():
        raise FileNotFoundError(f"--images {folder}: no such folder")
    files = sorted(p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES)
    items, skipped = [], []
    for file in files:
        try:
            mark = sha256(read_image(file).tobytes()).hexdigest()[:16]
            items.append(Question(file.name, question, ("",), (file,), mark=mark))
        except ValueError as error:
            skipped.append(str(error))
    if not items:
        told = f"none of its {len(files)} images can be read" if files else "it holds no images"
        raise ValueError(f"--images {folder}: {told} (looked for {', '.join(sorted(SUFFIXES))})")
    return Found(items, skipped, [])


def _load(asked: AdviseConfig) -> Any:
    """A model and its tokenizer, or what can be asked about images."""
    if isinstance(asked.model, str):
        if asked.texts is not None:
            return language_model(asked.model, asked.device, asked.dtype)
        return Subject.load(asked.model, asked.device, asked.dtype)
    if asked.processor is None:
        raise ValueError("a loaded model needs its processor (of texts, its tokenizer): advise(model, processor, ...)")
    if asked.texts is not None:
        return asked.model, asked.processor
    return Subject(type(asked.model).__name__, asked.model, asked.processor)


def _work(asked: AdviseConfig, loaded: Any, items: Sequence[Any]) -> Setup:
    shape = Shape(0, 0)
    if asked.texts is not None:
        model, tokenizer = loaded
        measuring: Any = Continuations(model, asked.seed, peaks=False)
        score = asking.of_texts
    else:
        model, tokenizer = loaded.model, loaded.processor.tokenizer
        measuring = Answers(loaded, asked.metric, asked.new_tokens, asked.seed)
        score, shape = asking.of_questions, shape_of(measuring, items)
        if asked.images is not None:
            score = asking.of_images
    served = RUNTIMES.get(asked.runtime)(model)
    return Setup(measuring, score, candidates_of(model, tokenizer, asked.at, asked.methods, asked.keep, shape, served))


# ---- what comes of it ---------------------------------------------------------------------------------------------------


def _done(
    asked: AdviseConfig,
    outcome: Outcome,
    cells: Mapping[str, Cell],
    ask: asking.Asking | None,
    items: Sequence[Any],
    found: Found,
) -> Advice:
    passes = ask.passes if ask is not None else {}
    chosen = outcome.chosen
    plan = cells[chosen].plan if chosen is not None else None
    sentence = advice.told(outcome, asked, len(items), cells, passes)
    shares = advice.saved(chosen, passes) if chosen is not None else {}
    quality = outcome.standings[chosen].held if chosen is not None else None
    made = Advice(sentence, plan, chosen, quality, shares, outcome.why, outcome, asked.out)
    page.write(made, asked, cells, ask, items, found)
    if plan is not None:
        _save(plan, asked.out / PLAN)
    return made


def _save(plan: Plan, file: Path) -> None:
    """Write the plan, unless another one stands there: the same search always ends with the same."""
    if file.exists() and json.loads(file.read_text(encoding="utf-8")) != json.loads(json.dumps(plan.to_json())):
        raise ValueError(f"{file} is not the plan that was written there: it was changed; move it, and call this again")
    plan.save(file)
