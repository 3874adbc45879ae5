"""Token hits: what single query tokens retrieve, as XTR scores by and ColBERT finds candidates by."""

from __future__ import annotations

import torch
from torch import Tensor

from tokensieve.retrieval.scoring.maxsim import maxsim
from tokensieve.retrieval.scoring.ragged import Ragged

BLOCK = 1 << 14


@torch.no_grad()
def token_hits(query: Tensor, docs: Ragged, count: int) -> tuple[Tensor, Tensor]:
    """The ``count`` most similar tokens of all documents for each query token: similarities, descending, and their documents.

    Args:
        query: ``(Q, d)``; count: at most as many as there are tokens.

    Returns:
        both ``(Q, count)``.
    """
    count = min(count, len(docs.tokens))
    value, place = query.new_empty(len(query), 0), torch.empty(len(query), 0, dtype=torch.long)
    for start in range(0, len(docs.tokens), BLOCK):
        like = query @ docs.tokens[start : start + BLOCK].to(query.dtype).T
        near = like.topk(min(count, like.shape[1]), 1)
        value, place = torch.cat([value, near.values], 1), torch.cat([place, near.indices + start], 1)
        value, order = value.sort(dim=1, descending=True, stable=True)
        value, place = value[:, :count], place.gather(1, order)[:, :count]
    return value, torch.searchsorted(docs.offsets, place.contiguous(), right=True) - 1


def xtr(value: Tensor, doc: Tensor, docs: int) -> Tensor:
    """``(D,)``: the mean over query tokens of each document's best hit (arXiv 2304.01982).

    Where a query token has not retrieved a token of the document, the similarity of its last hit stands in: the missing
    one is no larger. Documents without any hit score minus infinity.

    Args:
        value, doc: ``(Q, k)``, similarities of the hits, descending, and their documents.
    """
    queries = len(value)
    best = value[:, -1:].expand(queries, docs).clone()
    best.scatter_reduce_(1, doc, value, "amax")
    hit = torch.zeros(docs, dtype=torch.bool)
    hit[doc.flatten()] = True
    return best.mean(0).masked_fill(~hit, -torch.inf)


def colbert(query: Tensor, docs: Ragged, hits: int) -> Tensor:
    """``(D,)``: MaxSim of the documents of which a query token retrieves a token among its ``hits``, minus infinity for others.

    The two stages of ColBERT (arXiv 2004.12832).
    """
    found = token_hits(query, docs, hits)[1].unique()
    out = torch.full((len(docs),), -torch.inf)
    out[found] = maxsim(query, docs.take(found))
    return out
