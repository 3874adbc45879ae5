"""Service: a library over HTTP, with a page to search it by. Needs `pip install 'tokensieve[serve]'`."""

from tokensieve.retrieval.service.app import application

__all__ = ["application"]
