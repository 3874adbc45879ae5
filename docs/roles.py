"""Prepares docstrings for mkdocstrings: Sphinx roles become links, an "Example" the section that shows code."""

import re
from typing import Any

import griffe

ROLE = re.compile(r":(?:class|func|meth|attr|data|mod):`~?([\w.]+)`")
EXAMPLE = re.compile(r"^Example:$", re.M)


class Roles(griffe.Extension):
    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Called with every object of the package, once it is read."""
        if obj.docstring:
            text = ROLE.sub(lambda found: _link(obj, found[1]), obj.docstring.value)
            obj.docstring.value = EXAMPLE.sub("Examples:", text)


def _link(obj: griffe.Object, name: str) -> str:
    try:
        home = obj.resolve(name)
    except griffe.NameResolutionError:
        home = name
    return f'<autoref identifier="{home}" optional><code>{name}</code></autoref>'
