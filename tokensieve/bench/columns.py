"""Columns: what a bench says of each cell. One list, for the terminal, the page and the README."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from tokensieve.bench.results import beats_random, difference
from tokensieve.core.registry import Registry

Row = dict[str, Any]
Value = Callable[[Row, dict[str, Row]], Any]
PLACES = ("terminal", "page", "readme")


@dataclass(frozen=True)
class Column:
    """One column.

    Attributes:
        name: what it is called by; its head on the terminal.
        title: its head on the page and in the README.
        value: from a row, and all rows by key, to what is shown; None or a missing key is an empty cell.
        format: how the value is written, as for `str.format`.
        places: where it stands, of "terminal", "page" and "readme".
        text: whether it holds words, which stand on the left.
    """

    name: str
    title: str
    value: Value
    format: str = "{}"
    places: tuple[str, ...] = PLACES
    text: bool = False

    def show(self, row: Row, rows: dict[str, Row]) -> str:
        """The cell in words."""
        value = self._of(row, rows)
        return "" if value is None else self.format.format(value)

    def said(self, rows: dict[str, Row]) -> bool:
        """Whether any row has something to say here; where none has, the column is left out."""
        return any(self._of(row, rows) is not None for row in rows.values())

    def _of(self, row: Row, rows: dict[str, Row]) -> Any:
        try:
            return self.value(row, rows)
        except KeyError:
            return None


COLUMNS: Registry[Column] = Registry("column")


def register_column(
    name: str, title: str = "", format: str = "{}", places: tuple[str, ...] = PLACES, text: bool = False
) -> Callable[[Value], Value]:
    """Decorator: a function of a row, and of all rows by key, becomes a column behind those that are there.

    Example:
        >>> @register_column("of full", format="{:.2f}")  # doctest: +SKIP
        ... def of_full(row, rows): return row["kv_bytes"] / rows["full"]["kv_bytes"]
    """
    unknown = sorted(set(places) - set(PLACES))
    if unknown:
        raise ValueError(f"places={places!r}; they are {', '.join(PLACES)}")

    def add(value: Value) -> Value:
        COLUMNS.register(name)(Column(name, title or name, value, format, places, text))
        return value

    return add


def columns(place: str, rows: dict[str, Row]) -> list[Column]:
    """Those of one place that say something of these rows, in order; kinds of questions stand in front of their mean."""
    kinds = list(rows["full"]["accuracy"])
    out: list[Column] = []
    own = "paired" in rows["full"]
    for name in COLUMNS:
        column = COLUMNS.get(name)
        if place not in column.places or (name in QUALITY and not kinds):
            continue
        if own and place == "terminal" and name in ASIDE:
            continue
        if name == "all" and not (own and place == "terminal"):
            out += by_kind(kinds, "{:.1f}" if place == "page" else "{:.0f}")
        if name in NO_KINDS and kinds and place != "page":
            continue
        out.append(column)
    return [column for column in out if column.said(rows)]


def by_kind(kinds: list[str], format: str = "{:.0f}") -> list[Column]:
    """A column for each kind of question, where there are several."""
    return [Column(kind, kind, _kind(kind), format) for kind in kinds if kinds != ["all"]]


def _kind(kind: str) -> Value:
    return lambda row, _: 100 * row["accuracy"][kind]


QUALITY = ("all",)
"""Only where the answers are known."""
NO_KINDS = ("agree", "KL")
"""Where they are not; the page shows both."""
ASIDE = ("final tok", "encode", "peak MB")
"""Not on the terminal beside intervals, which take their room."""


@register_column("method", text=True)
def _method(row: Row, _: Any) -> str:
    return row["method"]


@register_column("site", places=("page",), text=True)
def _site(row: Row, _: Any) -> str:
    return row["site"]


@register_column("keep")
def _keep(row: Row, _: Any) -> str:
    return "all" if row["keep"] is None else str(row["keep"]) + (", unranked" if row.get("unranked") else "")


@register_column("mean tok", "mean tokens", "{:.0f}")
def _mean(row: Row, _: Any) -> float:
    return row["mean_tokens"]


@register_column("held", "bytes held", "{:.1f}%")
def _held(row: Row, _: Any) -> float:
    return 100 * row["held"]


@register_column("final tok", "final", "{:.0f}", ("terminal", "page"))
def _final(row: Row, _: Any) -> float:
    return row["final_tokens"]


@register_column("all", "all kinds", "{:.1f}")
def _all(row: Row, _: Any) -> float | None:
    return None if row["accuracy_mean"] is None else 100 * row["accuracy_mean"]


@register_column("interval", "95% of all", places=("page",), text=True)
def _interval(row: Row, _: Any) -> str | None:
    found = row["interval"]
    return None if found is None else f"{100 * found[0]:.1f} to {100 * found[1]:.1f}"


def _told(score: str, against: str, scale: float, digits: int = 1) -> Value:
    def value(row: Row, _: Any) -> str | None:
        found = difference(row, score, against)
        return None if found is None else found.words(scale, digits)

    return value


def _needed(score: str, against: str) -> Value:
    def value(row: Row, _: Any) -> int | None:
        found = difference(row, score, against)
        return None if found is None else found.needed

    return value


AGAINST = ("full", "random")
for _other in AGAINST:
    register_column(f"vs {_other}", f"against {_other}", text=True)(_told("score", _other, 100))
for _other in AGAINST:
    register_column(f"needs {_other}", f"questions needed ({_other})", places=("page",))(_needed("score", _other))


@register_column("ppl", "perplexity", "{:.2f}")
def _perplexity(row: Row, _: Any) -> float:
    return row["perplexity"]


def _changed(against: str) -> Value:
    """The change of perplexity, of which the likelihood is what is compared."""

    def value(row: Row, _: Any) -> str | None:
        found = difference(row, "likelihood", against)
        if found is None or found.low is None or found.high is None:
            return None if found is None else found.words()
        mean, low, high = (math.exp(-x) - 1 for x in (found.mean, found.high, found.low))
        return replace(found, mean=mean, low=low, high=high).words(100) + ("%" if found.distinguishable else "")

    return value


@register_column("bits/byte", "bits per byte", "{:.3f}", ("page",))
def _bits(row: Row, _: Any) -> float:
    return row["bits"]


for _other in AGAINST:
    register_column(f"ppl vs {_other}", f"perplexity against {_other}", text=True, places=("terminal", "page"))(
        _changed(_other)
    )
register_column("needs (ppl)", "texts needed (random)", places=("page",))(_needed("likelihood", "random"))


def _share(name: str) -> Value:
    return lambda row, _: None if row[name] is None else 100 * row[name]


for _when, _title in (("after", "facts asked after"), ("before", "facts asked before")):
    register_column(_when, _title, "{:.0f}", ("terminal", "page"))(_share(_when))
    register_column(f"{_when} vs random", f"asked {_when}, against random", text=True, places=("page",))(
        _told(_when, "random", 100, 0)
    )
    register_column(f"needs ({_when})", f"texts needed ({_when})", places=("page",))(_needed(_when, "random"))


@register_column("agree", "agreement", "{:.1f}", ("terminal", "page"))
def _agree(row: Row, _: Any) -> float:
    return 100 * row["agreement"]


@register_column("KL", "KL", "{:.3f}", ("terminal", "page"))
def _kl(row: Row, _: Any) -> float:
    return row["kl"]


@register_column("FLOPs", "FLOPs", "{:.0f}%")
def _flops(row: Row, _: Any) -> float | None:
    return None if row["flops_share"] is None else 100 * row["flops_share"]


@register_column("KV kB", "KV kB", "{:.0f}", ("terminal", "page"))
def _kv(row: Row, _: Any) -> float:
    return row["kv_bytes"] / 1000


@register_column("peak MB", "peak MB", "{:.0f}", ("page",))
def _peak(row: Row, _: Any) -> float | None:
    return None if row["peak_bytes"] is None else row["peak_bytes"] / 1e6


def _time(part: str) -> Value:
    return lambda row, _: row["ms"][part]


register_column("encode", "encoder", "{:.1f}", ("terminal", "page"))(_time("encoder"))
register_column("select", "selection", "{:.1f}")(_time("selection"))
register_column("prefill", "prefill", "{:.1f}")(_time("prefill"))
register_column("decode", "decode", "{:.1f}", ("terminal", "page"))(_time("decode"))
register_column("total", "total", "{:.1f}", ("page",))(_time("total"))


@register_column("floor", "floor", "{:.1f}", ("page",))
def _floor(row: Row, _: Any) -> float:
    return row["ms_floor"]


@register_column("x floor", "overhead", "{:.2f}", ("terminal", "page"))
def _overhead(row: Row, _: Any) -> float:
    return row["overhead"]


@register_column("pays", places=("terminal", "page"), text=True)
def even(row: Row, _: Any = None) -> str | None:
    """The break-even in words."""
    b = row.get("break_even")
    if not b:
        return None
    if b["min_tokens"] is None:
        return "never"
    far = "" if b["max_answer"] is None else f", to {b['max_answer']} of answer"
    return f"from {b['min_tokens']}{far}"


@register_column("note", text=True)
def note(row: Row, rows: dict[str, Row]) -> str | None:
    """What must not be overlooked about a row."""
    notes = [row["unranked"]] if row.get("unranked") else []
    if beats_random(rows, row) is False:
        notes.append("not above random")
    more = None if "paired" in row else _beside_random(rows, row)
    if more is not None and more > 1.05:
        notes.append(f"{more:.1f}x random's tokens")
    if row.get("break_even") and not row["break_even"]["pays"]:
        notes.append("does not pay")
    return ", ".join(notes) or None


def _beside_random(rows: dict[str, Row], row: Row) -> float | None:
    """Mean tokens over those of random at the same label: methods inside the language model keep more."""
    other = rows.get(f"random@{row['keep']}")
    return None if other is None or "mean_tokens" not in row else row["mean_tokens"] / other["mean_tokens"]
