"""Parity between seven languages on Debian's manual pages: `python -m benchmarks.parity`.

Translated pages come from Debian's packages `manpages-*`, which `apt-get download` brings to out/manpages and nothing installs;
English ones are those of the machine that are translated into one of the languages. Pages that all languages have are parallel:
every second one balances, the others judge, and neither is learned from.
"""

from __future__ import annotations

import gzip
import random
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.systems.tokenizers import gini
from tokensieve.core.files import write_json
from tokensieve.testbed.lm.corpus import manuals, plain
from tokensieve.text.config import TokenizerConfig
from tokensieve.text.corpus import Corpus, Document
from tokensieve.text.train import train

LANGUAGES = ("de", "fr", "es", "pl", "uk", "ja")
EACH = 800_000
"""Bytes of each language to learn from, at most."""
FOLDER = Path("out/manpages")


def fetch() -> Path:
    """The folder of manual pages by language, fetched once."""
    pages = FOLDER / "pages" / "usr" / "share" / "man"
    if not all((pages / name).is_dir() for name in LANGUAGES):
        FOLDER.mkdir(parents=True, exist_ok=True)
        subprocess.run(["apt-get", "download", *(f"manpages-{n}" for n in LANGUAGES)], cwd=FOLDER, check=True)
        for package in FOLDER.glob("*.deb"):
            subprocess.run(["dpkg-deb", "-x", package, FOLDER / "pages"], check=True)
    return pages


def english(names: Iterable[str], root: Path = Path("/usr/share/man")) -> dict[str, str]:
    """Those of some pages that the machine has in English."""
    files = {name: root / f"{name}.gz" for name in sorted(names)}
    return {
        name: plain(gzip.decompress(f.read_bytes()).decode("utf-8", errors="ignore"))
        for name, f in files.items()
        if f.is_file() and not f.is_symlink()
    }


def main() -> None:
    root = fetch()
    found = {name: {d.name: d.text for d in manuals(root / name)} for name in LANGUAGES}
    found["en"] = english({name for own in found.values() for name in own})
    order = sorted(set.intersection(*(set(own) for own in found.values())))
    texts: list[Document] = []
    sizes = {}
    for name, own in found.items():
        rest, held = [(t, text) for t, text in own.items() if t not in order], 0
        random.Random(0).shuffle(rest)
        for title, text in rest:
            if held > EACH:
                break
            texts.append(Document(f"{name}/{title}", text))
            held += len(text.encode())
        sizes[name] = held
    rows = {name: [own[title] for title in order] for name, own in found.items()}
    dev = {name: tuple(r[::2]) for name, r in rows.items()}
    n: dict[str, Any] = {"pages in common": len(order), "bytes": sizes}
    for title, given in (("BPE", None), ("parity", dev)):
        tokenizer = train(Corpus(tuple(texts), {}), TokenizerConfig(vocab=8192), given).tokenizer
        for part, some in (("balanced", slice(0, None, 2)), ("judged", slice(1, None, 2))):
            cost = {k: sum(len(e) for e in tokenizer.encode_batch_fast(r[some])) for k, r in rows.items()}
            n[f"{title}, {part}"] = {"Gini": round(gini(list(cost.values())), 4), "tokens": sum(cost.values())} | cost
    write_json(FOLDER / "parity.json", n)
    table = Table("pages", "Gini", "tokens", *rows, title=f"{len(order)} pages in common")
    for name, row in ((k, v) for k, v in n.items() if "," in k):
        table.add_row(name, str(row["Gini"]), f"{row['tokens']:,}", *(f"{row[k]:,}" for k in rows))
    Console().print(table)


if __name__ == "__main__":
    main()
