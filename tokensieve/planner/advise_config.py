"""What advice is asked for, and what cannot be had together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokensieve.bench.loading import device_of, dtype_of
from tokensieve.bench.metrics import METRICS
from tokensieve.bench.paired import FEWEST
from tokensieve.planner.candidates import BUDGETS, SITES
from tokensieve.planner.runtimes import RUNTIMES
from tokensieve.planner.told import Terms, mark

TARGETS = {
    "latency": "time to the end of an answer",
    "memory": "cache",
    "flops": "FLOPs of encoder and prefill",
}
"""What a plan may be chosen to save, and what it is called."""


@dataclass(frozen=True)
class AdviseConfig:
    """What advice is asked for; see :func:`advise`."""

    model: Any
    processor: Any = None
    questions: Path | None = None
    images: Path | None = None
    question: str = "Describe the image."
    texts: Path | None = None
    quality: float = 0.98
    target: str = "latency"
    minutes: float = 20.0
    out: Path = Path("advice")
    methods: Sequence[str] | None = None
    keep: Sequence[int | float] = BUDGETS
    sites: Sequence[str] | None = None
    runtime: str = "transformers"
    metric: str = "exact"
    limit: int = 400
    batch: int = 20
    new_tokens: int = 16
    window: int = 2048
    seed: int = 0
    dtype: str = "auto"
    device: str = "auto"

    def __post_init__(self) -> None:
        """Refuse what cannot be meant, or cannot be had together."""
        given = [n for n in ("questions", "images", "texts") if getattr(self, n) is not None]
        if len(given) != 1:
            raise ValueError(
                f"{' and '.join('--' + n for n in given) or 'neither --questions nor --images nor --texts'}: say one of them, "
                "what a plan is judged by (of an encoder, --inputs)"
            )
        Terms(self.quality, self.minutes)
        if self.target not in TARGETS:
            raise ValueError(f"--for {self.target}: it must be one of {', '.join(TARGETS)}")
        unknown = [s for s in self.sites or () if s not in SITES]
        if unknown or self.sites == []:
            raise ValueError(f"--sites {','.join(unknown)}: they are {', '.join(SITES)}")
        RUNTIMES.get(self.runtime)
        METRICS.get(self.metric)("1", ["1"])
        away = set(self.at) - {"cache"}
        if self.texts is not None and away:
            raise ValueError(
                f"--texts with --sites {','.join(self.at)}: texts have no visual tokens; they judge plans at --sites cache alone"
            )
        if self.target == "flops" and not away:
            raise ValueError(
                "--for flops with plans of the cache alone: these leave the FLOPs of a prefill as they are; ask --for memory or "
                "--for latency"
            )
        if self.runtime == "vllm" and (self.texts is not None or "handoff" not in self.at):
            raise ValueError(
                f"--runtime vllm with {'--texts' if self.texts is not None else '--sites ' + ','.join(self.at)}: vLLM serves "
                "plans at the handoff alone"
            )

    @property
    def at(self) -> Sequence[str]:
        """The sites at which plans may act."""
        if self.sites is not None:
            return self.sites
        if self.texts is not None:
            return ("cache",)
        return tuple(s for s in SITES if s != "cache" or self.target != "flops")

    @property
    def what(self) -> str:
        return "questions" if self.questions is not None else "images" if self.images is not None else "texts"

    @property
    def least(self) -> int | None:
        """Items that have to judge; texts say more each than right or wrong."""
        return FEWEST if self.texts is not None else None

    def terms(self, items: Sequence[Any]) -> Terms:
        """What the search is held to."""
        device = device_of(self.device) if isinstance(self.model, str) else str(self.model.device)
        about = {
            "model": self.model if isinstance(self.model, str) else type(self.model).__name__,
            "data": self.what, "contents": mark([i.to_json() for i in items]), "for": self.target, "question": self.question,
            "sites": list(self.at), "runtime": self.runtime, "metric": self.metric, "new_tokens": self.new_tokens,
            "window": self.window, "dtype": str(dtype_of(self.dtype, device)), "device": device,
        }  # fmt: skip
        return Terms(self.quality, self.minutes, self.batch, self.seed, self.least, about)
