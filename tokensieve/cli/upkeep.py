"""The commands that look after an index; none of them encodes anything."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tokensieve.cli.common import Json
from tokensieve.cli.indexes import At, opened

if TYPE_CHECKING:
    from tokensieve.retrieval.index.library import Library


def add(app: typer.Typer) -> None:
    """Make these commands part of an application."""
    for command in (info, verify, compact, delete):
        app.command()(command)


def info(at: At, json_: Json = False) -> None:
    """Say what an index holds: how it was made, its documents, its bytes by part, and what is damaged."""
    told = [_told(library) for library in _libraries(at)]
    if json_:
        typer.echo(json.dumps(told if len(told) > 1 else told[0], indent=2, ensure_ascii=False))
        return
    for one in told:
        for name, value in one.items():
            if isinstance(value, dict):
                value = ", ".join(f"{k} {_counted(v)}" for k, v in value.items())
            typer.echo(f"{name}: {_counted(value)}")


def verify(at: At, json_: Json = False) -> None:
    """Read all of an index and name what is damaged; ends with 1 where something is."""
    damaged = [f"{library.index.folder.name}: {part}" for library in _libraries(at) for part in library.index.verify()]
    if json_:
        typer.echo(json.dumps({"damaged": damaged}, indent=2))
    else:
        typer.echo("\n".join(damaged) or "all of it is what was written")
    if damaged:
        if not json_:
            typer.echo(f"`tokensieve index DOCS --out {at}` encodes again what it has the files of", err=True)
        raise SystemExit(1)


def compact(
    at: At,
    forget: Annotated[
        bool, typer.Option("--forget", help="Let go of damaged parts whose documents cannot be found any more.")
    ] = False,
    json_: Json = False,
) -> None:
    """Rewrite an index without what was deleted; afterwards no deleted text is on the disk."""
    before, after = 0, 0
    for library in _libraries(at):
        before += library.index.size["bytes"]
        with library.index as index:
            index.compact(forget)
        after += library.index.size["bytes"]
    if json_:
        typer.echo(json.dumps({"before": before, "after": after}))
        return
    typer.echo(f"{at}: {after / 1e6:.1f} MB, {before / 1e6:.1f} MB before")


def delete(
    at: At,
    names: Annotated[list[str], typer.Argument(help="Documents, by their names.")],
    json_: Json = False,
) -> None:
    """Delete documents from an index; one that is still in the folder comes back when that is indexed again."""
    gone: set[str] = set()
    for library in _libraries(at):
        held = [name for name in names if library.get(name)]
        library.remove(held)
        library.close()
        gone |= {*held}
    missing = [name for name in names if name not in gone]
    if json_:
        typer.echo(json.dumps({"deleted": len(gone), "missing": missing}, ensure_ascii=False))
    else:
        typer.echo(f"{len(gone):,} deleted; `tokensieve compact {at}` takes their text off the disk")
        for name in missing:
            typer.echo(f"there is no document {name!r}", err=True)
    if missing:
        raise SystemExit(1)


def _libraries(at: Path) -> list[Library]:
    """The index in a folder, or those of its shards."""
    from tokensieve.cli.shards import sharded

    if not sharded(at):
        return [opened(at)]
    from tokensieve.retrieval.shards import Shards

    shards = Shards.open(at)
    return [opened(shards.at(number)) for number in sorted(shards.built)]


def _told(library: Library) -> dict[str, Any]:
    index, recipe = library.index, library.recipe
    files = list(index.folder.iterdir())
    names = library.names()
    stats = index.stats
    return {
        "folder": str(index.folder), "identity": index.identity,
        "encoder": f"{index.model}, from {recipe.encoder or 'the package of the embedded model'}",
        "recipe": f"{recipe.reduction}, {recipe.codec}, sketch {recipe.sketch or 'none'}, overlap {recipe.overlap}",
        "include": list(recipe.include), "exclude": list(recipe.exclude),
        "documents": len(names), "passages": len(index), "vectors": index.size["vectors"], "deleted passages": stats["deleted"],
        "segments": stats["segments"],
        "bytes": {"vectors": stats["token_bytes"], "sketches": stats["sketch_bytes"],
                  "texts and places": stats["file_bytes"] - stats["token_bytes"] - stats["sketch_bytes"],
                  "all files": sum(f.stat().st_size for f in files)},
        "candidates": index.plan, "damaged": index.damaged,
    }  # fmt: skip


def _counted(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    return f"{value:,}" if isinstance(value, int) else str(value)
