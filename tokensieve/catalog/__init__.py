"""The table of published systems, and what answers to each."""

from tokensieve.catalog.table import System, entries, record, systems

__all__ = ["System", "entries", "record", "systems"]
