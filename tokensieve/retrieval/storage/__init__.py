"""Storage: vectors in fewer bytes, and files that are whole or not there."""

from tokensieve.retrieval.storage.vector_format import (
    FORMATS,
    Fields,
    VectorFormat,
    list_formats,
    register_format,
    vector_format,
)

__all__ = ["FORMATS", "Fields", "VectorFormat", "list_formats", "register_format", "vector_format"]
