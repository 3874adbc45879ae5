"""Retrieval: late-interaction search over token vectors."""

from tokensieve._moved import below
from tokensieve.retrieval.errors import Damaged, Incompatible, IndexProblem, Locked
from tokensieve.retrieval.index.index import Document, Index
from tokensieve.retrieval.index.search import Hit
from tokensieve.retrieval.scoring.maxsim import align, maxsim
from tokensieve.retrieval.scoring.ragged import Ragged
from tokensieve.retrieval.stores.protocol import Store, list_stores, register_store

__all__ = [
    "Damaged", "Document", "Hit", "Incompatible", "Index", "IndexProblem", "Locked", "Ragged", "Store", "align",
    "list_stores", "maxsim", "register_store",
]  # fmt: skip

__getattr__ = below(__name__)
