"""People's own questions: a file of JSON lines, read to its end, with every line that cannot be asked named."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from PIL import Image

from tokensieve.bench.data import Found, read_image

KEYS = ("image", "question", "answer", "choices", "kind", "system", "id", "context")
"""What a line may say; ``question`` and ``answer`` it must."""


@dataclass(frozen=True)
class Question:
    """One question.

    Attributes:
        name: its id, or its line.
        images: files, opened when they are needed.
        answers: all that are right; choices: of which the likeliest is taken for the answer; none where it is written freely.
        mark: a fingerprint of the images.
        context: passages of text that it is to be answered from, in front of it.
    """

    name: str
    question: str
    answers: tuple[str, ...]
    images: tuple[Path, ...] = ()
    choices: tuple[str, ...] = ()
    kind: str = "all"
    system: str = ""
    mark: str = ""
    context: tuple[str, ...] = ()

    def pictures(self) -> list[Image.Image]:
        """The images, in RGB."""
        return [read_image(file) for file in self.images]

    def to_json(self) -> dict[str, Any]:
        """What tells it from others."""
        return {
            "name": self.name, "question": self.question, "answer": " | ".join(self.answers), "kind": self.kind,
            "choices": list(self.choices), "system": self.system, "image": self.mark,
        } | ({"context": sha256("\n\n".join(self.context).encode()).hexdigest()[:16]} if self.context else {})  # fmt: skip


class Fault(ValueError):
    """Why a line cannot be asked."""


def read_questions(file: Path, limit: int | None = None, seen: Callable[[int], None] = lambda line: None) -> Found:
    """The questions of a file of JSON lines.

    A line is ``{"image": "a.png" or ["a.png", "b.png"] or null, "question": "..", "answer": ".." or [..], "choices": [..],
    "kind": "..", "system": "..", "id": "..", "context": ".." or [".."]}``; the last five are optional, and images are relative to
    the file. Line ends of all systems, a byte order mark and empty lines are fine. Every image is opened once.

    Args:
        limit: at most so many questions.
        seen: called with each line's number.

    Raises:
        FileNotFoundError: no such file. ValueError: it is no text in UTF-8, one JSON array, or not one line can be asked.
    """
    if not file.is_file():
        raise FileNotFoundError(f"--questions {file}: no such file")
    raw = file.read_bytes()
    if raw.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise ValueError(f"--questions {file}: it is written in UTF-16; save it as UTF-8")
    lines = raw.removeprefix(b"\xef\xbb\xbf").splitlines()
    questions: list[Question] = []
    skipped: list[str] = []
    others: Counter[str] = Counter()
    first: dict[str, int] = {}
    for number, line in enumerate(lines, 1):
        seen(number)
        if not line.strip():
            continue
        if limit is not None and len(questions) == limit:
            break
        try:
            data = _object(line)
            name = _name(data, number, first)
            questions.append(_question(data, name, file.parent))
            others.update(set(data) - set(KEYS))
        except Fault as fault:
            skipped.append(f"line {number}: {fault}")
    if not questions:
        whole = raw.removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"[")
        told = "it is one JSON array; write one object a line" if whole else "; ".join(skipped[:3]) or "it is empty"
        raise ValueError(f"--questions {file}: none of its {len(lines)} lines can be asked: {told}")
    notes = [
        f"{key!r} is no key of a question and is not read ({count} lines)" for key, count in sorted(others.items())
    ]
    return Found(questions, skipped, notes)


def _object(line: bytes) -> dict[str, Any]:
    try:
        data = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise Fault(f"not UTF-8 (byte {error.start})") from error
    except (json.JSONDecodeError, RecursionError) as error:
        raise Fault(f"not JSON ({error})") from error
    if not isinstance(data, dict):
        raise Fault(f"a {type(data).__name__}, not an object")
    return data


def _name(data: dict[str, Any], number: int, first: dict[str, int]) -> str:
    given = data.get("id")
    if given is None:
        return f"line {number}"
    name = str(given)
    if name in first:
        raise Fault(f"the id {name!r} is that of line {first[name]}")
    first[name] = number
    return name


def _question(data: dict[str, Any], name: str, folder: Path) -> Question:
    images = data.get("image")
    named = [] if images is None else images if isinstance(images, list) else [images]
    if not all(isinstance(i, str) and i for i in named):
        raise Fault(f"image is {images!r}; it must be a file's name, a list of them, or null")
    question = data.get("question")
    if not isinstance(question, str) or not question.strip():
        raise Fault("question is missing" if question is None else f"question is {question!r}; it must be text")
    choices, answers = _texts(data.get("choices"), "choices"), _texts(data.get("answer"), "answer")
    if not answers:
        raise Fault("answer is missing")
    if choices:
        answers = _chosen(answers, choices)
    files = tuple(folder / i for i in named)
    marks = sha256(b"".join(_mark(f, i) for f, i in zip(files, named, strict=True)))
    kind, system = data.get("kind"), data.get("system")
    return Question(
        name, question, answers, files, choices, "all" if kind is None else str(kind), "" if system is None else str(system),
        marks.hexdigest()[:16] if files else "", _texts(data.get("context"), "context"),
    )  # fmt: skip


def _texts(value: Any, key: str) -> tuple[str, ...]:
    """One text or several; numbers are read as they are written."""
    each = [] if value is None else value if isinstance(value, list) else [value]
    if not all(isinstance(x, (str, int, float)) and not isinstance(x, bool) for x in each):
        raise Fault(f"{key} is {value!r}; it must be text or a list of texts")
    texts = tuple(str(x) for x in each)
    if any(not t.strip() for t in texts):
        raise Fault(f"{key} holds an empty text")
    return texts


def _chosen(answers: Iterable[str], choices: tuple[str, ...]) -> tuple[str, ...]:
    """The choices that are right: an answer is one, or the letter of its place."""
    letters = dict(zip("ABCDEFGHIJKLMNOPQRSTUVWXYZ", choices, strict=False))
    found = tuple(a if a in choices else letters.get(a.strip(), "") for a in answers)
    if not all(found):
        raise Fault(f"answer is {', '.join(answers)}, which is none of the choices {', '.join(choices)}")
    return found


def _mark(file: Path, name: str) -> bytes:
    try:
        read_image(file)
        return sha256(file.read_bytes()).digest()
    except ValueError as error:
        missing = not file.is_file()
        raise Fault(f"image {name}: no such file" if missing else f"image {name} cannot be read ({error})") from error
