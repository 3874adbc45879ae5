"""The language model's text: what a Python and a Debian installation carry, split by file, nothing twice.

`python -m tokensieve.testbed.lm.corpus --out DIR` writes `train.npy` (token ids), `heldout.json.xz`, `tokenizer.json` and
`corpus.json`, which counts and fingerprints what went in. Another installation gives another corpus; the same one always
the same.
"""

import gzip
import hashlib
import json
import lzma
import re
import sysconfig
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

VOCABULARY = 2048
END = "<|end|>"  # between documents, and where generation starts
PAD = "<|pad|>"
HELD_OUT = {"code": 0.06, "guide": 0.3, "manual": 0.4}  # of the files that may be held out
REPEAT = 60  # characters from which a paragraph counts as repeated
SKIPPED = {"site-packages", "test", "tests", "idle_test", "lib2to3", "encodings", "pydoc_data", "__pycache__"}
FOREIGN = ("gcloud", "kubectl")  # pages that no Debian package brings


@dataclass(frozen=True)
class CorpusDocument:
    kind: str  # code, guide, manual or licence
    name: str
    text: str


def standard_library() -> Iterator[CorpusDocument]:
    """The standard library's modules with their docstrings, without its tests and tables."""
    root = Path(sysconfig.get_path("stdlib"))
    for file in sorted(root.rglob("*.py")):
        parts = file.relative_to(root).parts
        if not SKIPPED.intersection(parts) and not any(part.startswith("config-") for part in parts):
            yield CorpusDocument("code", "/".join(parts), file.read_text("utf-8", errors="ignore"))


def guide() -> Iterator[CorpusDocument]:
    """The topics of `help()`: the language reference in plain English."""
    from pydoc_data.topics import topics

    for name in sorted(topics):
        yield CorpusDocument("guide", f"topics/{name}", topics[name])


def manuals(root: Path = Path("/usr/share/man")) -> Iterator[CorpusDocument]:
    """The manual pages of sections 1 to 8 as plain text."""
    for file in sorted(root.glob("man[1-8]/*")):
        if file.is_symlink() or file.name.startswith(FOREIGN):
            continue
        raw = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
        text = plain(raw.decode("utf-8", errors="ignore"))
        if len(text) > 400:  # shorter ones only point to another page
            yield CorpusDocument("manual", f"{file.parent.name}/{file.name.removesuffix('.gz')}", text)


def licences(root: Path = Path("/usr/share/common-licenses")) -> Iterator[CorpusDocument]:
    for file in sorted(root.glob("*")):
        if not file.is_symlink():
            yield CorpusDocument("licence", file.name, file.read_text("utf-8", errors="ignore"))


_TITLES = re.compile(r"^[.'](SH|SS|Sh|Ss)\s+(.*)$")
_WORDS = re.compile(r"^[.'](B|I|BR|RB|BI|IB|IR|RI|SM|SB|Nm|Nd|Fl|Ar|Pa|Em|Sy|Li|Cm|Xr|IP|It)\s+(.*)$")
_ESCAPES = [
    (re.compile(r'\\".*$'), ""),
    (re.compile(r"\\(f\(..|f\[[^]]*\]|f.|s[+-]?\d|[&|^/,:%]|m\[[^]]*\])"), ""),
    (re.compile(r"\\\*\(..|\\\*\[[^]]*\]|\\\*."), ""),
    (re.compile(r"\\\((aq|cq|oq)"), "'"),
    (re.compile(r"\\\((dq|lq|rq)"), '"'),
    (re.compile(r"\\\((em|en|mi)|\\-"), "-"),
    (re.compile(r"\\\((bu)"), "*"),
    (re.compile(r"\\\[[^]]*\]|\\\(.."), ""),
    (re.compile(r"\\e|\\\\"), r"\\"),
    (re.compile(r"\\ |\\~|\\0"), " "),
]


def plain(roff: str) -> str:
    """A manual page without its typesetting: titles, words and code lines stay."""
    lines: list[str] = []
    for line in roff.splitlines():
        if line.startswith((".", "'")):
            title, words = _TITLES.match(line), _WORDS.match(line)
            if title:
                lines += ["", _inline(title[2].replace('"', "")), ""]
            elif words:
                lines.append(_inline(words[2].replace('"', "")))
            elif line[1:3] in ("PP", "LP", "TP", "P", "Pp", "sp", "IP", "It"):
                lines.append("")
        else:
            lines.append(_inline(line))
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip() + "\n"


def _inline(line: str) -> str:
    for pattern, by in _ESCAPES:
        line = pattern.sub(by, line)
    return line.rstrip()


def is_held_out(document: CorpusDocument) -> bool:
    """Decided by name alone. Only text that may be passed on: Python's own, and the pages of OpenSSL (Apache-2.0)."""
    if document.kind == "manual" and "openssl" not in document.name:
        return False
    return _share(document.name) < HELD_OUT.get(document.kind, 0.0)


def split(documents: Iterable[CorpusDocument]) -> tuple[list[CorpusDocument], list[CorpusDocument]]:
    """Training and held-out documents, in an order that mixes the kinds.

    A long paragraph stands only where it comes first, training before held-out: none is in both.
    """
    ordered = sorted(documents, key=lambda document: _share(document.name + "/order"))
    seen: set[bytes] = set()
    parts: list[list[CorpusDocument]] = []
    for held in (False, True):
        once = (CorpusDocument(d.kind, d.name, _first_time(d.text, seen)) for d in ordered if is_held_out(d) == held)
        parts.append([document for document in once if len(document.text) > 200])
    return parts[0], parts[1]


def _share(name: str) -> float:
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:6], "big") / 2**48


def _first_time(text: str, seen: set[bytes]) -> str:
    kept = []
    for paragraph in re.split(r"\n[ \t]*\n", text):
        core = " ".join(paragraph.split())
        mark = hashlib.sha256(core.encode()).digest()[:12]
        if len(core) < REPEAT or mark not in seen:
            kept.append(paragraph)
        if len(core) >= REPEAT:
            seen.add(mark)
    return "\n\n".join(kept)


def train_tokenizer(texts: list[str], sample: int = 5_000_000):
    """A byte-level BPE with single digits, from an even sample of the texts."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

    total = sum(map(len, texts))
    step = max(1, total // sample)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(r"\d"), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[END, PAD],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts[::step], trainer)
    return tokenizer


def tokens(tokenizer, texts: list[str]) -> np.ndarray:
    """All texts in one row of ids, the end token before each."""
    end = tokenizer.token_to_id(END)
    rows = (encoding.ids for i in range(0, len(texts), 64) for encoding in tokenizer.encode_batch(texts[i : i + 64]))
    return np.concatenate([np.array([end, *row], dtype=np.uint16) for row in rows])


def write_held_out(documents: list[CorpusDocument], file: Path) -> None:
    file.write_bytes(lzma.compress(json.dumps([asdict(d) for d in documents], ensure_ascii=False).encode(), preset=9))


def read_held_out(file: Path) -> list[CorpusDocument]:
    return [CorpusDocument(**entry) for entry in json.loads(lzma.decompress(file.read_bytes()))]


def main(out: Annotated[Path, typer.Option(help="Where the corpus goes.")]):
    """Build the corpus, its split and its tokenizer from this installation."""
    out.mkdir(parents=True, exist_ok=True)
    documents = [d for source in (standard_library, guide, manuals, licences) for d in source()]
    train, held_out = split(documents)
    tokenizer = train_tokenizer([d.text for d in train])
    tokenizer.save(str(out / "tokenizer.json"))
    ids = tokens(tokenizer, [d.text for d in train])
    np.save(out / "train.npy", ids)
    write_held_out(held_out, out / "heldout.json.xz")
    record = {
        "python": sysconfig.get_python_version(),
        "train": summary(train) | {"tokens": len(ids)},
        "held out": summary(held_out),
        "sha256": hashlib.sha256(ids.tobytes()).hexdigest(),
    }
    (out / "corpus.json").write_text(json.dumps(record, indent=2) + "\n")
    typer.echo(json.dumps(record, indent=2))


def summary(documents: list[CorpusDocument]) -> dict:
    """Files and bytes by kind."""
    kinds = sorted({d.kind for d in documents})
    return {
        kind: {
            "files": sum(d.kind == kind for d in documents),
            "bytes": sum(len(d.text.encode()) for d in documents if d.kind == kind),
        }
        for kind in kinds
    }


if __name__ == "__main__":
    typer.run(main)
