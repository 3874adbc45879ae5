"""What a bench relies on in a column, and in a block of its page."""

from __future__ import annotations

from copy import deepcopy
from html.parser import HTMLParser
from typing import Any

from tokensieve.bench.blocks import BLOCKS, Report
from tokensieve.bench.columns import COLUMNS
from tokensieve.bench.results import FORMAT
from tokensieve.testing.trial import expect

PICTURE = "data:image/gif;base64,R0lGODlhAQABAAAAACH5BAEKAAEALAAAAAABAAEAAAICTAEAOw=="
HOSTILE = "<b id=hostile>&"
SCORES = {"questions": ("score",), "texts": ("likelihood", "after", "before")}
TEXTS = {"held": 0.25, "perplexity": 9.5, "bits": 1.1, "after": 0.5, "before": 0.75}
"""Of a row about texts: bytes held and facts as shares, bits a byte."""
EMPTY_TAGS = frozenset(
    ["area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "source", "track", "wbr"]
)


def check_column(name: str) -> None:
    """Check a registered column of the bench, built in or from outside.

    It gives words for every row it is shown, with answers known or not, and for the full model alone; at least one of these
    cells is not empty; it says the same every time, and changes no row.

    Raises:
        AssertionError: naming what does not hold.
    """
    column, filled = COLUMNS.get(name), False
    for data in _runs():
        before = deepcopy(data)
        for key, row in data["rows"].items():
            said = column.show(row, data["rows"])
            expect(isinstance(said, str), f"the column {name} to give words for {key}; got {said!r}")
            expect(said == column.show(row, data["rows"]), f"the column {name} to say the same of {key} every time")
            filled |= bool(said)
        expect(data == before, f"the column {name} to change no row")
    expect(filled, f"the column {name} to say something of some row; all its cells are empty")


def check_block(name: str) -> None:
    """Check a registered block of the page, built in or from outside.

    It gives HTML whose tags close, that loads nothing from anywhere and holds nothing of what it is told (a question, an answer)
    as markup, with answers known or not, and for the full model alone; it shows something of at least one of these runs, says
    the same every time, and changes nothing.

    Raises:
        AssertionError: naming what does not hold.
    """
    block, filled = BLOCKS.get(name), False
    for data in _runs():
        report = Report(data, PICTURE, ((HOSTILE, HOSTILE, PICTURE),) if len(data["rows"]) > 1 else ())
        before = deepcopy(data)
        said = block.html(report)
        expect(isinstance(said, str), f"the block {name} to give a string of HTML; got {type(said).__name__}")
        expect(HOSTILE not in said, f"the block {name} to escape what it shows (html.escape); it holds {HOSTILE!r}")
        read = _Read()
        read.feed(said)
        read.close()
        expect(not read.wrong, f"the block {name} to be HTML that stands alone; it holds {', '.join(read.wrong)}")
        expect(not read.open, f"the block {name} to close its tags; open: {', '.join(read.open)}")
        expect(said == block.html(report), f"the block {name} to say the same every time")
        expect(data == before, f"the block {name} to change nothing of the results")
        filled |= bool(said.strip())
    expect(filled, f"the block {name} to show something of some run; it is always empty")


class _Read(HTMLParser):
    """Notes tags that stay open, close nothing, or load something."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.wrong: list[str] = []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.open += [] if tag in EMPTY_TAGS else [tag]
        loads = "href" if tag == "link" else "src"
        self.wrong += [f"<{tag} {k}={v!r}>" for k, v in attrs if k == loads and not str(v).startswith("data:")]

    def handle_endtag(self, tag: str) -> None:
        if self.open and self.open[-1] == tag:
            self.open.pop()
        elif tag not in EMPTY_TAGS:
            self.wrong.append(f"</{tag}> that closes nothing")


def _runs() -> list[dict[str, Any]]:
    """Results of a run with answers, of one without, of the full model alone, and of a user's own questions and texts."""
    known, unknown = results(labelled=True), results(labelled=False)
    alone = {**known, "rows": {"full": known["rows"]["full"]}, "skipped": []}
    return [known, unknown, alone, own("questions"), own("texts")]


def results(labelled: bool) -> dict[str, Any]:
    """What a run leaves in ``results.json``, made up; ``labelled``: whether answers are known."""
    rows = {
        key: _row(method, site, keep, labelled)
        for key, method, site, keep in (
            ("full", "full", "", None),
            ("random@16", "random", "handoff", 16),
            (f"{HOSTILE}@16", HOSTILE, "handoff", 16),
            ("fastv@0.25", "fastv", "prefill", 0.25),
        )
    }
    sample = {"name": HOSTILE, "question": HOSTILE, "answer": "4" if labelled else None, "kind": HOSTILE, "image": "0"}
    return {
        "format": FORMAT,
        "settings": {
            "model": HOSTILE, "data": HOSTILE, "question": HOSTILE, "samples": 1, "seed": 0, "batch": 1, "new_tokens": 4,
            "dtype": "float32", "device": "cpu",
        },
        "environment": {
            "machine": "", "cpu": HOSTILE, "cores": 2, "threads": 1, "gpu": None, "python": "3.12",
            "versions": {"tokensieve": "0", "torch": "2", "transformers": "5"},
        },
        "skipped": [HOSTILE],
        "samples": [sample],
        "rows": rows,
    }  # fmt: skip


def own(asked: str) -> dict[str, Any]:
    """What a run over a user's own ``"questions"`` or ``"texts"`` leaves, made up."""
    data = results(labelled=asked == "questions")
    for row in data["rows"].values():
        one = {"mean": -0.25, "low": -0.5, "high": 0.25, "count": 9, "needed": 40} if row["keep"] else None
        row["paired"] = {score: {"full": one, "random": one} for score in SCORES[asked]}
        row |= {"interval": [0.25, 0.75]} if asked == "questions" else TEXTS
    settings = data["settings"] | {"score": "exact", "equal": "mean"}
    records = {"full": {HOSTILE: {"score": 1.0}}}
    more: dict[str, Any] = {"records": records} if asked == "questions" else {}
    return data | {"settings": settings, "asked": asked, "left": {HOSTILE: HOSTILE}, "notes": [HOSTILE], **more}


def _row(method: str, site: str, keep: Any, labelled: bool) -> dict[str, Any]:
    full = keep is None
    right = 1.0 if full else 0.5 if method == "random" else 0.25
    tokens, share, selection = (64.0, 1.0, 0.0) if full else (16.0, 0.3, 0.3)
    row: dict[str, Any] = {
        "method": method, "site": site, "keep": keep, "answers": ["4" if full else HOSTILE],
        "accuracy": {HOSTILE: right} if labelled else {}, "accuracy_mean": right if labelled else None,
        "layer_tokens": [tokens, tokens], "final_tokens": tokens, "mean_tokens": tokens,
        "flops": 1e9 * share, "flops_share": share, "prefill_flops_share": share,
        "kv_bytes": 4096, "peak_bytes": None if full else 2e6,
        "ms": {"encoder": 2.0, "selection": selection, "prefill": 5.0, "decode": 1.0, "total": 12.0},
    }  # fmt: skip
    if full:
        return row
    pays = {"pays": True, "min_tokens": 40, "max_answer": None}
    return {**row, "agreement": right, "kl": 0.2, "ms_floor": 4.8, "overhead": 1.05, "break_even": pays}
