"""What the commands that work on an index share: their options, and how one is opened."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from tokensieve.retrieval.encoders.cross import CrossEncoder
    from tokensieve.retrieval.encoders.encoded import Encoder
    from tokensieve.retrieval.index.library import Library

Ray = Annotated[
    str | None,
    typer.Option(help="A Ray cluster that works on shards: its address, or 'local' for processes of this machine."),
]
EncoderPath = Annotated[
    str | None,
    typer.Option(
        "--encoder",
        help="A model's folder or hub name: the embedded MiniLM if new, else where that of the index is now.",
    ),
]
CrossPath = Annotated[
    str | None,
    typer.Option("--cross-encoder", help="A model's folder or hub name that ranks the 50 best passages again."),
]
At = Annotated[Path, typer.Argument(help="The folder of an index.")]


def opened(at: Path, encoder: str | None = None) -> Library:
    """The index in a folder, with the encoder that is said to be there; by default that is loaded when it is needed."""
    from tokensieve.retrieval.index.library import Library

    library = Library.open(at, None if encoder is None else loaded(encoder))
    library.load = loaded
    return library


def loaded(source: str | None) -> Encoder:
    """An encoder, without the bars of what loads it."""
    from tokensieve.retrieval.encoders import loading
    from tokensieve.sites.model.compatibility import disable_progress_bar

    disable_progress_bar()
    return loading.load_encoder(source)


def crossed(source: str | None) -> CrossEncoder | None:
    """A cross-encoder, without the bars of what loads it; None where none is asked for."""
    if source is None:
        return None
    from tokensieve.retrieval.encoders.cross import load_cross_encoder
    from tokensieve.sites.model.compatibility import disable_progress_bar

    disable_progress_bar()
    return load_cross_encoder(source)


def status(what: str) -> Any:
    """Says what takes a while, where someone looks."""
    from rich.console import Console

    return Console(stderr=True).status(what)
