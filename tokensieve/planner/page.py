"""advice.html: one self-contained page that begins with the sentence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tokensieve.bench.data import Found, read_image
from tokensieve.bench.equal import FULL, Cell
from tokensieve.bench.pages import picture, templates
from tokensieve.bench.paired import LEVEL
from tokensieve.bench.results import environment
from tokensieve.core.files import write_text
from tokensieve.planner import charts
from tokensieve.planner.advice import Advice, label, likely, percent
from tokensieve.planner.advise_config import TARGETS, AdviseConfig
from tokensieve.planner.asking import Asking
from tokensieve.planner.kept import kept

PAGE = "advice.html"
BROKEN = 24
"""Items that broke, at most so many with their pictures."""
SIDE = 160
"""Of a picture, in pixels."""


def write(
    made: Advice, asked: AdviseConfig, cells: Mapping[str, Cell], ask: Asking | None, items: Sequence[Any], found: Found
) -> None:
    """Write the page into the folder of an advice."""
    subject = subject_of(made)
    kinds = lost(made, ask, items, subject) if ask is not None and subject is not None else {}
    passes = ask.passes if ask is not None else {}
    rows = [
        {
            "key": key,
            "plan": label(cells[key], list(passes[key].values())),
            "cost": f"{s.cost:.3f}",
            "seen": percent(s.seen),
            "count": s.seen.count,
            "held": "" if s.held is None else percent(s.held),
            "chance": likely((s.held or s.seen).chance),
            "chosen": key == made.name,
        }
        for key, s in made.outcome.standings.items()
    ]
    charted = made.outcome.standings
    left: dict[str, list[str]] = {}
    for name, why in made.outcome.left.items():
        left.setdefault(why, []).append(name)
    page = templates("tokensieve.planner").get_template(PAGE).render(
        made=made, asked=asked, rows=rows, target=TARGETS[asked.target], goal=f"{100 * asked.quality:g}%", items=len(items),
        level=f"{100 * LEVEL:.0f}%", found=found, notes=[*found.notes, *(ask.notes if ask is not None else [])],
        frontier=charts.frontier(charted, made.name, asked.quality, TARGETS[asked.target]) if charted else "",
        kinds=charts.kinds(kinds) if len(kinds) > 1 else "", subject=None if subject is None else rows_label(rows, subject),
        broken=broken(ask, items, subject, asked) if ask is not None and subject is not None else [],
        judged=any(s.held is not None for s in charted.values()), left=left,
        most=len(ask.records.get(FULL, {})) if charted and ask is not None else 0,
        env=environment(), model=asked.terms(items).about["model"],
    )  # fmt: skip
    write_text(made.out / PAGE, page)


def subject_of(made: Advice) -> str | None:
    """The plan that losses are shown of: the one that was chosen, or the nearest to it."""
    stand = made.outcome.standings
    if made.name is not None or not stand:
        return made.name
    paying = {k: s for k, s in stand.items() if s.cost < 1} or stand
    return max(paying, key=lambda k: ((paying[k].held or paying[k].seen).count, paying[k].seen.share))


def rows_label(rows: Sequence[Mapping[str, Any]], key: str) -> str:
    return next(str(r["plan"]) for r in rows if r["key"] == key)


def lost(made: Advice, ask: Asking, items: Sequence[Any], key: str) -> dict[str, Any]:
    """By kind of question what a plan keeps of it, of all that it was asked; kinds of which the full model answers none are
    left out."""
    kinds: dict[str, tuple[list[float], list[float]]] = {}
    for item in items:
        if item.name in ask.records.get(key, {}):
            ours, full = kinds.setdefault(getattr(item, "kind", "all"), ([], []))
            ours.append(ask.score_of(item, key))
            full.append(ask.score_of(item, FULL))
    return {k: kept(o, f, 1.0, max(f)) for k, (o, f) in sorted(kinds.items()) if sum(f) > 0}


def broken(ask: Asking, items: Sequence[Any], key: str, asked: AdviseConfig) -> list[dict[str, Any]]:
    """The items that a plan scores less on than the full model, those that lose most first."""
    here = [i for i in items if i.name in ask.records.get(key, {})]
    losses = {i.name: ask.score_of(i, FULL) - ask.score_of(i, key) for i in here}
    out = []
    for item in sorted((i for i in here if losses[i.name] > 0), key=lambda i: -losses[i.name])[:BROKEN]:
        ours, full = ask.records[key][item.name], ask.records[FULL][item.name]
        if asked.texts is not None:
            told = {
                "full": f"{full['bits']:.3f} bits per byte",
                "ours": f"{ours['bits']:.3f}",
                "question": "",
                "kind": "",
            }
        else:
            told = {"full": full["said"], "ours": ours["said"], "question": item.question, "kind": item.kind}
        right = " or ".join(item.answers) if asked.questions is not None else ""
        pictures = [_thumbnail(f) for f in getattr(item, "images", ())][:2]
        out.append({"name": item.name, "right": right, "pictures": pictures, **told})
    return out


def _thumbnail(file: Any) -> str:
    image = read_image(file)
    image.thumbnail((SIDE, SIDE))
    return picture(image, "jpeg", quality=85)
