"""The fastest plan of an encoder whose loss is allowed, on a folder of inputs; or that none is, and from when one would be."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from tokensieve.bench.own import bar
from tokensieve.bench.run import BASELINES
from tokensieve.core.files import write_json
from tokensieve.core.plan import Plan
from tokensieve.planner.encoders import page
from tokensieve.planner.encoders.asking import AskingEncoder
from tokensieve.planner.encoders.candidates import SHARES, candidates, key
from tokensieve.planner.encoders.fidelity import MEASURES
from tokensieve.planner.encoders.items import KINDS, EncoderInput, read_items
from tokensieve.planner.encoders.rows import EncoderRow, rows_of
from tokensieve.planner.encoders.shown import examples
from tokensieve.planner.encoders.subject import EncoderSubject
from tokensieve.planner.halving import FIRST, Outcome, Terms, needed, search
from tokensieve.sites.encoder.schedule import Depth
from tokensieve.sites.encoder.schedule import shares as done_by

PLAN, SEARCH, RESULTS, TABLE = "plan.json", "search.json", "results.json", "encoder.json"
LENGTHS = (1.5, 2, 3, 4, 6, 8, 12, 16, 24, 32)
"""Times the length that was measured, for which a break-even is looked for."""


@dataclass(frozen=True)
class EncoderAdvice:
    """What a bench of an encoder has found.

    Attributes:
        sentence: all of it, in words.
        plan: the fastest whose fidelity is reached by the lower end of its interval; None where none is faster.
        chosen: its name; rows: of the table, the fastest first; skipped: inputs that were left out, and why.
    """

    sentence: str
    plan: Plan | None
    chosen: str | None
    rows: list[EncoderRow]
    skipped: list[str]
    out: Path

    def __str__(self) -> str:
        return self.sentence

    def to_json(self) -> dict[str, Any]:
        """What a program reads."""
        rows = [asdict(row) for row in self.rows]
        return {"sentence": self.sentence, "chosen": self.chosen, "rows": rows, "skipped": self.skipped}


def bench_encoder(
    model: str | EncoderSubject,
    inputs: str | Path,
    *,
    fidelity: float = 0.99,
    measure: str = "cosine",
    labels: str | Path | None = None,
    out: str | Path = "out/encoder",
    methods: Sequence[str] | None = None,
    shares: Sequence[float] = SHARES,
    minutes: float = 20.0,
    batch: int = 8,
    limit: int | None = None,
    device: str = "cpu",
    seed: int = 0,
    console: Console | None = None,
) -> EncoderAdvice:
    """Look for the plan of an encoder that is fastest within a loss, on a folder of images, sound or texts.

    Plans are searched by successive halving (:mod:`tokensieve.planner.halving`); the table, and the choice, are of inputs that
    the search did not see. Interrupted, it goes on from where it was.

    Args:
        model: a folder or a name, or an :class:`~tokensieve.planner.encoders.subject.EncoderSubject`.
        inputs: a folder (or a file of texts, one a line).
        fidelity: what has to stay by ``measure``, reached by the lower end of the 95% interval.
        measure: one of "cosine", "neighbours", "tokens", "answer" and "wer" (see
            :mod:`tokensieve.planner.encoders.fidelity`).
        labels: a CSV file of name and label; what counts is then how many are right, as a share of the full model's.
        out: the folder for the table, ``encoder.html``, ``encoder.png``, ``results.json`` and ``plan.json``.
        methods: names; random, uniform and pool are always among them. shares: of the tokens, that stay at the end.
        minutes: of asking; batch: inputs at once; limit: at most so many inputs.

    Raises:
        ValueError, FileNotFoundError: what was asked for cannot be done; the message says why.
    """
    if measure not in MEASURES[:-1]:
        raise ValueError(f"measure={measure!r}; it must be one of {', '.join(MEASURES[:-1])} (or give labels)")
    if not 0 < fidelity <= 1:
        raise ValueError(f"fidelity={fidelity}; the share that has to stay lies in (0, 1]")
    if batch < 1:
        raise ValueError(f"batch={batch}; it must be at least 1")
    folder, out = Path(inputs), Path(out)
    wanted = "labels" if labels is not None else measure
    with bar(console or Console(quiet=True)) as shown:
        task = shown.add_task("reading", total=None)

        def step(done: int, total: int | None, what: str) -> None:
            shown.update(task, completed=done, total=total, description=what)

        items, skipped = read_items(folder, None if labels is None else Path(labels), limit)
        step(0, None, "loading the model")
        subject = (
            model
            if isinstance(model, EncoderSubject)
            else EncoderSubject.load(model, items[0].kind, device, measure == "wer")
        )
        if subject.kind != items[0].kind:
            raise ValueError(f"--inputs {folder}: it holds {items[0].kind}; {subject.name} takes {subject.kind}")
        terms = Terms(fidelity, minutes, batch, seed, about=_about(subject, items, wanted, methods, shares))
        if few := needed(len(items), terms):
            out_of = f" ({len(skipped)} others were left out: {skipped[0]})" if skipped else ""
            raise ValueError(
                f"--inputs {folder}: {len(items)} {KINDS[subject.kind]}{out_of} are too few to tell a fidelity of {fidelity:g}; "
                f"it takes {few}, or a lower --fidelity"
            )
        out.mkdir(parents=True, exist_ok=True)
        plans, left = candidates(subject, methods, shares)
        ask = AskingEncoder(subject, plans, items, wanted, out / RESULTS, seed)
        ask.embed(batch, step)
        found = search(list(plans), [i.name for i in items], ask, terms, out / SEARCH, step)
        judges = found.judges or _unseen([i.name for i in items], seed, found.why)
        chosen = _chosen(found, fidelity)
        _beside(chosen or _nearest(found), plans, ask, judges, batch, step)
    rows = rows_of(plans, ask, judges, fidelity)
    made = EncoderAdvice(
        _sentence(chosen, rows, found, subject, wanted, fidelity, batch),
        plans[chosen] if chosen else None,
        chosen,
        rows,
        skipped,
        out,
    )
    write_json(out / TABLE, made.to_json())
    if made.plan is not None:
        made.plan.save(out / PLAN)
    name = chosen or (rows[0].key if rows else None)
    seen = [] if name is None else examples(subject, plans[name], items)
    told = {**left, **found.left}
    page.write_page(made, subject.name, subject.kind, found, wanted, fidelity, batch, len(items), told, seen)
    return made


def _about(
    subject: EncoderSubject,
    items: Sequence[EncoderInput],
    measure: str,
    methods: Sequence[str] | None,
    shares: Sequence[float],
) -> dict[str, Any]:
    marks = {item.name: item.mark for item in items}
    return {"model": subject.name, "measure": measure, "methods": methods, "shares": list(shares), "inputs": marks}


def _unseen(names: Sequence[str], seed: int, why: str) -> list[str]:
    """Items that a search has not seen, where it ended before it judged: it finds candidates with half of them at most."""
    if why == "late":
        return []
    return random.Random(seed).sample(list(names), len(names))[max(FIRST, len(names) // 2) :]


def _chosen(found: Outcome, fidelity: float) -> str | None:
    """The fastest whose interval begins at the fidelity at least."""
    good = [k for k, s in found.standings.items() if s.held is not None and s.held.low >= fidelity and s.cost < 1]
    return min(good, key=lambda k: found.standings[k].cost) if good else None


def _nearest(found: Outcome) -> str | None:
    held = {k: s for k, s in found.standings.items() if s.held is not None}
    return max(held, key=lambda k: held[k].held.share) if held else next(iter(found.standings), None)  # type: ignore[union-attr]


def _beside(
    name: str | None, plans: Mapping[str, Plan], ask: AskingEncoder, judges: Sequence[str], batch: int, step: Any
) -> None:
    """Have the table hold a plan and, at its budget, random, uniform and pool, on the same inputs."""
    if name is None or not judges:
        return
    share = plans[name].stages[0].keep
    assert isinstance(share, float)
    for one in (name, *(key(base, share) for base in BASELINES)):
        missing = [n for n in judges if n not in ask.measures.get(one, {})] if one in plans else []
        for start in range(0, len(missing), batch):
            step(start, len(missing), f"asking {one}")
            ask(missing[start : start + batch], [one])


def _sentence(
    chosen: str | None,
    rows: Sequence[EncoderRow],
    found: Outcome,
    subject: EncoderSubject,
    measure: str,
    goal: float,
    batch: int,
) -> str:
    kind = KINDS[subject.kind]
    if chosen is not None:
        row = next(r for r in rows if r.key == chosen)
        k = row.kept[measure]
        return (
            f"{chosen}: {1 / row.time:.2f} times as fast, {measure} {k.share:.4f} ({k.low:.4f} to {k.high:.4f}) on {row.count} "
            f"{kind} that the search did not see; asked for {goal:g}."
        )
    near = {k: s for k, s in found.standings.items() if (s.held or s.seen).share >= goal}
    if found.why == "late":
        return (
            f"Nothing can be told in these minutes; it takes {found.needed:.1f} on this machine. Give --minutes more, and "
            "another --out."
        )
    if near:
        name = min(near, key=lambda k: near[k].cost)
        if near[name].cost >= 1:
            cost, seen = near[name].cost, int(rows[0].tokens[0]) if rows else 0
            told = f"of the plans that keep {goal:g}, the fastest, {name}, takes {cost:.2f} of the time."
            return f"Nothing is faster here: {told} {_since(subject, name, cost, batch, seen) if seen else ''}".strip()
        k = near[name].held or near[name].seen
        return (
            f"Nothing is sure to keep {goal:g}: the nearest, {name}, at {near[name].cost:.2f} of the time, keeps {k.share:.4f}, "
            f"and by its interval {k.low:.4f} at least, of {k.count} {kind}. More inputs narrow it."
        )
    if not found.standings:
        return f"No plan could be asked: {next(iter(found.left.values()), 'there was none')}."
    name = max(found.standings, key=lambda k: (found.standings[k].held or found.standings[k].seen).share)
    best = found.standings[name]
    k = best.held or best.seen
    return f"Nothing keeps {goal:g}: the nearest, {name}, at {best.cost:.2f} of the time, keeps {k.share:.4f} by {measure}."


def _since(subject: EncoderSubject, name: str, cost: float, batch: int, seen: int) -> str:
    """From how many tokens a plan would be faster, at this batch: what choosing takes grows with the tokens, what it saves with
    their FLOPs, attention's square among them."""
    share, stack = float(name.split()[1]), subject.stack
    layers = tuple(range(max(1, len(stack.layers) - 1)))
    depth = Depth(stack, layers, False, stack.specials)

    def flops(n: int, part: float) -> float:
        return depth.flops(depth.tokens(n, [n * (1 - (1 - part) * done) for done in done_by(len(layers), "constant")]))

    spent = cost - flops(seen, share) / flops(seen, 1.0)  # of the full model's time at this length
    for times in LENGTHS:
        n = round(seen * times)
        if flops(n, 1.0) - flops(n, share) > spent * times * flops(seen, 1.0):
            return f"It would be from about {n} tokens on, by its FLOPs (now {seen}), with batches of {batch}."
    return (
        f"By its FLOPs it would not be up to {round(seen * LENGTHS[-1])} tokens (now {seen}), with batches of {batch}."
    )
