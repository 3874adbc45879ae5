"""Formats of infilling: where the special tokens stand between what comes before, after, and in the middle.

Sources: Bavarian et al., Efficient Training of Language Models to Fill in the Middle (arXiv 2207.14255), whose order with the
suffix first lets a prefix that is cut inside a token go on; Ren et al., Empowering Character-level Text Infilling by Eliminating
Sub-Tokens (arXiv 2405.17103), whose two further tokens name the cut lines at both borders.
"""

from __future__ import annotations

from dataclasses import dataclass

from tokensieve.text.proper import Spelling


@dataclass(frozen=True)
class Borders:
    """A prefix as whole lines ``before`` and a cut ``line``, a suffix as the ``rest`` of a line and lines ``after``."""

    before: str
    line: str
    rest: str
    after: str


@dataclass(frozen=True)
class Filled:
    """The text found between two others.

    Attributes:
        middle: its bytes; complete: whether the model came to its end, and to the suffix where the format asks for it.
    """

    middle: bytes
    complete: bool


@dataclass(frozen=True)
class FillFormat:
    """Special tokens of infilling, by name.

    Args:
        prefix, suffix, middle: what they stand before.
        start, end: what stands before the cut line of the prefix and of the suffix (FIM-SE); both or none.
    """

    prefix: str
    suffix: str
    middle: str
    start: str | None = None
    end: str | None = None

    def __post_init__(self) -> None:
        if (self.start is None) != (self.end is None):
            raise ValueError(f"start is {self.start!r} and end {self.end!r}; give both of them, or none")

    def check(self, spelling: Spelling) -> None:
        """Raises ValueError for names that are no special tokens of a tokenizer."""
        names = [n for n in (self.prefix, self.suffix, self.middle, self.start, self.end) if n is not None]
        missing = [n for n in names if spelling.tokenizer.token_to_id(n) not in spelling.special]
        if missing:
            raise ValueError(
                f"{missing[0]!r} is no special token of the tokenizer; it must be, for the model to be told by it"
            )

    def split(self, prefix: str, suffix: str) -> Borders:
        """What is whole and what is cut. Without ``start`` and ``end`` nothing counts as cut."""
        if self.start is None:
            return Borders(prefix, "", "", suffix)
        at = prefix.rfind("\n") + 1
        to = suffix.find("\n") + 1 or len(suffix)
        return Borders(prefix[:at], prefix[at:], suffix[:to], suffix[to:])

    def prompt(self, prefix: str, suffix: str) -> str:
        """What the model reads: its answer follows. What is cut in the prefix stands at the end."""
        b = self.split(prefix, suffix)
        if self.start is None:
            return f"{self.prefix}{self.suffix}{suffix}{self.middle}{prefix}"
        marks = f"{self.start}{b.line}{self.end}{b.rest}"
        return f"{self.prefix}{b.before}{self.suffix}{b.after}{marks}{self.middle}{b.line}"

    def sample(self, prefix: str, middle: str, suffix: str) -> str:
        """A text to train on; what ends a text is put behind it by whoever trains."""
        return self.prompt(prefix, suffix) + middle + self.split(prefix, suffix).rest

    def assembled(self, sample: str) -> tuple[str, str, str]:
        """Prefix, middle and suffix of a sample.

        Raises:
            ValueError: it is none of this format, or its middle does not begin and end with the lines it names.
        """
        names = (self.prefix, self.suffix, *((self.start, self.end) if self.start and self.end else ()), self.middle)
        parts = [sample]
        for name in names:
            parts[-1:] = parts[-1].split(name, 1)
        if len(parts) != len(names) + 1 or parts[0]:
            raise ValueError(f"the sample does not hold {', '.join(names)} in this order")
        if self.start is None:
            raise ValueError("a sample without start and end tokens does not tell its prefix from its middle")
        _, before, after, line, rest, text = parts
        if not (text.startswith(line) and text.endswith(rest) and len(text) >= len(line) + len(rest)):
            raise ValueError(f"the middle {text!r} does not begin with {line!r} and end with {rest!r}")
        return before + line, text[len(line) : len(text) - len(rest)], rest + after

    def filled(self, prefix: str, suffix: str, answer: bytes, ended: bool) -> Filled:
        """What a model's answer to :meth:`prompt` says of the middle; ``ended`` tells whether it stopped of itself."""
        rest = self.split(prefix, suffix).rest.encode()
        closed = answer.endswith(rest)
        return Filled(answer[: len(answer) - len(rest)] if closed else answer, ended and closed)


KNOWN = (
    FillFormat("<fim_prefix>", "<fim_suffix>", "<fim_middle>"),
    FillFormat("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"),
    FillFormat("<fim-prefix>", "<fim-suffix>", "<fim-middle>"),
    FillFormat("<PRE>", "<SUF>", "<MID>", "<START>", "<END>"),
    FillFormat("<PRE>", "<SUF>", "<MID>"),
)
"""What tokenizers call them; the first that a tokenizer has is taken."""


def found_format(spelling: Spelling) -> FillFormat:
    """The format whose tokens a tokenizer has.

    Raises:
        ValueError: it has none that is known.
    """
    for form in KNOWN:
        try:
            form.check(spelling)
        except ValueError:
            continue
        return form
    known = "; ".join(f"{f.prefix} {f.suffix} {f.middle}" for f in KNOWN[:4])
    raise ValueError(
        f"the tokenizer has no special tokens of infilling (looked for: {known}); name those of the model as "
        "FillFormat(prefix, suffix, middle)"
    )
