"""The table of published systems, what answers to each, and what was last measured of them."""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

from tokensieve.core.method_registry import METHODS


@dataclass(frozen=True)
class System:
    """A row of the table of published systems."""

    id: int
    name: str
    title: str
    family: str
    kind: str
    site: str
    delivers: str
    works_when: str
    tier: int


def systems(family: str | None = None, tier: int | None = None) -> list[System]:
    """The rows of the table of published systems, in the order of their ids."""
    text = resources.files("tokensieve").joinpath("catalog/systems.tsv").read_text(encoding="utf-8")
    rows = csv.DictReader(text.splitlines(), delimiter="\t", quoting=csv.QUOTE_NONE)
    made = [System(**{**row, "id": int(row["id"]), "tier": int(row["tier"])}) for row in rows]  # type: ignore[arg-type]
    return [s for s in made if (family is None or s.family == family) and (tier is None or s.tier == tier)]


def entries(system: int) -> list[str]:
    """What answers to a published system: names of methods, then dotted paths of functions and modules that are none."""
    return METHODS.names(systems=system) + _others().get(str(system), [])


@cache
def _others() -> dict[str, list[str]]:
    return json.loads(resources.files("tokensieve").joinpath("catalog/entries.json").read_text(encoding="utf-8"))


def record() -> dict[str, Any]:
    """What `make systems` last measured: ``rows`` by system id, each with status, check and numbers."""
    file = resources.files("tokensieve").joinpath("catalog/record.json")
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {"rows": {}}
