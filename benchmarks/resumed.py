"""A file of results that is whole after every cell, so that a long benchmark goes on where it was stopped."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from tokensieve.bench.results import environment
from tokensieve.core.files import write_json


@dataclass(frozen=True)
class Resumed:
    """Results of one thing: ``data`` holds measured cells in ``rows`` and, in ``left``, why others were not."""

    file: Path
    data: dict[str, Any]

    @classmethod
    def open(cls, file: Path, form: str, of: Mapping[str, Any]) -> Resumed:
        """What ``file`` holds already, or nothing yet.

        Args:
            of: what the results are of, by name: those of anything else are not mixed with them.

        Raises:
            ValueError: the file holds the results of something else.
        """
        if not file.exists():
            return cls(file, {"format": form, **environment(), **of, "rows": {}, "left": {}})
        data = json.loads(file.read_text(encoding="utf-8"))
        other = [name for name, value in of.items() if data.get(name) != value]
        if other:
            raise ValueError(f"{file} holds results of other {', '.join(other)}; delete it, or name another file")
        return cls(file, data)

    def add(self, key: str, run: Callable[[], Any], kind: str = "") -> bool:
        """Measure a cell and write the file, to a temporary name first, unless it was measured or left; whether it was written.

        Args:
            run: gives the row. A ValueError of it, a method that needs what the model has not, is the reason in its own words.
            kind: the cells that are left together with this one, by default it alone.
        """
        kind = kind or key
        if key in self.data["rows"] or kind in self.data["left"]:
            return False
        try:
            self.data["rows"][key] = run()
        except ValueError as error:
            self.data["left"][kind] = str(error)
        self.file.parent.mkdir(parents=True, exist_ok=True)
        write_json(self.file, self.data)
        return True


def weights(file: Path) -> dict[str, str]:
    """What results of these weights are of."""
    return {"weights": sha256(file.read_bytes()).hexdigest()}
