"""Evaluate a trained language model and write it as a plain Hugging Face directory with its card.

`python -m tokensieve.testbed.lm.card --corpus DIR --out DIR` takes what `corpus` and `train` left there.
"""

import json
import shutil
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer

from ..card import made, save
from . import evaluate
from .corpus import REPEAT
from .model import SIZES, THETA, load, path
from .ngram import KneserNey
from .train import train

KINDS = ("code", "guide", "manual")
WINDOWS = (512, 2048)


def package(
    model, tokenizer, corpus: Path, target: Path, size: str, seed: int, records: dict, samples: int = 8, notes: str = ""
) -> dict:
    """Save in bfloat16, load again, measure what was loaded in float32, write the record and the card."""
    target.mkdir(parents=True, exist_ok=True)
    save(model, tokenizer, target)
    if corpus.resolve() != target.resolve():
        shutil.copyfile(corpus / "heldout.json.xz", target / "heldout.json.xz")
    saved, tokenizer = load(directory=target, device=model.device)
    record = {
        "size": size,
        "seed": seed,
        **made(records, saved.device, ("torch", "transformers", "tokenizers")),
        "notes": notes,
        "parameters": sum(p.numel() for p in saved.parameters()),
        "corpus": json.loads((corpus / "corpus.json").read_text()),
        "test": measure(saved, tokenizer, np.load(corpus / "train.npy"), samples),
    }
    (target / "training.json").write_text(json.dumps(record, indent=2) + "\n")
    (target / "MODEL_CARD.md").write_text(_card(record, saved.config, target))
    return record


def measure(model, tokenizer, train_ids: np.ndarray, samples: int) -> dict:
    """Everything the card states."""
    rival = KneserNey(train_ids, len(tokenizer))
    return {
        "samples": samples,
        "bits per byte": {
            kind: {str(w): evaluate.bits_per_byte(model, tokenizer, kind, w) for w in WINDOWS}
            | {"5-gram": ngram_bits(rival, tokenizer, kind)}
            for kind in KINDS
        },
        "needle": _text_keys(evaluate.needle(model, tokenizer, samples=samples)),
        "multi": _text_keys(evaluate.multi(model, tokenizer, samples=samples)),
        "lookup": _text_keys(evaluate.lookup(model, tokenizer, samples=samples)),
        "copying": _text_keys(evaluate.copying(model, tokenizer, samples=samples)),
        "continuation": evaluate.perplexity(model, tokenizer, samples=2 * samples),
        "code": evaluate.code(model, tokenizer, samples=2 * samples),
    }


def ngram_bits(rival: KneserNey, tokenizer, kind: str, window: int = 2048) -> float:
    """Bits per byte of the n-gram model on the tokens that `bits_per_byte` counts."""
    ids = evaluate.stream(tokenizer, kind)
    rows = ids[: len(ids) // window * window].reshape(-1, window)
    bits = -rival.log2(rows.ravel()).reshape(rows.shape)
    counts = np.stack([evaluate.scored(row, tokenizer) for row in rows])
    size = sum(len(tokenizer.decode(row[on]).encode()) for row, on in zip(rows, counts, strict=True))
    return float(bits[counts].sum() / size)


def _text_keys(table: dict) -> dict:
    return {str(k): _text_keys(v) if isinstance(v, dict) else v for k, v in table.items()}


def _card(record: dict, config, target: Path) -> str:
    test, corpus = record["test"], record["corpus"]
    bits = "\n".join(
        f"| {kind} | " + " | ".join(f"{row[column]:.3f}" for column in (*map(str, WINDOWS), "5-gram")) + " |"
        for kind, row in test["bits per byte"].items()
    )
    depths = list(next(iter(test["needle"].values())))
    needle = "\n".join(
        f"| {length} | " + " | ".join(f"{row[depth]:.1%}" for depth in depths) + " |"
        for length, row in test["needle"].items()
    )
    others = "\n".join(
        f"| {length} | {test['multi'][length]:.1%} | {test['lookup'][length]:.1%} | {test['copying'][length]:.1%} |"
        for length in test["multi"]
    )
    stages = "\n".join(
        f"| {name} | {stage['step']} | {stage['seconds'] / 60:.1f} |" for name, stage in record["stages"].items()
    )
    text = "\n".join(
        f"| {kind} | {row['files']} | {row['bytes'] / 1e6:.2f} | {corpus['held out'].get(kind, {'files': 0})['files']} | "
        f"{corpus['held out'].get(kind, {'bytes': 0})['bytes'] / 1e6:.2f} |"
        for kind, row in corpus["train"].items()
        if kind != "tokens"
    )
    known = test["code"]
    megabytes = (target / "model.safetensors").stat().st_size / 1e6
    notes = f"\n\n{record['notes']}" if record["notes"] else ""
    return f"""---
license: apache-2.0
library_name: transformers
pipeline_tag: text-generation
---

# The tokensieve testbed language model

A Llama of {record["parameters"] / 1e6:.1f} M parameters, trained from nothing on the text of a Debian and Python installation.
It exists so that the compression of the KV cache can be measured anywhere, with no download: it finds in thousands of tokens
what it is asked for. It knows little about the world and is of no other use.

## Geometry

| | |
|---|---|
| layers, width | {config.num_hidden_layers}, {config.hidden_size}; mlp {config.intermediate_size} |
| attention | {config.num_attention_heads} query heads, {config.num_key_value_heads} key-value heads, {config.head_dim} wide |
| positions | rotary, theta {THETA:.0e}; trained up to {config.max_position_embeddings} tokens |
| tokens | byte-level BPE, {config.vocab_size} |
| weights | bfloat16 safetensors, {megabytes:.1f} MB |

## Use

```python
from tokensieve.testbed import lm

model, tokenizer = lm.load()
lm.needle(model, tokenizer, lengths=(2048,))
```

`LlamaForCausalLM.from_pretrained` and `AutoTokenizer.from_pretrained` read this directory as well.

## Measured

Weights as saved, computed in float32, full cache, held-out text; {test["samples"]} contexts of each length (and depth).

**Bits per byte**, by tokens of context (windows that do not overlap), beside an interpolated modified Kneser-Ney 5-gram model
counted on the whole training text, in the same tokens, on the same held-out ones:

| text | {" | ".join(map(str, WINDOWS))} | 5-gram |
|---|---|---|---|
{bits}

**Needle recall**, by tokens (context and question) and depth: one fact (`The code of` two words `is` two words `.`) in held-out
text; right if both words are.

| tokens | {" | ".join(depths)} |
|{"---|" * (len(depths) + 1)}
{needle}

**Several facts** (16 in the text), **lookup** (a context that is all `key : value` lines, 32 asked) and **copying** (32 random
words, counted by word):

| tokens | facts | lookup | copying |
|---|---|---|---|
{others}

**Code completion**, next token of held-out Python after 1792 tokens: {known["all"]:.1%} of all,
{known["identifiers"]:.1%} in identifiers, {known["known"]:.1%} in identifiers that the context names.

## Text

| kind | files | MB | held-out files | MB |
|---|---|---|---|---|
{text}

`code` is the standard library of Python {corpus["python"]} without tests, `guide` the topics of Python's `help()`, `manual` the
manual pages of a Debian 12 developer's machine, `licence` what /usr/share/common-licenses holds. It is split by file, and a
paragraph of {REPEAT} characters or more stands only once in all of it, so none is in both splits.
{corpus["train"]["tokens"]:,} training tokens; the sha256 of their ids begins {corpus["sha256"][:16]}. Another installation gives
another corpus. `heldout.json.xz` is the held-out text: Python's (PSF licence) and manual pages of OpenSSL (Apache-2.0).

## Training

| lesson | steps | minutes |
|---|---|---|
{stages}

The sequences grow from 256 to 8192 tokens, those of the last lesson are half as long; text is mixed with facts strewn over
text, lists of pairs and random words to be repeated, of which only the answers are learned. The first two layers start with
heads that look one to three tokens back and repeat what followed the same three tokens before (`_look_back` in `model.py`):
an untrained model already recalls.
Size "{record["size"]}", seed {record["seed"]}, one thread of {record["machine"]}, {record["date"]}. Versions are in
`training.json`.{notes}

    python -m tokensieve.testbed.lm.corpus --out runs/corpus
    python -m tokensieve.testbed.lm.train --corpus runs/corpus --out runs/lm
    python -m tokensieve.testbed.lm.card --corpus runs/corpus --out runs/lm --to runs/llama

## Limits

Recall here is mostly exact matching of the last few tokens, begun by hand and trained further. Real models also recall by
meaning, over more layers. Use it to compare methods and to find mistakes, not to predict what a real model loses.
"""


def main(
    corpus: Annotated[Path, typer.Option(help="What the corpus script wrote.")],
    out: Annotated[Path, typer.Option(help="Where the training left its checkpoints.")],
    to: Annotated[Path | None, typer.Option(help="The directory to write; the packaged one if not given.")] = None,
    size: Annotated[str, typer.Option(help=f"One of {', '.join(SIZES)}.")] = "cpu",
    scale: Annotated[float, typer.Option(help="As given to the training.")] = 1.0,
    seed: int = 0,
    samples: Annotated[int, typer.Option(help="Contexts of each length and depth.")] = 8,
    notes: Annotated[str, typer.Option(help="What the card should say beside the plan.")] = "",
):
    """Package a finished training."""
    from .model import build_tokenizer

    torch.set_num_threads(1)
    model, records = train(corpus, out, size, scale, seed=seed)
    tokenizer = build_tokenizer(corpus / "tokenizer.json")
    record = package(model, tokenizer, corpus, to or path(), size, seed, records, samples, notes)
    typer.echo(json.dumps(record["test"], indent=2))


if __name__ == "__main__":
    typer.run(main)
