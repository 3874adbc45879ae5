"""Write the model of several pictures as a Hugging Face directory, with what was measured on it."""

import json
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import torch

from .card import machine
from .evaluate import evaluate_several
from .onevision import TOKENS, ItemReader, load_several
from .saved import hub_names
from .spelled import SPOTS

WEAK = 0.25  # a kind that gains less than this over its prior is called weak
FORMS = {"clip": "clips of 8 frames", "pair": "pairs of pictures", "anyres": "large pictures"}


def package(
    model, reader: ItemReader, target: Path, seed: int, records: dict, number: int = 150, notes: str = ""
) -> dict[str, dict]:
    """Save in bfloat16, load again, evaluate what was loaded on the test split, write card and record.

    Returns one accuracy table for each form, of the saved weights in float32.
    """
    target.mkdir(parents=True, exist_ok=True)
    model.to(torch.bfloat16).save_pretrained(target)
    hub_names(target)
    reader.save(target)
    (target / "model.safetensors").chmod(0o644)  # safetensors writes for the owner alone
    saved, _ = load_several(directory=target, device=model.device)
    tables = evaluate_several(saved, number)
    record = {
        "seed": seed,
        "date": datetime.now(UTC).date().isoformat(),
        "stages": records,
        "minutes": round(sum(stage["seconds"] for stage in records.values()) / 60, 1),
        "machine": machine(saved.device),
        "threads": torch.get_num_threads(),
        "versions": {name: version(name) for name in ("torch", "transformers", "scikit-learn", "matplotlib", "pillow")},
        "notes": notes,
        "parameters": sum(p.numel() for p in saved.parameters()),
        "test": {"number": number, "seed": 0, "accuracy": tables},
    }
    (target / "training.json").write_text(json.dumps(record, indent=2) + "\n")
    write_card(target, record, saved.config)
    return tables


def write_card(target: Path, record: dict, config) -> None:
    megabytes = (target / "model.safetensors").stat().st_size / 1e6
    (target / "MODEL_CARD.md").write_text(_card(record, config, megabytes))


def _card(record: dict, config, megabytes: float) -> str:
    test = record["test"]
    tables = test["accuracy"]
    rows = "\n".join(
        f"| {FORMS[form]} | {kind} | {row['accuracy']:.1%} | {row['prior']:.1%} | {row['n']} |"
        for form, table in tables.items()
        for kind, row in table.items()
    )
    weak = [
        f"{kind} of {FORMS[form]} ({row['accuracy']:.1%}, prior {row['prior']:.1%})"
        for form, table in tables.items()
        for kind, row in table.items()
        if kind != "all" and row["accuracy"] < row["prior"] + WEAK
    ]
    few = f"{100 * WEAK:.0f} points above their prior"
    learned = f"Learned weakly, less than {few}: {'; '.join(weak)}." if weak else f"Every kind is {few} or more."
    stages = "\n".join(
        f"| {name} | {stage['step']} | {stage['seconds'] / 60:.1f} |" for name, stage in record["stages"].items()
    )
    cut = [name for name, stage in record["stages"].items() if not stage["done"]]
    early = f" Stopped before the end of their schedule: {', '.join(cut)}." if cut else ""
    notes = f"\n{record['notes']}" if record["notes"] else ""
    return f"""---
license: apache-2.0
library_name: transformers
pipeline_tag: image-text-to-text
---

# The tokensieve testbed OneVision

A LLaVA-OneVision of {record["parameters"] / 1e6:.1f} M parameters that reads clips, pairs of pictures, and pictures in
crops. It is the testbed LLaVA beside it, trained on: the vision tower is that one's, bit for bit; projector, line end and
language model are not. It exists so that token reduction for several pictures can be measured anywhere, with no download, and
is of no other use.

## Geometry

| prompt | visual tokens |
|---|---|
| clip of 8 frames of 336 px | 8 x 144 and one more: {TOKENS["clip"]}; 24 x 24 patches of a frame are pooled to 12 x 12 |
| pair of pictures of 336 px | 2 x 577: {TOKENS["pair"]}; 24 x 24 and one more each |
| picture of 672 px, thumbnail and four crops | 576 + 24 x 25: {TOKENS["anyres"]}; the 48 x 48 patches of the crops are pooled |

Tower and language model have the sizes of the testbed LLaVA's, with a vocabulary of {config.text_config.vocab_size}
words; weights are bfloat16 safetensors, {megabytes:.1f} MB. The class is transformers'
`LlavaOnevisionForConditionalGeneration`, unmodified.

## Use

```python
from tokensieve.testbed import clip_set, correct, load_several

model, reader = load_several()
correct(model, reader, clip_set(each=2), batch=2)
```

`reader(items)` makes model inputs of items of one form. `from_pretrained` of the model class, `AutoTokenizer` and
`LlavaOnevisionImageProcessorPil` read this directory as well; torchvision is not needed.

## Accuracy

On {test["number"]} clips, pairs and large pictures of the test split (seed {test["seed"]}), every token kept, weights as saved,
float32. An answer counts if all its words are right. The prior always gives the most frequent training answer to the
question's template. Progress was watched on 16 others of each.

| prompt | kind | accuracy | prior | n |
|---|---|---|---|---|
{rows}

"all" is the mean over the kinds. {learned}

## Training

| stage | steps | minutes |
|---|---|---|
{stages}

From the packaged LLaVA. `talk` trains the language model on prompts of {SPOTS} visual tokens that are no pictures: sums of
what the projector says of kind, name, colour and place, read off 160 training scenes by least squares, at the places that
such tokens have among all. `answer` trains projector, line end and language model on pictures, with every token; the tower
stays fixed. Batches of clips, pairs and large pictures take turns, three to two to one. Training and test
split differ in random stream and handwritten digits, as for the first model; no training picture was seen twice.
Seed {record["seed"]}, on {record["machine"]}, {record["threads"]} thread, bfloat16 autocast, {record["date"]}.
The versions are in `training.json`. The stages ran for a set time, so another machine gives slightly other
weights.{early}{notes}

    python -m tokensieve.testbed.train_several --out runs/several --minutes {record["minutes"]:.0f}

## Limits

Those of the first model. What stands still in these clips stands still to the pixel, which real video does not.
"""
