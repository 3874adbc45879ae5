"""How much silence behind the last word a Whisper needs: word error rates of a real one on sentences that espeak-ng speaks.

`python -m benchmarks.speech [--sentences 100]` runs Whisper tiny.en on them in full, cut behind the speech plus a margin with and
without frames of the rest, and with frames merged on top, one after the other; resumed from out/speech.json, also with more
sentences. Margin and rest are chosen on every second one and told on the others; `--page` puts the table into
docs/how-to/encoder-speed.md.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

import tokensieve as ts
from benchmarks.pages import fill, table
from tokensieve.core.files import write_json
from tokensieve.planner.encoders.fidelity import word_errors, words
from tokensieve.testbed import real
from tokensieve.testbed.real.espeak import speak

PAGE = Path(__file__).parent.parent / "docs" / "how-to" / "encoder-speed.md"
FORMAT = "tokensieve.speech.1"
CUTS = (
    (0.0, 0),
    (0.5, 0),
    (1.0, 0),
    (2.0, 0),
    (4.0, 0),
    (0.0, 32),
    (0.25, 32),
    (0.5, 32),
    (0.0, 16),
    (0.25, 16),
    (0.5, 16),
    (0.5, 8),
)
"""Seconds of margin, and frames of the rest."""
LONGEST = 100
"""Tokens that are written down at most: a loop would go on to the 448 that the model has."""

WHO = ("the old farmer", "my younger sister", "a tall stranger", "the new teacher", "our neighbor", "the captain",
       "his uncle", "the woman in the red coat", "a group of students", "the baker", "her doctor", "the little boy",
       "an engineer")  # fmt: skip
DID = ("carried two baskets of apples", "forgot a heavy suitcase", "painted a small wooden boat", "bought seven yellow flowers",
       "left a letter on the table", "found a silver watch", "cooked a pot of soup", "read the morning newspaper",
       "repaired the broken window", "drew a map of the island", "sold thirty books", "hid the key under a stone",
       "watched the birds in the garden", "opened a bottle of water")  # fmt: skip
WHERE = ("at the market", "near the river", "behind the school", "in the kitchen", "at the train station",
         "on the second floor", "next to the church", "in front of the hotel", "by the lake",
         "at the end of the street")  # fmt: skip
WHEN = ("on Monday morning", "last summer", "before the rain began", "late in the evening", "after a long walk",
        "at half past nine", "during the winter", "while everyone was asleep", "on the first day of March")  # fmt: skip
WHY = ("because the road was closed", "and nobody asked why", "so we had to wait", "but the weather was cold",
       "and then went home", "because there was no money left", "and the dog followed slowly")  # fmt: skip


def sentences(count: int, seed: int = 0) -> list[str]:
    """Plain sentences of seven to twenty words, all unlike."""
    draw, out = random.Random(seed), dict[str, None]()
    while len(out) < count:
        parts = [draw.choice(WHO), draw.choice(DID), draw.choice(WHERE)]
        parts += [draw.choice(more) for more in (WHEN, WHY) if draw.random() < 0.5]
        text = " ".join(parts)
        out[text[0].upper() + text[1:] + "."] = None
    return list(out)


@dataclass(frozen=True)
class Arm:
    """How sentences are heard: with what margin (None: padded), and how many of the frames are left for the decoder."""

    margin: float | None
    rest: int = 0
    method: str = ""
    keep: float = 1.0
    layers: tuple[int, ...] = ()

    @property
    def name(self) -> str:
        cut = "padded" if self.margin is None else f"margin {self.margin:g} s"
        cut += f", rest {self.rest}" if self.rest else ""
        where = f" in block {self.layers[0] + 1}" if self.layers else " over the blocks" if self.method else ""
        return cut + (f", {self.method} {self.keep:g}{where}" if self.method else "")


def merging(cut: Arm) -> list[Arm]:
    """Those that merge, behind a cut."""
    ways = [("tome", 0.5, ()), ("tome", 0.25, ()), ("tome", 0.5, (3,)), ("random", 0.5, ()), ("pool", 0.5, ())]
    return [replace(cut, method=method, keep=keep, layers=layers) for method, keep, layers in ways]


def looped(text: str) -> str:
    """A text in which what is said again and again at once is said once: three words or more that are said twice in a row, or
    fewer that are said four times."""
    said, i = words(text), 0
    while i < len(said):
        for size in range((len(said) - i) // 2, 0, -1):
            piece, times = said[i : i + size], 1
            while said[i + times * size : i + (times + 1) * size] == piece:
                times += 1
            if times >= (2 if size >= 3 else 4):
                end = i + times * size
                broken = said[end:] == piece[: len(said) - end]  # the last time it was cut short
                del said[i + size : None if broken else end]
                break
        i += 1
    return " ".join(said)


def hear(model: Any, processor: Any, features: torch.Tensor, arm: Arm) -> tuple[str, int]:
    """What is heard, and how many frames the encoder ran on."""
    with ExitStack() as held, torch.no_grad():
        cut = (
            None
            if arm.margin is None
            else held.enter_context(ts.sieve(model, "speech", margin=arm.margin, rest=arm.rest))
        )
        if arm.method:
            merged = {"keep": arm.keep, "readout": "merged", "layers": arm.layers}
            held.enter_context(ts.sieve(model, arm.method, **merged))
        states = model.get_encoder()(features)
        ids = model.generate(encoder_outputs=states, do_sample=False, num_beams=1, max_new_tokens=LONGEST)
    frames = 1500 if cut is None or cut.frames is None else cut.frames[0]
    return str(processor.batch_decode(ids, skip_special_tokens=True)[0]), frames


def rates(rows: Sequence[dict[str, Any]]) -> tuple[float, float, int]:
    """Of sentences: the word error rate, the same with each loop counted once, and how many loop."""
    count = max(1, sum(len(words(r["said"])) for r in rows))
    once = [{**r, "heard": looped(r["heard"])} for r in rows]
    return sum(map(errors, rows)) / count, sum(map(errors, once)) / count, sum(loops(r) for r in rows)


def errors(row: dict[str, Any]) -> float:
    """Words of a sentence that are wrong."""
    return word_errors(row["said"], row["heard"]) * len(words(row["said"]))


def loops(row: dict[str, Any]) -> bool:
    return looped(row["heard"]) != " ".join(words(row["heard"]))


def chosen(cells: dict[str, list[dict[str, Any]]]) -> Arm:
    """Of the cuts that keep some of the rest (the others loop) and loop in no more of every second sentence than the padded
    clips, the one of fewest frames whose errors lie at most a standard error above those of the best; differences are of pairs.
    The longest cut where all loop more."""
    half = {arm: cells[arm.name][::2] for arm in (Arm(None), *(Arm(*cut) for cut in CUTS if cut[1]))}
    full = rates(half.pop(Arm(None)))[2]
    sure = {arm: rows for arm, rows in half.items() if rates(rows)[2] <= full}
    frames = {arm: sum(r["frames"] for r in rows) for arm, rows in half.items()}
    if not sure:
        return max(frames, key=lambda arm: frames[arm])
    best = [errors(r) for r in min(sure.values(), key=lambda rows: rates(rows)[0])]
    near = []
    for arm, rows in sure.items():
        more = np.array([errors(r) for r in rows]) - best
        if more.mean() <= more.std() / len(more) ** 0.5:
            near.append(arm)
    return min(near, key=lambda arm: frames[arm])


def measure(file: Path, count: int) -> dict[str, Any]:
    """All arms on all sentences; on disk after each sentence."""
    model, processor = real.load("whisper")
    said = sentences(count)
    heard = [processor(speak(s), sampling_rate=16_000, return_tensors="pt").input_features for s in said]
    data: dict[str, Any] = {"format": FORMAT, "date": date.today().isoformat(), "cells": {}}
    if file.exists():
        data = json.loads(file.read_text(encoding="utf-8"))
        if data.get("format") != FORMAT:
            raise ValueError(f"{file} holds no word errors; move it, or choose another --out")
    cuts = [Arm(None), *(Arm(*cut) for cut in CUTS)]
    for some in (cuts, None):
        for i, text in enumerate(tqdm(said)):
            for arm in merging(chosen(data["cells"])) if some is None else some:
                rows = data["cells"].setdefault(arm.name, [])
                if len(rows) == i:
                    told, frames = hear(model, processor, heard[i], arm)
                    rows.append({"said": text, "heard": told, "frames": frames})
            write_json(file, data)
    return data


def told(data: dict[str, Any]) -> str:
    """The table, and which margin was chosen."""
    whole, rows = data["cells"][Arm(None).name], []
    for name, cells in data["cells"].items():
        line = [name, str(len(cells)), f"{sum(r['frames'] for r in cells) / len(cells):.0f}"]
        for some in (cells[::2], cells[1::2]):
            everything, once, again = rates(some)
            line += [f"{100 * everything:.1f}", f"{100 * once:.1f}", str(again)]
        rows.append(line)
    each = ("WER", "loops once", "loop")
    head = ["", "sentences", "frames", *(f"choosing: {e}" for e in each), *(f"others: {e}" for e in each)]
    count = sum(len(words(r["said"])) for r in whole)
    cut = chosen(data["cells"])
    return (
        f"Measured on {data['date']}: Whisper tiny.en, greedy, on {len(whole)} sentences ({count} words) that espeak-ng speaks, "
        "word error rates in per cent, all and with each loop counted once, and how many sentences loop; frames of the encoder, "
        "from which merging starts. `python -m benchmarks.speech` measures again.\n\n"
        + table(head, rows)
        + f"\n\nEvery second sentence took part in choosing, which gave {cut.name}: of the cuts that keep some of the rest "
        "and loop no more than the padded clip, the shortest whose errors lie at most a standard error above the best's. The "
        "others did not take part."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sentences", type=int, default=100)
    parser.add_argument("--out", type=Path, default=Path("out/speech.json"))
    parser.add_argument("--page", action="store_true", help="fill the page")
    asked = parser.parse_args()
    asked.out.parent.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    text = told(measure(asked.out, asked.sentences))
    print(text)
    if asked.page:
        fill(PAGE, "speech", text)


if __name__ == "__main__":
    main()
