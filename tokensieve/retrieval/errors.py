"""What can go wrong with an index, by name."""

from __future__ import annotations


class IndexProblem(Exception):
    """An index cannot be used as asked."""


class Locked(IndexProblem):
    """Another writer holds the index."""


class Incompatible(IndexProblem):
    """The index was written by another version, for another model, or for other vectors."""


class Damaged(IndexProblem):
    """A file of the index is missing or is not what was written."""
