"""Retrieval: late-interaction search over token vectors."""

from tokensieve.retrieval.errors import Damaged, Incompatible, IndexProblem, Locked
from tokensieve.retrieval.index import Document, Index
from tokensieve.retrieval.maxsim import align, maxsim
from tokensieve.retrieval.ragged import Ragged
from tokensieve.retrieval.search import Hit
from tokensieve.retrieval.store import Store

__all__ = [
    "Damaged", "Document", "Hit", "Incompatible", "Index", "IndexProblem", "Locked", "Ragged", "Store", "align", "maxsim",
]  # fmt: skip
