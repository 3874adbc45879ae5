"""Shards: a collection in several libraries, built and searched by several processes or machines."""

from tokensieve.retrieval.shards.build import mirror
from tokensieve.retrieval.shards.manifest import SHARDS, Shards
from tokensieve.retrieval.shards.search import Collection, merged

__all__ = ["SHARDS", "Collection", "Shards", "merged", "mirror"]
