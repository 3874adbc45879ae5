"""Stores beside the Index: adapters to databases, each an extra of its own."""

from tokensieve.retrieval.stores.protocol import STORES, Store, list_stores, register_store

__all__ = ["STORES", "Store", "list_stores", "register_store"]
