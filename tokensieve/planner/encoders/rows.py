"""Rows: what each plan of an encoder kept, at which time, on the inputs that are told of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import mean, median

from tokensieve.core.plan import Plan
from tokensieve.planner.encoders.asking import AskingEncoder
from tokensieve.planner.kept import Kept, kept


@dataclass(frozen=True)
class EncoderRow:
    """One plan on the inputs that the search did not see.

    Attributes:
        method, share, schedule: of the plan; time: as a share of the full model's, and its least and most over batches.
        kept: by measure, the mean over the inputs with its interval.
        tokens: in front of the first and of the last block; count: inputs.
        packed: blocks that ran on rows of different numbers of tokens one behind the other, not padded; the mean over batches.
    """

    key: str
    method: str
    share: float
    schedule: str
    time: float
    times: tuple[float, float]
    kept: dict[str, Kept]
    tokens: tuple[float, float]
    count: int
    packed: float


def rows_of(plans: Mapping[str, Plan], ask: AskingEncoder, judges: Sequence[str], goal: float) -> list[EncoderRow]:
    """Of the plans that were asked about all ``judges``, the fastest first; ``goal``: the share that has to stay."""
    rows = []
    for name, told in ask.measures.items():
        if name not in plans or not judges or any(n not in told for n in judges):
            continue
        stage, times = plans[name].stages[0], [b / a for a, b in ask.seconds[name]]
        measures = {}
        for what in told[judges[0]]:
            ours = [told[n][what] for n in judges]
            measures[what] = kept(ours, [1.0] * len(ours), goal, max(1e-6, 1 - min(ours)))
        tokens = ask.tokens[name]
        assert isinstance(stage.keep, float)
        ends = (tokens[0], tokens[-1]) if tokens else (0.0, 0.0)
        spread = (min(times), max(times))
        rows.append(
            EncoderRow(
                name,
                stage.method.name,
                stage.keep,
                stage.pace,
                median(times),
                spread,
                measures,
                ends,
                len(judges),
                mean(ask.packed.get(name, [0])),
            )
        )
    return sorted(rows, key=lambda row: row.time)
