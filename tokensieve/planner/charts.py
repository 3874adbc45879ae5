"""Charts of an advice, as SVG."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tokensieve.bench.pages import svg
from tokensieve.planner.kept import Kept
from tokensieve.planner.told import Standing

BLUE, ORANGE, GREY = "#0072B2", "#D55E00", "#999999"


def frontier(standings: Mapping[str, Standing], chosen: str | None, goal: float, what: str) -> str:
    """What each plan keeps against what it costs, with intervals; full circles are by items that the search did not see."""
    plt = _pyplot()
    fig, ax = plt.subplots(figsize=(8.5, 4.8), layout="constrained")
    front = _front(standings)
    for key, s in standings.items():
        k = s.held or s.seen
        colour = ORANGE if key == chosen else BLUE if s.held is not None else GREY
        low, high = max(0.0, k.share - k.low), max(0.0, k.high - k.share)
        face = colour if s.held is not None else "none"
        ax.errorbar(
            [s.cost], [100 * k.share], [[100 * low], [100 * high]], fmt="o", color=colour, markerfacecolor=face,
            elinewidth=1 if s.held is not None else 0.5, markersize=6, alpha=1 if s.held is not None else 0.7,
            zorder=4 if key == chosen else 3 if s.held is not None else 2,
        )  # fmt: skip
        if key == chosen or (key in front and s.held is not None):
            ax.annotate(
                key, (s.cost, 100 * k.share), xytext=(6, -12), textcoords="offset points", fontsize=9, color=colour
            )
    ax.plot(
        [standings[k].cost for k in front], [100 * _share(standings[k]) for k in front], color="#00000022", linewidth=6
    )
    ax.axhline(100 * goal, color="#444444", linewidth=1, linestyle="--")
    ax.annotate(
        f"goal {100 * goal:g}%", (0.99, 100 * goal), xycoords=("axes fraction", "data"), ha="right", va="bottom"
    )
    ax.axvline(1, color="#444444", linewidth=1)
    ax.set_xlabel(f"{what}, as a share of the full model's")
    ax.set_ylabel("score, % of the full model's")
    ax.grid(color="#eeeeee")
    ax.spines[["top", "right"]].set_visible(False)
    return _svg(fig)


def kinds(lost: Mapping[str, Kept]) -> str:
    """What is kept of each kind of question, with its interval and how many were asked."""
    plt = _pyplot()
    fig, ax = plt.subplots(figsize=(8.5, 0.9 + 0.42 * len(lost)), layout="constrained")
    for row, k in enumerate(lost.values()):
        ax.barh(row, 100 * k.share, color=BLUE if k.high >= 1 else ORANGE, height=0.6)
        ax.plot([100 * k.low, 100 * k.high], [row, row], color="#222222", linewidth=1.2)
    ax.set_yticks(range(len(lost)), [f"{kind} ({k.count})" for kind, k in lost.items()])
    ax.invert_yaxis()
    ax.axvline(100, color="#444444", linewidth=1)
    ax.set_xlim(0, max(105.0, *(100 * k.high for k in lost.values())))
    ax.set_xlabel("score, % of the full model's")
    ax.spines[["top", "right"]].set_visible(False)
    return _svg(fig)


def _share(s: Standing) -> float:
    return (s.held or s.seen).share


def _front(standings: Mapping[str, Standing]) -> list[str]:
    """The plans that none with a lower cost equals."""
    out: list[str] = []
    for key, s in sorted(standings.items(), key=lambda pair: (pair[1].cost, -_share(pair[1]))):
        if not out or _share(s) > _share(standings[out[-1]]):
            out.append(key)
    return out


def _pyplot() -> Any:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def _svg(fig: Any) -> str:
    made = svg(fig)
    _pyplot().close(fig)
    return made
