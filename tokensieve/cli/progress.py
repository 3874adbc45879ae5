"""A bar of what a command is doing, with the time left."""

from __future__ import annotations

from typing import Any


def bar(quiet: bool = False, counted: bool = False, said: str | None = None) -> Any:
    """A bar on stderr: what is done, how far, for how long and how long still.

    Args:
        counted: show how many of how many, instead of a share.
        said: more of a task, a template over its fields.
    """
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TaskProgressColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    far = MofNCompleteColumn() if counted else TaskProgressColumn()
    more = [TextColumn(said)] if said else []
    time = (TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn())
    columns = (TextColumn("{task.description}"), BarColumn(), far, *more, *time)
    return Progress(*columns, console=Console(stderr=True), disable=quiet)


class Steps:
    """Bars on stderr, one for each thing that is done.

    Args:
        quiet: show none.
    """

    def __init__(self, quiet: bool = False) -> None:
        self._bar = bar(quiet)
        self._tasks: dict[str, Any] = {}

    def __enter__(self) -> Steps:
        self._bar.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._bar.stop()

    def step(self, what: str, done: float, of: float) -> None:
        """So much of so much is done."""
        if what not in self._tasks:
            self._tasks[what] = self._bar.add_task(what)
        self._bar.update(self._tasks[what], completed=done, total=of)


class Whole(Steps):
    """One bar on stderr for all that is done.

    Args:
        first: what is done before it is known how much there is.
    """

    def __init__(self, first: str) -> None:
        super().__init__()
        self._task = self._bar.add_task(first, total=None)

    def step(self, what: str, done: float, of: float) -> None:
        """So much of so much is done, and this is what is being done."""
        self._bar.update(self._task, description=what, completed=done, total=of)
