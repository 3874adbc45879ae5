"""RAP-Gen: a bug is repaired by a generator that also reads the nearest bug of before and its fix.

Source: arXiv 2309.06057. The retriever is hybrid: scores of a dense encoder and BM25, each from 0 to 1 over the candidates, are
added by a weight (the paper adds cosine and BM25 of equal weight). Deviations: the dense side is MaxSim of a frozen encoder, by
tokensieve's index (`fuse`), where the paper trains a bi-encoder by contrast; the generator is a small decoder, not CodeT5.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tokensieve.retrieval.encoders.encoded import Encoder
from tokensieve.retrieval.index.fusion import Fuse
from tokensieve.retrieval.index.library import Library
from tokensieve.retrieval.index.recipe import Recipe
from tokensieve.retrieval.sources.texts import Text

LINES = (
    ("read a file line by line", "go through the rows of a text on disk", "walk over each line of a document"),
    ("sort the records by date", "bring entries into order of time", "arrange items from old to new"),
    ("open a connection to the server", "reach the remote machine", "dial the host over the network"),
    ("delete temporary files", "clean up what was left behind", "remove scratch data at the end"),
    ("hash the password", "make a digest of the secret", "protect the login phrase"),
    ("draw the chart", "plot the values as a picture", "render a diagram of the numbers"),
    ("parse the command line", "read the options that were typed", "take the arguments of the program"),
    ("send an email to the user", "mail the customer a message", "write to the person's inbox"),
    ("compress the archive", "pack the folder into less space", "make the backup smaller"),
    ("convert the temperature", "turn celsius into fahrenheit", "change degrees to another unit"),
    ("resize the image", "scale the photo down", "make the picture fit the screen"),
    ("translate the sentence", "say it in another language", "turn english words into french"),
)
"""What a piece of code is about, each said in three ways that share few words."""
NAMES = tuple(
    f"{a}{b}" for a in ("nor", "tal", "vek", "mip", "ros", "dun") for b in ("vex", "lum", "gar", "pin", "sot", "bry")
)
PLACES = ("row", "size", "key", "path", "name", "count", "left", "right", "flag", "mode")


@dataclass(frozen=True)
class Pair:
    """A bug and its fix, as tokens, what it is about, and of which kind it is: the fix of one is that of all of a kind."""

    said: str
    bug: tuple[str, ...]
    fix: tuple[str, ...]
    kind: int

    @property
    def text(self) -> str:
        """What is searched by."""
        name, *places = self.bug
        return f"# {self.said}\n{name}({', '.join(places)})"


def pairs(kinds: int, each: int, seed: int) -> list[list[Pair]]:
    """For each kind its pairs. A kind is one function used for one purpose, and is mended by calling another, with the arguments
    as they are or turned round; a function is used for several purposes, and a purpose is met by several functions."""
    draw = random.Random(seed)
    cells = draw.sample([(name, about) for name in NAMES[:12] for about in range(len(LINES))], kinds)
    out = []
    for kind, (name, about) in enumerate(cells):
        new, turned, own = draw.choice(NAMES[12:]), draw.random() < 0.5, []
        for _ in range(each):
            a, b = draw.sample(PLACES, 2)
            fixed = (new, b, a) if turned else (new, a, b)
            own.append(Pair(draw.choice(LINES[about]), (name, a, b), fixed, kind))
        out.append(own)
    return out


class Retriever:
    """The pairs of before, searched by a bug."""

    def __init__(self, folder: Path, known: Sequence[Pair], encoder: Encoder) -> None:
        self.known = known
        self.library = Library.create(folder, Recipe(keep=1.0, codec="float32", sketch=None), encoder)
        self.library.put(Text(str(i), pair.text) for i, pair in enumerate(known))

    def nearest(self, bugs: Sequence[Pair], fuse: Fuse) -> list[Pair]:
        """The pair of the best score for each bug."""
        found = self.library.search([bug.text for bug in bugs], 1, fuse=fuse)
        return [self.known[int(hits[0].document)] for hits in found]


def prompt(bug: Pair, shown: Pair | None) -> list[str]:
    """What the generator reads: a bug of before and its fix, where one is shown, and the bug."""
    before = ["<bug>", *shown.bug, "<fix>", *shown.fix] if shown else []
    return [*before, "<bug>", *bug.bug, "<fix>"]
