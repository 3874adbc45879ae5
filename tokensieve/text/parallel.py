"""The same content in several languages: names of Unicode's CLDR, or files whose lines answer to each other."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from tokensieve.core.errors import near
from tokensieve.extras import install

FEWEST = 500
"""Names that a language must share with the base for its premium to stand among the others."""
TABLES = ("territories", "languages", "scripts", "currencies")


@dataclass(frozen=True)
class Parallel:
    """Parallel texts.

    Attributes:
        base: the language that others are compared with.
        pairs: for each other language, its texts and those of the base that they answer to.
        few: languages with too few texts in common with the base, and how many they have.
        source: where they come from, in words.
    """

    base: str
    pairs: dict[str, tuple[tuple[str, ...], tuple[str, ...]]]
    few: dict[str, int]
    source: str


def names(languages: Sequence[str] = (), base: str = "en", fewest: int = FEWEST) -> Parallel:
    """The names of territories, languages, scripts and currencies in CLDR, as the package babel carries them.

    Args:
        languages: CLDR's identifiers (``de``, ``zh_Hant``); all that have no territory of their own if empty.

    Raises:
        ValueError: babel is not installed, or does not know a language.
    """
    try:
        import babel
        from babel import Locale
        from babel.localedata import locale_identifiers
    except ImportError:
        raise ValueError(f"names by language come from babel, which is not installed; {install('text')}") from None
    known = {name for name in locale_identifiers() if Locale.parse(name).territory is None}
    for name in [*languages, base]:
        if name not in known:
            raise ValueError(f"language {name!r}: CLDR has none of this name; did you mean {near(name, known)}?")

    def of(language: str) -> dict[tuple[str, str], str]:
        locale = Locale.parse(language)
        return {(table, key): str(text) for table in TABLES for key, text in getattr(locale, table).items()}

    own = of(base)
    pairs, few = {}, {}
    for language in languages or sorted(known - {base}):
        theirs = of(language)
        shared = sorted(own.keys() & theirs.keys())
        if len(shared) < fewest:
            few[language] = len(shared)
        else:
            pairs[language] = (tuple(theirs[k] for k in shared), tuple(own[k] for k in shared))
    return Parallel(base, pairs, few, f"CLDR's names of {', '.join(TABLES)} (babel {babel.__version__})")


def lines(folder: str | Path, base: str = "en", languages: Collection[str] = ()) -> Parallel:
    """Files ``LANGUAGE.txt`` of a folder, whose lines answer to each other.

    Raises:
        ValueError: there are fewer than two files, no file of the base, or one has more lines than another.
    """
    texts = by_language(folder)
    if base not in texts:
        raise ValueError(f"{folder} holds no {base}.txt, the base; --base must be one of {', '.join(texts)}")
    asked = set(languages) or set(texts)
    for name in sorted(asked - texts.keys()):
        raise ValueError(f"{folder} holds no {name}.txt; it holds {', '.join(texts)}")
    pairs = {name: (rows, texts[base]) for name, rows in texts.items() if name != base and name in asked}
    return Parallel(base, pairs, {}, f"{len(texts[base]):,} parallel lines of {folder}")


def by_language(folder: str | Path) -> dict[str, tuple[str, ...]]:
    """The lines of each ``LANGUAGE.txt`` of a folder, all of equal number.

    Raises:
        ValueError: there are fewer than two files, or one has more lines than another, or is empty.
    """
    files = sorted(Path(folder).glob("*.txt")) if Path(folder).is_dir() else []
    if len(files) < 2:
        raise ValueError(
            f"{folder} holds {len(files)} files LANGUAGE.txt; parity is between languages, so that it must hold two or more, "
            "with parallel lines"
        )
    out = {}
    for file in files:
        try:
            out[file.stem] = tuple(file.read_text(encoding="utf-8").splitlines())
        except UnicodeDecodeError as problem:
            raise ValueError(f"{file}: not UTF-8 at byte {problem.start:,}") from None
    counts = {name: len(rows) for name, rows in out.items()}
    if len(set(counts.values())) > 1:
        told = ", ".join(f"{name}.txt {n:,}" for name, n in counts.items())
        raise ValueError(
            f"{folder}: the files have unequal numbers of lines ({told}); line i of each must say the same"
        )
    if not next(iter(counts.values())):
        raise ValueError(f"{folder}: the files are empty")
    return out
