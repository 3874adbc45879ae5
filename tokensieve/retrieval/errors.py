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


class Forbidden(IndexProblem):
    """This account may not read a file of the index, which may be sound."""


class Gone(IndexProblem):
    """The index that was opened is no longer in its folder."""
