"""HTML: the main text of a page, and where in its source each part of it stands.

Scanned by expressions that never look back: the parsers at hand either do not say where text stands, or take time that grows
with the square of what is malformed.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from html import unescape

from tokensieve.retrieval.sources.layout import Kind, Layout, Span, Unit, joined

TOKEN = re.compile(
    r"<!--.*?(?:--!?>|\Z)|<!\[CDATA\[(?P<data>.*?)(?:\]\]>|\Z)|<[!?][^>]*+(?:>|\Z)"
    r"|<(?P<close>/?)(?P<tag>[a-zA-Z][^\s/>]*+)(?P<more>(?:[^>\"'=]++|=\s*+(?:\"[^\"]*+\"|'[^']*+')|[=\"'])*+)(?P<end>>|\Z)",
    re.S,
)
ATTRIBUTE = re.compile(r"([^\s=\"'/>]++)(?:\s*+=\s*+(?:\"([^\"]*+)\"|'([^']*+)'|([^\s>\"']++)))?+")
ENTITY = re.compile(r"&(?:#\d{1,8}|#[xX][0-9a-fA-F]{1,6}|[a-zA-Z][a-zA-Z0-9]{1,31});?")
RAW = re.compile(r"</(script|style|textarea|title|noscript|template|svg|math)\s*>", re.I)
BLANKS = re.compile(r"\s+")

SILENT = frozenset({
    "script", "style", "noscript", "template", "svg", "math", "iframe", "object", "select", "textarea", "head",
})  # fmt: skip
CHROME = frozenset({
    "nav", "header", "footer", "aside", "button", "menu", "dialog", "form",
})  # fmt: skip
"""What surrounds the text of a page: menus, and words that do things."""
ROLES = frozenset({
    "navigation", "banner", "contentinfo", "complementary", "search", "menu", "menubar", "toolbar", "dialog",
})  # fmt: skip
VOID = frozenset({
    "area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "source", "track", "wbr",
})  # fmt: skip
INLINE = frozenset({
    "a", "abbr", "b", "bdi", "bdo", "cite", "code", "data", "dfn", "em", "font", "i", "ins", "kbd", "label", "mark",
    "q", "s", "samp", "small", "span", "strong", "sub", "sup", "time", "tt", "u", "var", "wbr", "del",
})  # fmt: skip
HEADINGS = {f"h{n}": n for n in range(1, 7)}


@dataclass
class _Block:
    """A part of the page while it is read."""

    kind: Kind
    level: int
    parts: list[tuple[str, Span]] = field(default_factory=list)
    main: bool = False


@dataclass
class _Page:
    source: str
    blocks: list[_Block] = field(default_factory=list)
    stack: list[tuple[str, bool]] = field(default_factory=list)
    """Open elements, and whether what is in them is left out."""
    open: Counter[str] = field(default_factory=Counter)
    main: int = 0
    silent: int = 0
    preformatted: int = 0
    left_out: int = 0
    title: list[tuple[str, Span]] = field(default_factory=list)


def html(source: str) -> Layout:
    """The text of ``main`` or ``article`` where a page has one, else of all of it; without menus, hidden parts and scripts."""
    page = _Page(source)
    place, count = 1 if source.startswith("\ufeff") else 0, len(source)
    while place < count:
        start = source.find("<", place)
        if start < 0:
            start = count
        _say(page, place, start)
        if start == count:
            break
        found = TOKEN.match(source, start)
        if found is None:
            _say(page, start, start + 1)
            place = start + 1
            continue
        place = found.end()
        if found["data"] is not None:
            _say(page, *found.span("data"))
        elif found["tag"] and found["end"] == ">":
            place = _tag(page, found)
    return _laid(page)


def _tag(page: _Page, found: re.Match[str]) -> int:
    """Take a tag; returns where to go on."""
    tag = found["tag"].lower()
    if found["close"]:
        _close(page, tag)
        return found.end()
    said = {m[1].lower(): unescape(m[2] or m[3] or m[4] or "") for m in ATTRIBUTE.finditer(found["more"])}
    if tag == "title" and not page.title:
        end = RAW.search(page.source, found.end())
        stop = end.start() if end else len(page.source)
        page.title = list(_words(page.source, found.end(), stop))
        return stop
    if tag in ("script", "style", "textarea", "noscript", "template", "svg", "math"):
        return _past(page.source, tag, found.end())
    if tag in ("br", "img"):
        if not page.silent:
            if tag == "br":
                _block(page).parts.append(("\n", (found.start(), found.end())))
            elif said.get("alt", "").strip():
                _block(page).parts.append((said["alt"].strip(), found.span()))
        return found.end()
    if tag in VOID or found["more"].endswith("/"):
        if tag not in INLINE:
            _begin(page, "text", 0)
        return found.end()
    hides = tag in SILENT or _hidden(said) or (tag in CHROME and not page.main) or said.get("role") in ROLES
    page.stack.append((tag, hides))
    page.open[tag] += 1
    page.silent += hides
    page.left_out += hides and tag != "head"
    page.main += tag in ("main", "article") or said.get("role") == "main"
    page.preformatted += tag == "pre"
    if tag in HEADINGS:
        _begin(page, "heading", HEADINGS[tag])
    elif tag == "li":
        _begin(page, "item", 0)
    elif tag == "pre":
        _begin(page, "fence", 0)
    elif tag == "tr":
        _begin(page, "row", 0)
    elif tag in ("td", "th"):
        block = _block(page)
        if block.kind == "row":
            if tag == "th" and not any(t.strip(" |") for t, _ in block.parts):
                block.kind = "head"
            if tag == "td" and block.kind == "head":
                block.kind = "row"
            if block.parts:
                block.parts.append((" | ", (found.start(), found.start())))
        elif block.kind == "head":
            if tag == "td":
                block.kind = "row"
            block.parts.append((" | ", (found.start(), found.start())))
    elif tag not in INLINE and not (page.blocks and page.blocks[-1].kind in ("row", "head", "item") and _in(page, "p")):
        _begin(page, "text", 0)
    return found.end()


def _close(page: _Page, tag: str) -> None:
    if not page.open[tag]:
        return
    while page.stack:
        name, hides = page.stack.pop()
        page.open[name] -= 1
        page.silent -= hides
        page.preformatted -= name == "pre"
        page.main = max(page.main - (name in ("main", "article")), 0)
        if name == tag:
            break
    if tag not in INLINE and tag not in ("td", "th"):
        _begin(page, "text", 0)


def _in(page: _Page, tag: str) -> bool:
    return bool(page.stack) and page.stack[-1][0] == tag


def _hidden(said: dict[str, str]) -> bool:
    style = said.get("style", "").replace(" ", "").lower()
    return (
        "hidden" in said or said.get("aria-hidden") == "true" or "display:none" in style or "visibility:hidden" in style
    )


def _past(source: str, tag: str, place: int) -> int:
    """Behind the end of an element whose content is no text of the page."""
    for end in RAW.finditer(source, place):
        if end[1].lower() == tag:
            return end.end()
    return len(source)


def _begin(page: _Page, kind: Kind, level: int) -> None:
    page.blocks.append(_Block(kind, level, main=page.main > 0))


def _block(page: _Page) -> _Block:
    if not page.blocks:
        _begin(page, "text", 0)
    return page.blocks[-1]


def _say(page: _Page, a: int, b: int) -> None:
    if b <= a or page.silent:
        return
    pieces = _words(page.source, a, b, page.preformatted > 0)
    _block(page).parts.extend(pieces)


def _words(source: str, a: int, b: int, preformatted: bool = False) -> Iterator[tuple[str, Span]]:
    """Characters as they are shown: entities as what they mean, blanks as one."""
    place = a
    for found in ENTITY.finditer(source, a, b):
        yield from _blanks(source, place, found.start(), preformatted)
        yield unescape(found.group()), found.span()
        place = found.end()
    yield from _blanks(source, place, b, preformatted)


def _blanks(source: str, a: int, b: int, preformatted: bool) -> Iterator[tuple[str, Span]]:
    if preformatted:
        if b > a:
            yield source[a:b], (a, b)
        return
    place = a
    for found in BLANKS.finditer(source, a, b):
        if found.group() == " ":
            continue
        if found.start() > place:
            yield source[place : found.start()], (place, found.start())
        yield " ", found.span()
        place = found.end()
    if b > place:
        yield source[place:b], (place, b)


def _laid(page: _Page) -> Layout:
    said = [b for b in page.blocks if any(t.strip() for t, _ in b.parts)]
    if any(b.main for b in said):
        said = [b for b in said if b.main]
    if page.title and not any(b.kind == "heading" and b.level == 1 for b in said):
        said.insert(0, _Block("heading", 1, page.title))
    parts: list[tuple[str, Span]] = []
    units: list[Unit] = []
    length, end = 0, 0
    previous: _Block | None = None
    for block in said:
        own = _stripped(block.parts)
        if not own:
            continue
        if parts:
            gap = "\n" if previous and previous.kind in ("row", "head") and block.kind in ("row", "head") else "\n\n"
            parts.append((gap, (end, end)))
            length += len(gap)
        size = sum(len(t) for t, _ in own)
        units.append(Unit(length, length + size, block.kind, block.level))
        parts += own
        length += size
        end = own[-1][1][1]
        previous = block
    text, starts, sources = joined(parts)
    return Layout(text, units, {"menus and hidden parts": page.left_out} if page.left_out else {}, starts, sources)


def _stripped(parts: list[tuple[str, Span]]) -> list[tuple[str, Span]]:
    """Without blanks at both ends, and without two in a row between pieces."""
    out: list[tuple[str, Span]] = []
    for text, (a, b) in parts:
        # Only pieces that stand in the source as they are can be shortened.
        if (not out or out[-1][0][-1:] == " ") and text[:1] == " " and (text == " " or len(text) == b - a):
            text, a = text[1:], a + 1
        if text:
            out.append((text, (a, b)))
    while out and not out[-1][0].strip():
        out.pop()
    while out and not out[0][0].strip():
        out.pop(0)
    if out:
        text, (a, b) = out[-1]
        cut = len(text) - len(text.rstrip())
        if cut and len(text) == b - a:
            out[-1] = text[:-cut], (a, b - cut)
        text, (a, b) = out[0]
        cut = len(text) - len(text.lstrip(" \n"))
        if cut and len(text) == b - a and not text[cut:].startswith(("\t",)):
            # Indentation of a preformatted block's first line stays.
            lines = len(text) - len(text.lstrip("\n"))
            out[0] = text[lines:], (a + lines, b)
    return out
