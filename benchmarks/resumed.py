"""A file of results that is whole after every cell, so that a long benchmark goes on where it was stopped."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from tokensieve.bench.results import environment


@dataclass(frozen=True)
class Resumed:
    """Results of one set of weights: ``data`` holds measured cells in ``rows`` and, in ``left``, why others were not."""

    file: Path
    data: dict[str, Any]

    @classmethod
    def open(cls, file: Path, form: str, weights: Path) -> Resumed:
        """What ``file`` holds already, or nothing yet.

        Raises:
            ValueError: the file holds the results of other weights.
        """
        digest = sha256(weights.read_bytes()).hexdigest()
        if not file.exists():
            return cls(file, {"format": form, "weights": digest, **environment(), "rows": {}, "left": {}})
        data = json.loads(file.read_text(encoding="utf-8"))
        if data.get("weights") != digest:
            raise ValueError(f"{file} holds results of other weights; delete it, or name another file")
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
        part = self.file.with_suffix(".part")
        part.write_text(json.dumps(self.data, indent=1) + "\n", encoding="utf-8")
        part.replace(self.file)
        return True
