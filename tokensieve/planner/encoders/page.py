"""encoder.html and encoder.png: what each plan of an encoder keeps at which time, on one self-contained page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tokensieve.bench.pages import svg, templates
from tokensieve.bench.paired import LEVEL
from tokensieve.bench.results import environment
from tokensieve.bench.run import BASELINES
from tokensieve.core.files import write, write_text
from tokensieve.planner.charts import BLUE, GREY, ORANGE
from tokensieve.planner.encoders.items import KINDS
from tokensieve.planner.encoders.trees import LEAVES
from tokensieve.planner.halving import Outcome

PAGE, PLOT = "encoder.html", "encoder.png"


def write_page(
    made: Any,
    name: str,
    kind: str,
    found: Outcome,
    measure: str,
    goal: float,
    batch: int,
    items: int,
    left: Mapping[str, str],
    shown: Sequence[Any] = (),
) -> None:
    """Write page and plot into the folder of an advice; ``shown``: examples of inputs under its plan."""
    measures = list(dict.fromkeys(what for row in made.rows for what in row.kept))
    chart = ""
    if made.rows:
        figure = _figure(made, measure, goal)
        chart = svg(figure)
        write(made.out / PLOT, lambda part: figure.savefig(part, dpi=130, format="png"))
    text = templates("tokensieve.planner").get_template(PAGE).render(
        made=made, name=name, kind=kind, counted=KINDS[kind], found=found, measure=measure,
        measures=measures, goal=f"{goal:g}", batch=batch,
        items=items, left=left, chart=chart, env=environment(), level=f"{100 * LEVEL:.0f}%", baselines=BASELINES,
        shown=shown, leaves=LEAVES, under=made.chosen or (made.rows[0].key if made.rows else ""),
    )  # fmt: skip
    write_text(made.out / PAGE, text)


def _figure(made: Any, measure: str, goal: float) -> Any:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.5, 4.8), layout="constrained")
    ax = figure.subplots()
    for row in made.rows:
        k = row.kept[measure]
        colour = ORANGE if row.key == made.chosen else GREY if row.method in BASELINES else BLUE
        ax.errorbar(
            [row.time], [k.share], [[max(0.0, k.share - k.low)], [max(0.0, k.high - k.share)]],
            [[row.time - row.times[0]], [row.times[1] - row.time]], fmt="o", color=colour, elinewidth=0.8, markersize=5,
        )  # fmt: skip
        ax.annotate(row.key, (row.time, k.share), xytext=(5, -11), textcoords="offset points", fontsize=8, color=colour)
    ax.axhline(goal, color="#444444", linewidth=1, linestyle="--")
    ax.axvline(1, color="#444444", linewidth=1)
    ax.set_xlabel("time, as a share of the full model's")
    ax.set_ylabel(f"{measure}, of inputs that the search did not see")
    ax.grid(color="#eeeeee")
    ax.spines[["top", "right"]].set_visible(False)
    return figure
