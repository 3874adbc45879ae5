"""Turns the Sphinx roles of docstrings into links, for mkdocstrings."""

import re
from typing import Any

import griffe

ROLE = re.compile(r":(?:class|func|meth|attr|data|mod):`~?([\w.]+)`")


class Roles(griffe.Extension):
    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Called with every object of the package, once it is read."""
        if obj.docstring:
            obj.docstring.value = ROLE.sub(lambda found: _link(obj, found[1]), obj.docstring.value)


def _link(obj: griffe.Object, name: str) -> str:
    try:
        home = obj.resolve(name)
    except griffe.NameResolutionError:
        home = name
    return f'<autoref identifier="{home}" optional><code>{name}</code></autoref>'
