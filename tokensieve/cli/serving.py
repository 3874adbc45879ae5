"""The command that serves an index over HTTP."""

from __future__ import annotations

import logging
import multiprocessing
import multiprocessing.connection
import os
import signal
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from tokensieve.cli import shards as cli_shards
from tokensieve.cli.indexes import At, CrossPath, EncoderPath, crossed, status
from tokensieve.extras import install

LOOPBACK = ("localhost", "127.0.0.1", "::1")
GRACE = 5
"""Seconds that requests have to end when the service stops, besides those that a search may take."""


def add(app: typer.Typer) -> None:
    """Make the command part of an application."""
    app.command("serve")(serve)


def serve(
    at: At,
    host: Annotated[
        str,
        typer.Option(
            help="The address to listen at; at 127.0.0.1 only this machine reaches it, at 0.0.0.0 others too."
        ),
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="The port to listen at.")] = 8000,
    token_file: Annotated[
        Path | None, typer.Option(help="A file that holds a token; requests must then carry it.")
    ] = None,
    read_token_file: Annotated[
        Path | None, typer.Option(help="A file that holds another token, which opens all that changes nothing.")
    ] = None,
    origin: Annotated[
        list[str] | None, typer.Option(help="A site whose pages may ask too: https://example.org. Repeat it.")
    ] = None,
    workers: Annotated[int, typer.Option(min=1, help="Processes that answer, each with the index open.")] = 1,
    body: Annotated[int, typer.Option(min=1, help="MB of a request's body at most.")] = 64,
    requests: Annotated[int, typer.Option(min=1, help="Requests that each worker answers at once.")] = 256,
    waiting: Annotated[int, typer.Option(min=1, help="Searches that wait for their turn, of each worker.")] = 128,
    together: Annotated[int, typer.Option(min=1, help="Waiting searches that go in one batch.")] = 32,
    seconds: Annotated[
        float, typer.Option(min=0.1, help="Until a search is answered, and until more of a body arrives.")
    ] = 30.0,
    log: Annotated[bool, typer.Option("--log/--no-log", help="A line on stderr for each request.")] = True,
    cross_encoder: CrossPath = None,
    encoder: EncoderPath = None,
) -> None:
    """Serve an index over HTTP, with a page to search it by."""
    try:
        import uvicorn  # noqa: F401

        from tokensieve.retrieval.service.limits import Limits
    except ImportError as error:
        raise ValueError(f"{error.name} is not installed; {install('serve')}") from None

    token, reading = _token(token_file), _token(read_token_file)
    if token is None and host not in LOOPBACK:
        raise ValueError(f"--host {host} is seen by other machines: give a --token-file that holds a token")
    if reading is not None and (token is None or token == reading):
        raise ValueError("--read-token-file stands beside a --token-file that holds another token")
    listening = _listening(host, port)
    limits = Limits(body << 20, requests, waiting, together, seconds)
    served = Served(
        at, encoder, token, reading, host in LOOPBACK, tuple(origin or ()), limits, log, workers, cross_encoder
    )
    shown = f"[{host}]" if ":" in host else host
    address = f"http://{shown}:{listening.getsockname()[1]}  (stop with Ctrl-C)"
    if workers == 1:
        served.run(listening, address)
    else:
        _several(served, listening, address)


@dataclass(frozen=True)
class Served:
    """What each worker is told."""

    at: Path
    encoder: str | None
    token: str | None
    reading: str | None
    here: bool
    origins: tuple[str, ...]
    limits: Any
    log: bool = True
    workers: int = 1
    cross: str | None = None

    def run(self, listening: socket.socket, address: str | None = None) -> None:
        """Serve until told to stop; ``address`` is shown when all is loaded."""
        import torch
        import uvicorn

        from tokensieve.retrieval.service import application

        if self.workers > 1:
            torch.set_num_threads(max(torch.get_num_threads() // self.workers, 1))
        if self.log:
            logging.basicConfig(format="%(asctime)s %(message)s")
            logging.getLogger("tokensieve.service").setLevel(logging.INFO)
        with cli_shards.searched(self.at, None, self.encoder) as library:
            with status("loading ..."):
                app = application(
                    library, self.token, frozenset(LOOPBACK) if self.here else None, reading=self.reading,
                    origins=self.origins, limits=self.limits, cross=crossed(self.cross),
                )  # fmt: skip
                assert library.encoder is not None
            if address:
                typer.echo(address)
            config = uvicorn.Config(
                app,
                log_level="warning",
                server_header=False,
                timeout_graceful_shutdown=int(self.limits.seconds) + GRACE,
            )
            uvicorn.Server(config).run(sockets=[listening])


def _several(served: Served, listening: socket.socket, address: str) -> None:
    """Workers that share what is listened at; one that dies is replaced, and all end with this process."""
    context = multiprocessing.get_context("spawn")
    stopped = False

    def stop(*_: Any) -> None:
        nonlocal stopped
        stopped = True

    # What cannot be served is said once, before any worker is made.
    with cli_shards.searched(served.at, None, served.encoder):
        pass
    before = {sign: signal.signal(sign, stop) for sign in (signal.SIGINT, signal.SIGTERM)}
    workers: list[Any] = []
    try:
        typer.echo(address)
        while not stopped:
            workers = [w for w in workers if w.is_alive()]
            while len(workers) < served.workers:
                workers.append(context.Process(target=served.run, args=(listening,)))
                workers[-1].start()
            multiprocessing.connection.wait([w.sentinel for w in workers], timeout=1)
    finally:
        for worker in workers:
            if worker.is_alive() and worker.pid:
                os.kill(worker.pid, signal.SIGTERM)
        for worker in workers:
            worker.join()
        for sign, handler in before.items():
            signal.signal(sign, handler)


def _token(file: Path | None) -> str | None:
    if file is None:
        return None
    token = file.read_text(encoding="utf-8").strip()
    if not token:
        raise ValueError(f"{file} is empty; it must hold a token")
    return token


def _listening(host: str, port: int) -> socket.socket:
    """What cannot be listened at is said before anything is loaded, and before an address is shown."""
    made = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        made.bind((host, port))
    except OSError as problem:
        raise ValueError(
            f"--port {port} of {host} cannot be listened at: {problem.strerror}; choose another"
        ) from problem
    return made
