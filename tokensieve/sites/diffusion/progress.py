"""Progress: how far a run of a pipeline is, told by its scheduler."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tokensieve.sites.model.calls import Detach, around


class Progress:
    """Follows the scheduler of a pipeline: the calls of ``set_timesteps``, which begins a run, and of ``step``.

    Entries of ``timesteps`` are counted, not calls of the model: a scheduler of second order has two entries a step, and a
    pipeline may call its model twice for one of them. Runs that begin in the middle (an image is changed) are at 0 there.

    Attributes:
        run: the number of runs so far; entry: how many entries of the run are done.
    """

    def __init__(self, pipeline: Any):
        self._pipeline = pipeline
        self._scheduler = pipeline.scheduler
        self.run = self.entry = 0
        self._begin: int | None = None

    def attach(self) -> list[Detach]:
        out = [
            around(self._scheduler, "set_timesteps", self._restart),
            around(self._scheduler, "step", self._stepped),
        ]
        if hasattr(self._scheduler, "scale_model_input"):
            out.append(around(self._scheduler, "scale_model_input", self._scaled))
        return out

    @property
    def now(self) -> float:
        """0 in the first step of a run, 1 in the last.

        Raises:
            RuntimeError: the pipeline has another scheduler than the one that is followed.
        """
        if self._pipeline.scheduler is not self._scheduler:
            raise RuntimeError(
                "the pipeline's scheduler was replaced while a sieve that acts by steps is attached; detach() first, set the "
                "scheduler, and attach a sieve then"
            )
        times = self._scheduler.timesteps
        begin = getattr(self._scheduler, "begin_index", None) or self._begin or 0
        last = len(times) - 1 - begin
        return min(self.entry / last, 1.0) if last > 0 else 0.0

    def _restart(self, plain: Callable[..., Any]) -> Callable[..., Any]:
        def set_timesteps(*args: Any, **kwargs: Any) -> Any:
            self.run, self.entry, self._begin = self.run + 1, 0, None
            return plain(*args, **kwargs)

        return set_timesteps

    def _stepped(self, plain: Callable[..., Any]) -> Callable[..., Any]:
        def step(*args: Any, **kwargs: Any) -> Any:
            out = plain(*args, **kwargs)
            self.entry += 1
            return out

        return step

    def _scaled(self, plain: Callable[..., Any]) -> Callable[..., Any]:
        """Where a run begins in the middle, this is the first to hear of it."""

        def scale_model_input(sample: Any, *args: Any, **kwargs: Any) -> Any:
            time = args[0] if args else kwargs.get("timestep")
            if self.entry == 0 and self._begin is None and time is not None:
                at = (self._scheduler.timesteps.cpu() == float(time)).nonzero()
                self._begin = int(at[0]) if len(at) else 0
            return plain(sample, *args, **kwargs)

        return scale_model_input
