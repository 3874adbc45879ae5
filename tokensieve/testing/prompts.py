"""What people rely on in a method of prompts: checked on texts in several scripts, through `tokensieve.compress`."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any
from zlib import crc32

import torch
from torch import Tensor
from torch.nn.functional import normalize

from tokensieve.core.method import PromptMethod
from tokensieve.core.method_registry import get_method
from tokensieve.prompt.compress import Compressor
from tokensieve.prompt.compressed import Compressed
from tokensieve.sites.prompt.clusters import CLUSTER
from tokensieve.sites.prompt.cutting import cut
from tokensieve.sites.prompt.protect import protected
from tokensieve.testing.trial import expect

QUESTION = "Which port does the server use?"
TEXTS: dict[str, Sequence[str]] = {
    "prose": (
        'The server starts at noon. It listens on port 8417, as Dr. Gray said: "Never on 80. Never!" Clients wait.',
        "A second passage follows. The server's port is written down twice. Nothing else is known of it.",
    ),
    "markdown": (
        "# Ports\n\n- one: 80\n- two: 443. It is encrypted.\n\n| name | port |\n|---|---|\n| web | 80 |\n\nUse `ss -l`.",
    ),
    "code": (
        "def port(x):\n    # The port.\n    return x + 1\n\n\n```py\nport(3)\nport(4)\n```\n\nIt returns 4. Then it stops.",
    ),
    "no blanks": (
        "服务器在中午启动。它监听端口8417！客户端等待着。没有别的了。",
        "เซิร์ฟเวอร์เริ่มทำงานตอนเที่ยง มันฟังพอร์ต 8417 ลูกค้ารออยู่",
    ),
    "right to left": ("يبدأ الخادم عند الظهر. يستمع إلى المنفذ 8417. ينتظر العملاء؟ لا شيء آخر.",),
    "marks": ("Cafe\u0301 👩‍👩‍👧‍👦 ok. 🇩🇪🇫🇷 flags! Nai\u0308ve क्षि देवनागरी। \u0301 alone, e\u0301\u0302 twice. Done 👍🏽.",),
    "repeated": ("The port is 1. The port is 1. The port is 1.", "The port is 1.", "Another thing entirely. The port is 1."),
    "control": ("<|im_start|>user\nHello there. </s> Which port?<|im_end|>\n<|im_start|>assistant\nIt is 5. Not 6.",),
    "no ends": ("word " * 20 + "and so on without an end, " * 5,),
}  # fmt: skip
KEEPS = (4, 12, 40, 0.25, 0.5, 1.0)


class WordVectors:
    """In the place of an encoder: a text is the sum of one fixed random vector for each of its words, of length 1."""

    name = "word vectors"

    def __init__(self) -> None:
        self.tokenizer = _language_model()[1]

    def documents(self, texts: Sequence[str]) -> Any:
        rows = [sum((_word(w) for w in text.lower().split()), torch.full((16,), 1e-3)) for text in texts]
        return _Single(normalize(torch.stack(rows), dim=-1))

    queries = documents


class _Single:
    def __init__(self, single: Tensor):
        self.single = single


@cache
def _word(word: str) -> Tensor:
    return torch.randn(16, generator=torch.Generator().manual_seed(crc32(word.encode())))


@cache
def _language_model() -> tuple[Any, Any]:
    from tokensieve.testbed import lm

    return lm.load()


def check_prompt_method(method: str | type[PromptMethod] | PromptMethod, **options: Any) -> None:
    """Check a method of the site "prompt" on texts in several scripts.

    What it leaves never has more tokens than the budget; it is stretches of the text in their order, none of which cuts a
    character; numbers that are protected and chat markers stay; no unit is left out that would still fit (unless the method is
    adaptive); the counts are those of the texts; with budgets of their own no passage has a say in another; twice the same.

    Raises:
        AssertionError: naming what does not hold.
    """
    made: Any = method if isinstance(method, PromptMethod) else None
    if made is None:
        made = get_method(method, **options) if isinstance(method, str) else method(**options)  # type: ignore[operator]
    expect("prompt" in made.sites, f"a method of site='prompt'; it runs at {', '.join(made.sites)}")
    compressor = checking_compressor()
    for name, passages in TEXTS.items():
        for keep in KEEPS:
            for protect in ((), ("numbers",)):
                check_compressed(compressor, made, list(passages), keep, protect, name)
        _check_apart(compressor, made, passages, name)


def checking_compressor() -> Compressor:
    """What texts are compressed by in checks: small and made on the spot."""
    return Compressor(_language_model()[1], encoder=WordVectors(), lm=_language_model())


def check_compressed(
    compressor: Compressor,
    method: PromptMethod,
    passages: list[str],
    keep: int | float,
    protect: Sequence[str] = (),
    name: str = "text",
) -> Compressed | None:
    """Check what a method leaves of one text; None where the budget is too small for what is protected, and the error says so."""

    def run() -> Compressed:
        return compressor(passages, QUESTION, keep, method=method, protect=protect)

    try:
        made = run()
    except ValueError as error:
        expect(
            "keep=" in str(error) and "takes" in str(error), f"an error that says how many tokens are needed: {error}"
        )
        return None
    where = f"of {name}, keep={keep}, protect={protect}"
    count = compressor.count
    room = keep if isinstance(keep, int) else max(1, int(keep * made.before + 1e-9))
    expect(made.source == "\n\n".join(passages), f"the source to be the passages {where}")
    expect(made.before == count(made.source) and made.after == count(made.text), f"counts of the texts {where}")
    expect(made.after <= room or made.before <= room, f"at most {room} tokens {where}; got {made.after}")
    expect(made.text == made.source or made.before > room, f"the whole text where it fits {where}")
    places = [p for span in made.spans for p in span]
    expect(places == sorted(places), f"stretches in their order {where}; got {made.spans}")
    bounds = {m.start() for m in CLUSTER.finditer(made.source)} | {len(made.source)}
    expect(set(places) <= bounds, f"no character to be cut {where}")
    stay = protected(made.source, made.starts, protect)
    expect(all(any(a <= s and e <= b for a, b in made.spans) for s, e in stay), f"what is protected to stay {where}")
    again = run()
    expect(again.spans == made.spans, f"the same twice {where}")
    units = cut(made.source, made.starts, method.unit, stay)
    inside = [i for i, (a, b) in enumerate(units.spans) if any(s <= a and b <= e for s, e in made.spans)]
    if not method.adaptive and made.text != made.source:
        for unit in sorted(set(range(len(units.spans))) - set(inside)):
            more = count(units.join(sorted([*inside, unit])))
            expect(
                more > room, f"no unit left out that would fit {where}: {units.units()[unit]!r} makes {more} of {room}"
            )
    return made


def _check_apart(compressor: Compressor, method: PromptMethod, passages: Sequence[str], name: str) -> None:
    """With budgets of their own, a passage is left as it would be alone."""
    try:
        alone = [compressor(p, QUESTION, 0.5, method=method).text for p in passages]
    except ValueError:
        return  # chat markers take more than that
    together = compressor(list(passages), QUESTION, 0.5, method=method, each=True)
    expect(
        together.text == "\n\n".join(t for t in alone if t), f"each passage as alone, of {name}; got {together.text!r}"
    )
