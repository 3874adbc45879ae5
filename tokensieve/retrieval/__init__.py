"""Retrieval: late-interaction search over token vectors."""

from tokensieve.retrieval.errors import Damaged, Incompatible, IndexProblem, Locked
from tokensieve.retrieval.index import Document, Index
from tokensieve.retrieval.maxsim import align, maxsim
from tokensieve.retrieval.ragged import Ragged
from tokensieve.retrieval.search import Hit

__all__ = [
    "Damaged", "Document", "Hit", "Incompatible", "Index", "IndexProblem", "Locked", "Ragged", "align", "maxsim",
]  # fmt: skip
