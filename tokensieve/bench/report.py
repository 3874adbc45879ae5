"""report.html: one self-contained page with the table, the plot, the overlays and the failures."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image

from tokensieve.bench.columns import columns
from tokensieve.bench.results import beats_random
from tokensieve.bench.tables import ordered
from tokensieve.core.files import write_text


def write(data: dict[str, Any], folder: Path, overlays: Sequence[tuple[str, str, Image.Image]] = ()) -> Path:
    """Write the page; needs ``pareto.svg`` in the folder.

    Args:
        overlays: (method, caption, picture).
    """
    from jinja2 import Environment, PackageLoader

    page = Environment(loader=PackageLoader("tokensieve.bench"), autoescape=True).get_template("report.html")
    rows = data["rows"]
    shown = columns("page", rows)
    svg = (folder / "pareto.svg").read_bytes()
    html = page.render(
        data=data,
        kinds=list(rows["full"]["accuracy"]),
        columns=shown,
        cells=[(r["method"], [(c.show(r, rows), c) for c in shown]) for r in ordered(rows)],
        plot="data:image/svg+xml;base64," + base64.b64encode(svg).decode(),
        overlays=[(name, caption, _uri(picture)) for name, caption, picture in overlays],
        asked=data.get("asked", ""),
        failures=_failures(data) if "answers" in rows["full"] else [],
        losers=[f"{r['method']} at {r['keep']}" for r in ordered(rows) if beats_random(rows, r) is False],
    )
    file = folder / "report.html"
    write_text(file, html)
    return file


def _failures(data: dict[str, Any], most: int = 20) -> list[dict[str, Any]]:
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


def _uri(picture: Image.Image) -> str:
    buffer = BytesIO()
    picture.save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
