"""Real models for tests: skipped where they are not here and cannot be fetched."""

from pathlib import Path

import pytest

from tokensieve.testbed import real
from tokensieve.testbed.real import wheels


def loaded(name: str, **options):
    """A real model and its processor."""
    if name == "smollm2" and not (real.CACHE.expanduser() / f"smollm2-{real.CARDS[name].version}").is_dir():
        pytest.importorskip("gguf")
    try:
        return real.load(name, **options)
    except OSError as error:
        pytest.skip(f"{name} is not here: {error}")


def unpacked(name: str, target: Path) -> Path:
    """The folder of a real model as its wheel has it."""
    card = real.CARDS[name]
    try:
        wheel = wheels.wheel(card, real.CACHE.expanduser(), target)
    except OSError as error:
        pytest.skip(f"{name} is not here: {error}")
    return wheels.unpack(wheel, card, target)
