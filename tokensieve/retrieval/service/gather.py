"""Gather: searches that wait are encoded and scored in one batch."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future
from typing import Any

from tokensieve.retrieval.index.searching import Answered, Searching
from tokensieve.retrieval.service.limits import Limits

RETURN = 0.01
"""Seconds in which those who have just been answered together may ask again and go together again."""
PAUSE = 0.5
"""Seconds that an ingest waits for searches, at most, before it goes on."""


class Busy(Exception):
    """As many searches wait as may."""


class Waiting:
    """Queries of one request, how they are searched, and who is told."""

    def __init__(self, queries: Sequence[str], how: dict[str, Any]) -> None:
        self.queries, self.how = list(queries), how
        self.answered: Future[list[Answered]] = Future()


class Gatherer:
    """One thread that searches a library for all who ask.

    While it searches, others queue, and those are the next batch. Behind a batch of several it waits a moment for as many to come
    back, so that they do not part into few and many. One client alone waits for nobody.

    Attributes:
        batches, searched: how many batches there were, and how many queries in them.
    """

    def __init__(self, library: Searching, limits: Limits) -> None:
        self.library, self.limits = library, limits
        self.batches = self.searched = 0
        self._queue: deque[Waiting] = deque()
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._busy = self._closed = False

    @property
    def waiting(self) -> int:
        """Requests in the queue."""
        return len(self._queue)

    def ask(self, queries: Sequence[str], **how: Any) -> Future[list[Answered]]:
        """Queue queries; ``how`` as :meth:`Searching.answer` takes it.

        Raises:
            Busy: too many wait, or the service stops.
        """
        waiting = Waiting(queries, how)
        with self._changed:
            if self._closed or len(self._queue) >= self.limits.waiting:
                raise Busy
            self._queue.append(waiting)
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="searches", daemon=True)
                self._thread.start()
            self._changed.notify_all()
        return waiting.answered

    def give_way(self, _: int = 0) -> None:
        """Wait until nobody waits for a search, for half a second at most: called by an ingest between its batches."""
        with self._changed:
            self._changed.wait_for(lambda: not self._queue and not self._busy, PAUSE)

    def close(self) -> None:
        """Answer what waits, and end."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join()

    def _work(self) -> None:
        batch: dict[str, list[Waiting]] = {}
        while True:
            with self._changed:
                together = sum(len(same) for same in batch.values())
                if together > 1:
                    self._changed.wait_for(lambda: len(self._queue) >= together or self._closed, RETURN)  # noqa: B023
                self._busy = False
                self._changed.notify_all()
                self._changed.wait_for(lambda: self._queue or self._closed)
                if not self._queue:
                    return
                batch = self._next()
                self._busy = True
            for same in batch.values():
                self._search(same)

    def _next(self) -> dict[str, list[Waiting]]:
        """The next of the queue by how they are searched, as many as go together."""
        groups: dict[str, list[Waiting]] = {}
        taken = 0
        while self._queue and taken < self.limits.together:
            waiting = self._queue.popleft()
            # Who has gone away is not searched for.
            if waiting.answered.set_running_or_notify_cancel():
                groups.setdefault(repr(sorted(waiting.how.items())), []).append(waiting)
                taken += len(waiting.queries)
        return groups

    def _search(self, same: list[Waiting]) -> None:
        queries = [query for waiting in same for query in waiting.queries]
        try:
            found = self.library.answer(queries, **same[0].how)
        except Exception as problem:
            if len(same) > 1:  # one of them may be at fault; the others are not
                for waiting in same:
                    self._search([waiting])
            else:
                same[0].answered.set_exception(problem)
            return
        self.batches += 1
        self.searched += len(queries)
        start = 0
        for waiting in same:
            waiting.answered.set_result(found[start : start + len(waiting.queries)])
            start += len(waiting.queries)
