"""Pool: fewer vectors per document by spherical k-means, in batches of documents of about one length."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

from tokensieve.retrieval.scoring.ragged import Ragged, bounds, spread

WINDOW = 256
ROUNDS = 3
BATCH = 1 << 16


@torch.no_grad()
def pool(docs: Ragged, factor: int) -> Ragged:
    """About one vector for ``factor`` tokens of a document, at least one: means of clusters, of the mean length of their members.

    Documents are cut into windows of at most ``WINDOW`` tokens, so that time grows with their length, not its square.
    """
    lengths = docs.lengths
    windows = -(-lengths // WINDOW)
    # The windows of a document are of equal length, but for one token.
    owner = torch.arange(len(docs)).repeat_interleave(windows)
    turn = spread(torch.zeros_like(windows), windows)
    start = turn * lengths[owner] // windows[owner]
    size = (turn + 1) * lengths[owner] // windows[owner] - start
    start = start + docs.offsets[:-1][owner]
    count = ((size + factor // 2) // factor).clamp(min=1)
    places = bounds(count)
    out = docs.tokens.new_empty(int(places[-1]), docs.dim, dtype=torch.float32)
    for m in count.unique().tolist():
        same = (count == m).nonzero()[:, 0]
        for part in same.split(max(BATCH // (m * factor), 1)):
            out[places[part][:, None] + torch.arange(m)] = _cluster(docs.tokens, start[part], size[part], m)
    return Ragged(out, bounds(torch.zeros(len(docs), dtype=torch.long).index_add_(0, owner, count)))


def _cluster(tokens: Tensor, start: Tensor, size: Tensor, count: int) -> Tensor:
    """``(W, count, d)`` for windows of ``size`` tokens from ``start``."""
    step = torch.arange(int(size.max()))
    valid = step < size[:, None]
    x = tokens[(start[:, None] + step).where(valid, 0)].float() * valid[..., None]
    length = x.norm(dim=2)
    unit = x / length.clamp(min=1e-12)[..., None]
    first = torch.arange(count) * size[:, None] // count
    centre = unit.gather(1, first[..., None].expand(-1, -1, x.shape[2]))
    for _ in range(ROUNDS):
        # A token beyond the window is zero and changes no sum.
        label = torch.bmm(unit, centre.transpose(1, 2)).argmax(2)
        total = torch.zeros_like(centre).scatter_add_(1, label[..., None].expand_as(unit), unit)
        moved = normalize(total, dim=2)
        centre = torch.where(total.any(2, keepdim=True), moved, centre)
    held = torch.zeros(len(x), count).scatter_add_(1, label, valid.float())
    mean = torch.zeros(len(x), count).scatter_add_(1, label, length) / held.clamp(min=1)
    # A centre that nothing chose repeats one that is used.
    used = held.argmax(1, keepdim=True).expand(-1, count).where(held == 0, torch.arange(count))
    out = centre * mean[..., None]
    return out.gather(1, used[..., None].expand_as(out))
