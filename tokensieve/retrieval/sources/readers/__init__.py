"""Readers: what turns the source of a document into a text with its parts, chosen by what a file holds.

A reader of your own is registered by :func:`register_reader`; the first whose ``takes`` says so reads a file, and the newest is
asked first.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import PurePosixPath
from typing import Protocol

from tokensieve.core.registry import Registry
from tokensieve.retrieval.sources.layout import Layout
from tokensieve.retrieval.sources.readers import code, html, notebook, prose

HEAD = 4096
"""Characters that a choice is made by."""
PAGE = re.compile(r"\ufeff?\s*(?:<\?xml[^>]*>\s*)?(?:<!--.*?-->\s*)*<(?:!doctype\s+html|html)\b", re.I | re.S)
SIGNS = re.compile(r"^#{1,6} \S|^```|^\[[^\]]+\]\([^)]+\)", re.M)
DIRECTIVE = re.compile(r"^\.\. \w+(?:::|:)|^\.\. _|``[^`]+``_?", re.M)


class DocumentReader(Protocol):
    """Reads the source of one kind of document."""

    def __call__(self, source: str) -> Layout:
        """Its text, and its parts in their order.

        Raises:
            ValueError: it is no such document; it is then read as plain text.
        """
        ...


READERS: Registry[DocumentReader] = Registry("reader")
"""Readers by name; their fact ``takes`` is ``(name, first characters) -> bool``."""
Takes = Callable[[str, str], bool]


def register_reader(name: str, takes: Takes) -> Callable[[DocumentReader], DocumentReader]:
    """A decorator that makes a reader known.

    Args:
        name: what it is called by (``Text(..., reader=name)``).
        takes: whether it reads a file, by its name and its first 4,096 characters.
    """
    return READERS.register(name, takes=takes)


def ends(*suffixes: str) -> Callable[[str], bool]:
    """Whether a name ends so."""
    return lambda name: PurePosixPath(name).suffix.lower() in suffixes


_pages, _marks, _rests = (
    ends(".html", ".htm", ".xhtml"),
    ends(".md", ".markdown", ".mdx", ".rmd", ".qmd"),
    ends(".rst", ".rest"),
)
_bare = ends("", ".txt", ".text")

register_reader("plain", lambda name, head: True)(prose.plain)
register_reader("code", lambda name, head: ends(*code.SUFFIXES)(name) or head.startswith("#!"))(code.code)
register_reader("rst", lambda name, head: _rests(name) or (_bare(name) and len(DIRECTIVE.findall(head)) > 1))(prose.rst)
register_reader("markdown", lambda name, head: _marks(name) or (_bare(name) and len(SIGNS.findall(head)) > 1))(
    prose.markdown
)
register_reader("html", lambda name, head: _pages(name) or PAGE.match(head) is not None)(html.html)
register_reader("notebook", lambda name, head: ends(".ipynb")(name))(notebook.notebook)


def reader_of(name: str, source: str) -> str:
    """The name of the reader that takes a file."""
    head = source[:HEAD]
    return next(r for r in reversed(list(READERS)) if READERS.entry(r).facts["takes"](name, head))


def read(reader: str, source: str) -> Layout:
    """A source by its reader, as plain text where it is not what its name says."""
    try:
        return READERS.get(reader)(source)
    except (ValueError, RecursionError):
        return prose.plain(source)
