"""Blocks: what the page of a bench shows, one under the other. One list."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from inspect import getdoc
from typing import Any

from tokensieve.bench.columns import columns
from tokensieve.bench.pages import templates
from tokensieve.bench.results import beats_random
from tokensieve.bench.tables import ordered
from tokensieve.core.registry import Registry


@dataclass(frozen=True)
class Report:
    """What blocks are made of.

    Attributes:
        data: what ``results.json`` holds: ``settings``, ``environment``, ``samples``, ``skipped`` and ``rows`` (by key).
        plot: the plot as a ``data:`` address.
        overlays: what was kept: (method, caption, picture as a ``data:`` address).
    """

    data: dict[str, Any]
    plot: str = ""
    overlays: tuple[tuple[str, str, str], ...] = ()

    @property
    def rows(self) -> dict[str, dict[str, Any]]:
        return self.data["rows"]

    @property
    def asked(self) -> str:
        """What of the user's own was measured: "questions", "texts", or "" for images."""
        return self.data.get("asked", "")

    @property
    def kinds(self) -> list[str]:
        """The kinds of questions; none where answers are not known."""
        return list(self.rows["full"]["accuracy"])


@dataclass(frozen=True)
class Block:
    """One block of the page.

    Attributes:
        name: what it is called by.
        title: its heading; "" for none.
        html: from a report to HTML that needs nothing but itself; "" leaves the block out, with its heading.
    """

    name: str
    title: str
    html: Callable[[Report], str]

    @property
    def meaning(self) -> str:
        """What it shows: the first line of its function's docstring."""
        return (getdoc(self.html) or self.title).split("\n")[0]


BLOCKS: Registry[Block] = Registry("report block")


def register_block(name: str, title: str = "") -> Callable[[Callable[[Report], str]], Callable[[Report], str]]:
    """Decorator: a function of a :class:`Report` becomes a block behind those that are there.

    Example:
        >>> @register_block("seed", title="The seed")  # doctest: +SKIP
        ... def seed(report): return f"<p>{report.data['settings']['seed']}</p>"
    """

    def add(html: Callable[[Report], str]) -> Callable[[Report], str]:
        BLOCKS.register(name)(Block(name, title, html))
        return html

    return add


def shown(report: Report) -> list[tuple[Block, str]]:
    """Those that have something to show, in order.

    Raises:
        TypeError: a block gives something that is no string.
    """
    out = []
    for block in (BLOCKS.get(name) for name in BLOCKS):
        html = block.html(report)
        if not isinstance(html, str):
            raise TypeError(f"the report block {block.name!r} gives {type(html).__name__}; it must be a string of HTML")
        if html.strip():
            out.append((block, html))
    return out


def _template(name: str, **given: Any) -> str:
    return templates().get_template(f"blocks/{name}.html").render(**given)


@register_block("plot")
def _plot(report: Report) -> str:
    """Quality against tokens and FLOPs."""
    alt = "Quality against visual tokens and against FLOPs, one line per method"
    return f'<img class="plot" src="{escape(report.plot)}" alt="{alt}">' if report.plot else ""


@register_block("cells", title="All cells")
def _cells(report: Report) -> str:
    """The table of all columns."""
    there = columns("page", report.rows)
    cells = [(r["method"], [(c.show(r, report.rows), c) for c in there]) for r in ordered(report.rows)]
    return _template("cells", data=report.data, asked=report.asked, kinds=report.kinds, columns=there, cells=cells)


@register_block("losers", title="Not above random")
def _losers(report: Report) -> str:
    """Methods that do no better than random tokens at their budget."""
    rows = report.rows
    losers = [f"{r['method']} at {r['keep']}" for r in ordered(rows) if beats_random(rows, r) is False]
    told = escape(", ".join(losers))
    return f"<p>At the same budget, these did no better than tokens drawn at random: {told}.</p>" if losers else ""


@register_block("overlays", title="What was kept")
def _overlays(report: Report) -> str:
    """Pictures with the tokens that were kept."""
    return _template("overlays", overlays=report.overlays) if report.overlays else ""


@register_block("failures", title="Where it breaks first")
def _failures(report: Report) -> str:
    """Questions that most methods lose."""
    found = failures(report.data) if "answers" in report.rows["full"] else []
    return _template("failures", failures=found) if found else ""


@register_block("left", title="Left out")
def _left(report: Report) -> str:
    """Methods that were left out, and why."""
    return _list([f"{name}: {why}" for name, why in report.data.get("left", {}).items()])


@register_block("notes", title="To be known")
def _notes(report: Report) -> str:
    """What happened while measuring that a reader must know."""
    return _list(report.data.get("notes", []))


@register_block("skipped", title="Skipped")
def _skipped(report: Report) -> str:
    """Images, lines or files that could not be read."""
    lines = report.data["skipped"]
    what = {"questions": "lines", "texts": "files"}.get(report.asked, "images")
    return f'<p class="soft">{len(lines)} {what}</p>{_list(lines)}' if lines else ""


def _list(lines: Sequence[str]) -> str:
    items = "".join(f"<li>{escape(line)}</li>" for line in lines)
    return f"<ul>{items}</ul>" if items else ""


def failures(data: dict[str, Any], most: int = 20) -> list[dict[str, Any]]:
    """Questions that the full model answers rightly (or at all) and the fewest cells at the smallest budget answer alike."""
    rows = {key: r for key, r in data["rows"].items() if not r.get("added")}
    budgets = [r["keep"] for r in rows.values() if r["keep"] is not None]
    if not budgets:
        return []
    small = [r for r in rows.values() if r["keep"] == min(budgets, key=float)]
    out = []
    items = set(data.get("items", ()))
    asked = [s for s in data["samples"] if "items" not in data or s["name"] in items]
    for i, sample in enumerate(asked):
        truth = rows["full"]["answers"][i]
        if not _right(data, sample, truth):
            continue
        wrong = {r["method"]: r["answers"][i] for r in small if r["answers"][i] != truth}
        out.append({**sample, "truth": truth, "wrong": wrong, "of": len(small)})
    return sorted((f for f in out if f["wrong"]), key=lambda f: -len(f["wrong"]))[:most]


def _right(data: dict[str, Any], sample: dict[str, Any], truth: str) -> bool:
    """Whether the full model's answer counts."""
    if "records" in data:
        return data["records"]["full"][sample["name"]]["score"] > 0.5
    return sample["answer"] is None or truth == sample["answer"]
