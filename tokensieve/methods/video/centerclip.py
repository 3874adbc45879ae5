from dataclasses import dataclass

import torch
from torch import Tensor

from tokensieve.core.method import Method
from tokensieve.core.method_registry import register_method
from tokensieve.core.options import option
from tokensieve.core.reduction import Reduction
from tokensieve.core.signals import Signals
from tokensieve.parts import budget
from tokensieve.parts.score import temporal
from tokensieve.parts.select import medoids

ALGORITHMS = ("kmedoids", "spectral")
PIECE = 1024
"""The largest number of tokens that are clustered together."""


@register_method("centerclip", systems=[139])
@dataclass(frozen=True)
class CenterCLIP(Method):
    """Clusters the tokens of every few consecutive frames together and keeps the clusters' centres, in order.

    Source: arXiv 2205.00823. ``segment`` is the frames of a segment; segments share the budget by their tokens.
    ``algorithm`` is "kmedoids", k-medoids++ on Euclidean distances, or "spectral", the same in the embedding of the
    lowest eigenvectors of a graph with heat kernel ``sigma``. The first centre is the token of the largest norm, each
    next one the farthest from all before. The paper clusters after a block of the video encoder, for which whole clips
    must pass it together; encoders in language models see single frames, so it runs at the handoff, and between an
    encoder's blocks on each frame by itself. Deviations from the public code: segments beyond 1,024 tokens are cut;
    each stops when its own centres rest; sigma is in units of the root mean square distance (there: 2, of CLIP's
    features); the spectral start is the longest token, not the rounding of equal norms.
    """

    sites = ("handoff", "encoder")
    pairs = True
    small = {"algorithm": "spectral"}
    segment: int = option(2, "how many consecutive frames are clustered together", lo=1, unit="frames")
    algorithm: str = option(
        "kmedoids", "k-medoids++ on the features, or in the embedding of a graph", choices=ALGORITHMS
    )
    sigma: float = option(0.5, "the width of the graph's heat kernel", above=0, unit="root mean square distance")

    @torch.no_grad()
    def reduce(self, s: Signals, keep: Tensor) -> Reduction:
        part = torch.where(s.valid, temporal.frames(s) // self.segment, -1)
        part = temporal.dense(part * s.n + temporal.places(part) // PIECE, s.valid)
        place, filled = temporal.table(part)
        size = filled.sum(2)
        quota = budget.allot(keep, size.double(), size)
        x, candidates, count = temporal.rows(s.features, place), filled.flatten(0, 1), quota.flatten().clamp(min=1)
        first = x.norm(dim=2).masked_fill(~candidates, -1.0).argmax(1)
        spots = x if self.algorithm == "kmedoids" else medoids.embed(x, count, candidates, self.sigma)
        centres = medoids.kmedoids(medoids.distances(spots), first, count, candidates).view_as(filled)
        return Reduction.keep(temporal.back(centres & (quota > 0)[..., None], place, filled, s.n, False))
