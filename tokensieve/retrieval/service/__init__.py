"""Service: a library over HTTP, with a page to search it by. Needs the extra `serve`."""

from tokensieve.retrieval.service.app import application

__all__ = ["application"]
