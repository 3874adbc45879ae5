"""Train the testbed's language model from nothing: `python -m tokensieve.testbed.lm.train --corpus DIR --out DIR`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from torch import nn
from torch.nn import functional as F

from ..loop import TrainingStage, fit
from . import evaluate, tasks
from .corpus import VOCABULARY
from .model import SIZES, build, build_tokenizer

ANSWERS, LEAST = (
    2.0,
    0.05,
)  # weight of an answer's token beside one of the text; of all answers beside all text at least
GOLDEN = 0.6180339887498949


@dataclass(frozen=True)
class Lesson:
    """A stretch of the curriculum: how long the sequences are, and what share of them is of which kind."""

    steps: int
    length: int
    batch: int
    rate: float
    end: float  # share of the rate that is left at the end
    text: float
    facts: float
    pairs: float
    copy: float
    most: int = 64  # facts in one text


# Constant rates at first, so that a shorter or longer training differs only in when the rates begin to fall.
PLAN = {
    "recall": Lesson(60, 256, 8, 1.3e-3, 1.0, 0.5, 0.2, 0.2, 0.1),
    "short": Lesson(2000, 512, 8, 1.3e-3, 1.0, 0.8, 0.08, 0.07, 0.05),
    "middle": Lesson(240, 2048, 2, 9e-4, 0.4, 0.7, 0.2, 0.05, 0.05),
    "long": Lesson(80, 8192, 1, 8e-4, 0.02, 0.4, 0.5, 0.05, 0.05),
    # More than a thousand keys at once: only long lists teach heads to tell that many apart.
    "lists": Lesson(160, 8192, 1, 8e-4, 0.02, 0.3, 0.2, 0.45, 0.05),
    # The first question of a text, which no question before it has announced.
    "needles": Lesson(100, 4096, 2, 5e-4, 0.02, 0.1, 0.6, 0.25, 0.05, most=3),
}


def curriculum(lesson: Lesson, say: tasks.Speech, ids: np.ndarray, seed: int):
    """`make(i)`: the sample number i of a lesson, as token ids and the labels of text and answers."""

    def window(i: int) -> np.ndarray:
        """Successive windows fall into the largest gap: the whole corpus is read evenly before any of it twice."""
        start = (i + 1) * GOLDEN % 1.0 * (len(ids) - lesson.length)
        return ids[int(start) : int(start) + lesson.length].astype(np.int64)

    def make(i: int) -> dict[str, np.ndarray]:
        rng = np.random.default_rng((seed, lesson.length, i))
        shares = np.array([lesson.text, lesson.facts, lesson.pairs, lesson.copy])
        kind = int(rng.choice(4, p=shares / shares.sum()))
        if kind == 0:
            sample = tasks.plain(window(i))
        elif kind == 1:
            most = int(np.clip(lesson.length // 48, 1, lesson.most))
            sample = tasks.facts(rng, say, window(i), lesson.length, int(rng.integers(1, most + 1)))
        elif kind == 2:
            sample = tasks.pairs(rng, say, lesson.length)
        else:
            sample = tasks.copy(rng, say, window(i), lesson.length, int(rng.integers(8, min(lesson.length // 4, 128))))
        return {"ids": sample.ids, "text": sample.text_labels(), "answers": sample.answer_labels()}

    return make


def collate(samples: list[dict[str, np.ndarray]]) -> dict[str, torch.Tensor]:
    """Rows of one length, cut to the shortest; lists of pairs end a few tokens early."""
    short = min(len(sample["ids"]) for sample in samples)
    return {key: torch.from_numpy(np.stack([sample[key][:short] for sample in samples])) for key in samples[0]}


def loss_of(model, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, dict[str, float]]:
    """The weighted mean loss over text and answers; the logits are computed only where something is to be predicted."""
    hidden = model.model(batch["ids"], use_cache=False).last_hidden_state
    text, answers = batch["text"].flatten(), batch["answers"].flatten()
    gold = torch.where(answers >= 0, answers, text)
    on = gold >= 0
    logits = model.lm_head(hidden.flatten(0, 1)[on])
    losses = F.cross_entropy(logits.float(), gold[on], reduction="none")
    is_answer = (answers >= 0)[on]
    weigh = max(ANSWERS, LEAST * int((~is_answer).sum()) / max(int(is_answer.sum()), 1))
    weight = torch.where(is_answer, weigh, 1.0)
    right = (logits.argmax(-1) == gold[on])[is_answer].float()
    seen = {"text": losses[~is_answer].mean().item(), "recall": right.mean().item()}
    return (losses * weight).sum() / weight.sum(), seen


def train(
    corpus: Path,
    out: Path,
    size: str = "cpu",
    scale: float = 1.0,
    seed: int = 0,
    device: str = "cpu",
    plan: dict[str, Lesson] = PLAN,
    stop_at: int | None = None,
    watch: bool = True,
):
    """Run the lessons that are not done yet in `out`; returns the model and the record of every lesson.

    `scale` multiplies the steps of all lessons; it may change between calls. Interrupted at any time, the next call goes
    on from the last checkpoint.
    """
    out.mkdir(parents=True, exist_ok=True)
    tokenizer = build_tokenizer(corpus / "tokenizer.json")
    ids, say = np.load(corpus / "train.npy", mmap_mode="r"), tasks.speech(tokenizer)
    counts = torch.from_numpy(np.bincount(ids, minlength=VOCABULARY)).float()
    model = build(size, seed, counts).to(device)
    records = {}

    def loss(batch: Any):
        return loss_of(model, batch)

    for name, lesson in plan.items():
        steps = max(1, round(lesson.steps * scale))
        stage = TrainingStage(name, lesson.rate, lesson.batch, steps=steps, end=lesson.end)
        records[name] = fit(
            stage,
            nn.ModuleDict({"model": model}),
            curriculum(lesson, say, ids, seed),
            collate,
            loss,
            out,
            workers=0,
            watch=(lambda: _glance(model.eval(), tokenizer)) if watch else None,
            watch_every=900.0,
            stop_at=stop_at,
        )
        if not records[name]["done"]:
            break
    return model.eval(), records


def _glance(model, tokenizer) -> dict[str, float]:
    """A few seconds' worth of evaluation, for the log."""
    with torch.autocast(model.device.type, torch.bfloat16):
        recall = {f"multi {n}": r for n, r in evaluate.multi(model, tokenizer, (2048,), samples=4, seed=1).items()}
        bits = {
            f"bits {k}": evaluate.bits_per_byte(model, tokenizer, k, tokens_at_most=16384) for k in ("code", "guide")
        }
    return recall | bits


def main(
    corpus: Annotated[Path, typer.Option(help="What `python -m tokensieve.testbed.lm.corpus` wrote.")],
    out: Annotated[Path, typer.Option(help="Where checkpoints and the log go.")],
    size: Annotated[str, typer.Option(help=f"One of {', '.join(SIZES)}.")] = "cpu",
    scale: Annotated[float, typer.Option(help="Multiplies the steps of all lessons.")] = 1.0,
    seed: int = 0,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cuda" if torch.cuda.is_available() else "cpu",
):
    """Train on the thread it is given; `card` then evaluates and packages the result."""
    torch.set_num_threads(1)
    _, records = train(corpus, out, size, scale, seed=seed, device=device)
    for name, record in records.items():
        typer.echo(f"{name:8} {record['step']} steps, {record['seconds'] / 60:.1f} minutes")


if __name__ == "__main__":
    typer.run(main)
