"""The check of system 333: what ten reductions of a tower's patches have in common, beside radial and random baselines."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import torch
from scipy.stats import spearmanr

import tokensieve as ts
from benchmarks.reference.patterns_333 import RADIAL, agreement, kept, overlap, radial
from benchmarks.systems.bed import SEED, CheckContext, Outcome, check
from benchmarks.systems.dense import ONCE, SIDE, DenseBed, bed
from tokensieve.core.reduction import Reduction
from tokensieve.testbed import probes

KEEP, SCENES = 288, 24
PRUNING = ("fastervlm", "zero-tprune", "divprune")
MERGING = (  # the last two mix every token into many, and have no clusters
    "bat",
    "tome",
    "atc",
    "token-pooling",
    "cluster-aggregation",
    "token-transforming",
    "ficoco",
)


@check(333)
def patterns(_: CheckContext) -> Outcome:
    """Packaged tower, ten reductions of 576 patches to 288 behind the second block: class-attention top-k among the better
    half by right names, and pruning methods share more of what they keep among each other (intersection over union) than
    with radial masks; agreement of merging methods' clusters (normalised mutual information), and the rank correlation
    over methods of right names and overlap with top-k."""
    b = bed()
    made = {name: _of(b, name, {}) for name in (*PRUNING, *MERGING, "random")}
    made |= {
        f"radial, {name}": _of(b, "bavit", {"given": {"foreground": radial(SIDE, norm)}})
        for name, norm in RADIAL.items()
    }
    right = {name: seen for name, (seen, _) in made.items()}
    sets = {name: torch.cat([kept(r) for r in parts]) for name, (_, parts) in made.items()}
    inside = [overlap(sets[a], sets[c]) for a, c in combinations(PRUNING, 2)]
    outside = [overlap(sets[a], sets[c]) for a in PRUNING for c in sets if c.startswith("radial")]
    ten = sorted(right[name] for name in (*PRUNING, *MERGING))
    like = [overlap(sets[name], sets["fastervlm"]) for name in right if name != "fastervlm"]
    n: dict[str, Any] = dict(right)
    n["overlap among pruning methods"] = _mean(inside)
    n["overlap of pruning methods with radial masks"] = _mean(outside)
    n["overlap of pruning methods with random"] = _mean([overlap(sets[a], sets["random"]) for a in PRUNING])
    n["agreement of clusters"] = _mean(
        [agreement(x, y) for a, c in combinations(MERGING[:5], 2) for x, y in zip(made[a][1], made[c][1], strict=True)]
    )
    correlation = spearmanr(like, [right[name] for name in right if name != "fastervlm"])
    n["rank correlation of names and overlap with top-k"] = round(float(correlation.statistic), 4)
    upper = right["fastervlm"] >= ten[len(ten) // 2]
    return upper and n["overlap among pruning methods"] > n["overlap of pruning methods with radial masks"], n


def _of(b: DenseBed, name: str, how: dict[str, Any]) -> tuple[float, list[Reduction]]:
    """The share of right names, and what was reduced to what in some scenes."""
    seen, parts = b.seen(name, KEEP, **ONCE, **how).name, []
    with torch.no_grad(), ts.sieve(b.tower, name, keep=KEEP, site="encoder", seed=SEED, **ONCE, **how) as s:
        for start in range(0, SCENES, 8):
            b.tower(pixel_values=probes.pixels(b.scenes[start : start + 8]))
            assert s.last is not None
            parts.append(s.last.stages[0].reduction)
    return seen, parts


def _mean(values: list[float]) -> float:
    return round(sum(values) / len(values), 4)
