"""Which denoisers of diffusers a sieve runs on, in which of its two forms."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import resources

from tokensieve.bench.compat import denoisers
from tokensieve.bench.compat.check import Differs
from tokensieve.bench.compat.denoiser_check import DenoiserCase
from tokensieve.core.denoising import FORMS
from tokensieve.core.errors import close


@dataclass
class DenoiserVerdict:
    """One class of diffusers.

    Attributes:
        status: "works", where one form does at least; "refused", by an error that says why; "wrong", where a check fails;
            "unchecked", where it could not be built or called here.
        checked: by form, what was checked, in words.
        why: by form, why it does not run; under "" for neither.
    """

    name: str
    status: str = "unchecked"
    checked: dict[str, list[str]] = field(default_factory=dict)
    why: dict[str, str] = field(default_factory=dict)


def check(name: str) -> DenoiserVerdict:
    """Build one class and check both forms."""
    made = DenoiserVerdict(name)
    try:
        case = DenoiserCase(name)
    except Exception as error:  # whatever a foreign constructor raises
        made.why[""] = f"not built here: {_line(error)}"
        return made
    for form in FORMS:
        done: list[str] = []
        try:
            case.keeping_all(form)
            done.append("keep=1")
            if case.hidden(form):
                done.append("hidden")
            case.text_stays()
            case.rows_alone(form)
            done.append("rows alone")
            made.checked[form] = done
        except Differs as error:
            made.status, made.why[form] = "wrong", f"{_line(error)}"
        except (ValueError, RuntimeError, NotImplementedError) as error:
            made.why[form] = _line(error)
    if made.status != "wrong":
        made.status = "works" if made.checked else "refused"
    return made


def matrix(names: Sequence[str] = ()) -> list[DenoiserVerdict]:
    """The verdict on each class, all of them by default.

    Raises:
        ValueError: a class that is not among those that are tried; the message offers the nearest names.
    """
    unknown = sorted(set(names) - set(denoisers.TINY))
    if unknown:
        near = close(unknown[0], list(denoisers.TINY))
        raise ValueError(f"no denoiser called {unknown[0]} is tried" + (f"; did you mean {near}?" if near else ""))
    return [check(name) for name in names or denoisers.TINY]


def recorded() -> list[DenoiserVerdict]:
    """What `python -m benchmarks.denoisers` last found."""
    file = resources.files("tokensieve").joinpath("bench/compat/denoisers.json")
    return [DenoiserVerdict(**row) for row in json.loads(file.read_text(encoding="utf-8"))["models"]]


def _line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]
