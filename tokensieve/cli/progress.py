"""A bar of what a command is doing, with the time left."""

from __future__ import annotations

from typing import Any


class Steps:
    """Bars on stderr, one for each thing that is done.

    Args:
        quiet: show none.
    """

    def __init__(self, quiet: bool) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

        columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
        self._bar = Progress(*columns, console=Console(stderr=True), disable=quiet)
        self._tasks: dict[str, Any] = {}

    def __enter__(self) -> Steps:
        self._bar.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._bar.stop()

    def step(self, what: str, done: int, of: int) -> None:
        """So much of so much is done."""
        if what not in self._tasks:
            self._tasks[what] = self._bar.add_task(what)
        self._bar.update(self._tasks[what], completed=done, total=of)
