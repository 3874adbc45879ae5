"""What mkdocs puts into pages when it builds them: tables made from the package, links from names, and old addresses."""

import inspect
import re
from collections.abc import Callable, Iterable
from enum import Enum
from importlib import import_module
from itertools import groupby
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any, Literal, get_args, get_origin

from typer.models import ArgumentInfo, OptionInfo

import tokensieve as ts
from tokensieve.catalog.table import entries, record, systems
from tokensieve.cli.main import app
from tokensieve.core.method_registry import Card
from tokensieve.core.registry import REGISTRIES
from tokensieve.core.signal_table import SIGNALS
from tokensieve.sites.model.guards import GUARDS

EXTENSIBLE = (
    "tokensieve.bench.blocks",
    "tokensieve.bench.columns",
    "tokensieve.codec",
    "tokensieve.retrieval.encoders.loading",
    "tokensieve.retrieval.scoring.sketch",
    "tokensieve.retrieval.storage",
    "tokensieve.retrieval.stores",
    "tokensieve.text.rows",
)
"""Modules that hold a registry."""
MOVED = {
    "cache": "how-to/cache", "cache-leaderboard": "measured/cache-leaderboard", "concepts": "start/concepts",
    "doctor": "how-to/doctor", "encoders": "how-to/encoders", "leaderboard": "measured/leaderboard",
    "measuring": "measured/measuring", "methods": "reference/methods", "models": "measured/models",
    "modules": "measured/reference-systems", "peers": "measured/peers", "retrieval": "how-to/retrieval",
    "retrieval-leaderboard": "measured/retrieval-leaderboard", "scale": "measured/scale", "several": "measured/several",
    "sites": "how-to/sites", "writing-a-method": "extend/method",
}  # fmt: skip
"""Addresses of pages before they stood in sections; links to them still lead there."""
NAME = re.compile(r"<code>((?:ts|tokensieve)(?:\.\w+)+)(\([^<]*\))?</code>")
WHOLE = re.compile(r"(<pre.*?</pre>|<h\d.*?</h\d>|<a .*?</a>|<autoref.*?</autoref>)", re.S)
"""What is left as it is: code, headings, and what is a link already."""


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Called by mkdocs with every page."""
    for mark, made in MARKS.items():
        if mark in markdown:
            markdown = markdown.replace(mark, made())
    return markdown


def on_page_content(html: str, **_: Any) -> str:
    """Called by mkdocs with every page once it is HTML, docstrings included: dotted names become links."""
    parts = WHOLE.split(html)
    return "".join(part if i % 2 else NAME.sub(_link, part) for i, part in enumerate(parts))


def on_post_build(config: Any, **_: Any) -> None:
    """Called by mkdocs at the end: a page at each old address that leads to the new one."""
    for old, new in MOVED.items():
        page = Path(config["site_dir"], old, "index.html")
        page.parent.mkdir(parents=True, exist_ok=True)
        page.write_text(
            f'<!doctype html><meta http-equiv="refresh" content="0; url=../{new}/"><a href="../{new}/">{new}</a>\n'
        )


def methods() -> str:
    """All cards as Markdown, by family."""
    cards = sorted((ts.method_card(name) for name in ts.list_methods()), key=lambda card: (card.family, card.name))
    out = []
    for family, each in groupby(cards, lambda card: card.family):
        out += [f"## {family}\n", *map(_card, each)]
    return "\n".join(out)


def names() -> str:
    """The names of the top level, with what they are."""
    rows = []
    for name in sorted((n for n in ts.__all__ if not n.startswith("__")), key=str.lower):
        thing = getattr(ts, name)
        rows.append((f"`ts.{name}`", "module" if isinstance(thing, ModuleType) else _summary(thing)))
    return _table(("name", "what it is"), rows)


def registered() -> str:
    """What is registered by name, a table a kind."""
    for module in EXTENSIBLE:
        import_module(module)
    out = []
    for kind, registry in sorted(REGISTRIES.items()):
        if kind in ("method", "signal"):
            continue
        rows = []
        for name in registry:
            entry = registry.entry(name)
            told = getattr(entry.thing, "meaning", "") or getattr(entry.thing, "title", "") or entry.summary
            rows.append((f"`{name}`", told, f"`{entry.home}`"))
        out += [f"## {kind}\n", _table(("name", "", "where"), rows)]
    return "\n".join(out)


def signals() -> str:
    """The table of signals."""
    rows = [
        (f"`{s.name}`", s.shape, s.meaning, ", ".join(f"`{n}`" for n in s.instead), ", ".join(s.sites))
        for s in (SIGNALS.get(name) for name in SIGNALS)
    ]
    return _table(("name", "shape", "what it says", "stand-ins", "given at"), rows)


def published() -> str:
    """The published systems that something here answers to, with their last recorded check."""
    checked, rows = record()["rows"], []
    for system in systems():
        found = entries(system.id)
        if found:
            row = checked.get(str(system.id), {})
            rows.append(
                (
                    str(system.id),
                    system.name,
                    ", ".join(f"`{n}`" for n in found),
                    row.get("status", ""),
                    row.get("check", ""),
                )
            )
    count = f"{len(rows)} of {len(systems())} systems; recorded {record().get('date', '')}.\n\n"
    return count + _table(("id", "system", "what answers to it", "", "check"), rows)


def guards() -> str:
    """What a sieve refuses, with the sentence that it says."""
    rows = [(g.says, f"`{g.error.__name__}`", ", ".join(g.sites), g.when) for g in GUARDS.values()]
    return _table(("what is said", "error", "at", "when"), rows)


def commands() -> str:
    """Every command of the command line with its arguments and options, from the functions that they call."""
    out = []
    for command in app.registered_commands:
        call = command.callback
        assert call is not None
        name = command.name or call.__name__.strip("_").replace("_", "-")
        rows, places = [], []
        for given in inspect.signature(call, eval_str=True).parameters.values():
            if get_origin(given.annotation) is not Annotated:  # typer's own: the context of a call
                continue
            kind, *notes = get_args(given.annotation)
            info = next(n for n in notes if isinstance(n, (OptionInfo, ArgumentInfo)))
            flag, needed = kind is bool, given.default is inspect.Parameter.empty
            if isinstance(info, ArgumentInfo):
                many = "..." if get_origin(kind) is list else ""
                called = (info.metavar or given.name.strip("_").upper()) + many
                places.append(called if needed else f"[{called}]")
            else:
                long = f"--{given.name.strip('_').replace('_', '-')}"
                called = ", ".join(info.param_decls or ()) or (f"{long}, --no-{long[2:]}" if flag else long)
            default = "" if needed or flag or given.default in (None, "") else f"`{_plain(given.default)}`"
            rows.append((f"`{called}`", "" if flag else _kind(kind), default, info.help or ""))
        usage = " ".join(["tokensieve", name, *places, *["[OPTIONS]"] * (len(rows) > len(places))])
        told = (command.help or inspect.getdoc(call) or "").strip()
        table = _table(("", "type", "default", "what it is"), rows) if rows else ""
        out.append(f"## {name}\n\n{told}\n\n```\n{usage}\n```\n\n{table}")
    return "\n".join(out)


def _kind(hint: Any) -> str:
    """The type of an option in words: "int", "text", "a or b"."""
    if get_origin(hint) is Literal:
        return " or ".join(f"`{choice}`" for choice in get_args(hint))
    if isinstance(hint, type) and issubclass(hint, Enum):
        return " or ".join(f"`{one.value}`" for one in hint)
    if get_args(hint):
        each = ", ".join(dict.fromkeys(_kind(one) for one in get_args(hint) if one not in (type(None), ...)))
        return f"{each}, more than once" if get_origin(hint) is list else each
    return {str: "text", Path: "path"}.get(hint, hint.__name__)


def _plain(default: Any) -> str:
    return str(default.value if isinstance(default, Enum) else default)


MARKS: dict[str, Callable[[], str]] = {
    "<!-- commands -->": commands,
    "<!-- guards -->": guards,
    "<!-- methods -->": methods,
    "<!-- names -->": names,
    "<!-- registered -->": registered,
    "<!-- signals -->": signals,
    "<!-- systems -->": published,
}


def _card(card: Card) -> str:
    needs = ", ".join(f"`{n}`" for n in card.needs) or "nothing but the features"
    cls = type(ts.get_method(card.name))
    told = (inspect.getdoc(cls) or "").split("\nAttributes:")[0].strip()
    file = cls.__module__.replace(".", "/") + ".py"
    text = f"### {card.name}\n\n{told}\n\nRuns at {', '.join(card.sites)}; reads {needs}. `{file}`\n"
    if not card.options:
        return text
    rows = [(f"`{o.name}`", o.type, o.range, o.unit, f"`{o.default!r}`", o.meaning) for o in card.options.values()]
    return text + "\n" + _table(("option", "type", "range", "unit", "default", "meaning"), rows)


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return (
        "\n".join("| " + " | ".join(" ".join(cell.split()).replace("|", "\\|") for cell in row) + " |" for row in lines)
        + "\n"
    )


def _summary(thing: Any) -> str:
    first = (inspect.getdoc(thing) or "").split("\n\n")[0].replace("\n", " ").replace("``", "`")
    return re.sub(r":\w+:`~?", "`", first)


def _link(found: re.Match[str]) -> str:
    """A dotted name as a link to where the reference tells of it, if it does."""
    return f'<autoref identifier="{_home(found[1])}" optional><code>{found[1]}{found[2] or ""}</code></autoref>'


def _home(name: str) -> str:
    """Where a name is defined: ``ts.reduce`` stands for the function's own module."""
    rest = name.split(".")[1:]
    thing: Any = ts
    for i, part in enumerate(rest):
        if not hasattr(thing, part) and isinstance(thing, ModuleType):
            try:
                import_module(f"{thing.__name__}.{part}")
            except ImportError:
                return name
        thing = getattr(thing, part, None)
        if isinstance(thing, type) or inspect.isfunction(thing):
            return ".".join([thing.__module__, thing.__qualname__, *rest[i + 1 :]])
    return thing.__name__ if isinstance(thing, ModuleType) else name
