"""Write a trained model as a plain Hugging Face directory, with what was measured on it."""

import json
import os
import platform
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import torch

from .evaluate import evaluate
from .model import load
from .saved import hub_names
from .scenes import TRAIN_DIGITS


def package(
    model, processor, target: Path, size: str, seed: int, records: dict, scenes: int = 1000, notes: str = ""
) -> dict:
    """Save in bfloat16, load again, evaluate what was loaded on the test split, write card and record.

    `notes` goes into the card: whatever happened that the plan of the stages does not say. Returns the accuracy
    table. The numbers are those of the saved weights, computed in float32.
    """
    save(model, processor, target)
    saved, processor = load(directory=target, device=model.device)
    table = evaluate(saved, processor, scenes=scenes)
    record = {
        "size": size,
        "seed": seed,
        **made(records, saved.device, ("torch", "transformers", "scikit-learn", "matplotlib", "pillow")),
        "notes": notes,
        "parameters": sum(p.numel() for p in saved.parameters()),
        "test": {"scenes": scenes, "seed": 0, "accuracy": table},
    }
    (target / "training.json").write_text(json.dumps(record, indent=2) + "\n")
    (target / "MODEL_CARD.md").write_text(_card(record, saved.config, target))
    return table


def save(model, processor, target: Path) -> None:
    """Weights in bfloat16, and the processor or tokenizer, readable for everyone."""
    model.to(torch.bfloat16).save_pretrained(target)
    hub_names(target)
    processor.save_pretrained(target)
    (target / "model.safetensors").chmod(0o644)  # safetensors writes for the owner alone


def made(records: dict, device: torch.device, packages: tuple[str, ...]) -> dict:
    """When, how long, on what machine and with which versions the stages were trained."""
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "stages": records,
        "minutes": round(sum(stage["seconds"] for stage in records.values()) / 60, 1),
        "machine": machine(device),
        "versions": {name: version(name) for name in packages},
    }


def machine(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{os.cpu_count()} CPU cores, {platform.machine()}"


def _card(record: dict, config, target: Path) -> str:
    vision, text = config.vision_config, config.text_config
    rows = "\n".join(
        f"| {kind} | {row['accuracy']:.1%} | {row['prior']:.1%} | {row['n']} |"
        for kind, row in record["test"]["accuracy"].items()
    )
    stages = "\n".join(
        f"| {name} | {stage['step']} | {stage['seconds'] / 60:.1f} |" for name, stage in record["stages"].items()
    )
    cut = [name for name, stage in record["stages"].items() if not stage["done"]]
    early = f" Stopped before the end of their schedule: {', '.join(cut)}." if cut else ""
    tower = f"{vision.num_hidden_layers} layers, width {vision.hidden_size}, {vision.num_attention_heads} heads"
    language = f"{text.num_hidden_layers} layers, width {text.hidden_size}, {text.num_attention_heads} heads"
    notes = f"\n{record['notes']}" if record["notes"] else ""
    megabytes = (target / "model.safetensors").stat().st_size / 1e6
    return f"""---
license: apache-2.0
library_name: transformers
pipeline_tag: image-text-to-text
---

# The tokensieve testbed LLaVA

A LLaVA of {record["parameters"] / 1e6:.1f} M parameters with the token geometry of the real one, trained from nothing on
generated pictures. It exists so that token reduction can be measured anywhere, with no download. It knows nothing about the
world and is of no other use.

## Geometry

| | |
|---|---|
| vision tower | CLIP, {tower}; 336 px, patch 14, CLS + 576 patches |
| features | layer -2, without CLS: 576 visual tokens |
| language model | Llama, {language}, vocabulary of {text.vocab_size} words |
| weights | bfloat16 safetensors, {megabytes:.1f} MB |

## Use

```python
from tokensieve.testbed import answers, load, test_set

model, processor = load()
item = test_set(n_scenes=20, questions_per_kind=1)[0]
answers(model, processor, [item.image], [item.question.text])
```

`LlavaForConditionalGeneration.from_pretrained` and `AutoProcessor.from_pretrained` read this directory as well; torchvision
is not needed. A prompt is `<image> which digit is red ? answer :`, in lower case with a blank around every word.

## Accuracy

On {record["test"]["scenes"]} scenes of the test split (seed {record["test"]["seed"]}), every token kept, weights as saved,
float32. An answer counts if all its words are right. The prior always gives the
most frequent training answer to the question's template. Progress was watched on 64 other scenes of the same split.

| kind | accuracy | prior | n |
|---|---|---|---|
{rows}

"all" is the mean over the kinds. Read the kinds apart: averages hide what token reduction breaks first.

## Data

Scenes of 336 x 336 pixels with one to five things: handwritten digits (scikit-learn's, {TRAIN_DIGITS} for training and the other
{1797 - TRAIN_DIGITS} for the test), eight shapes, and 24 words in matplotlib's DejaVu fonts, in eight colours on plain
backgrounds. Test scenes come from another random stream and use the held-out digits. Every scene was drawn once; no
training picture was seen twice. The lexicon, the fonts and the colours are the same in both splits.

## Training

| stage | steps | minutes |
|---|---|---|
{stages}

`see` trains the vision tower on dense labels, `talk` the language model on scenes given as word embeddings, `align` the
projector, `answer` everything on questions (the tower at a tenth of the rate).
Size "{record["size"]}", seed {record["seed"]}, on {record["machine"]}, {record["date"]}.
The versions are in `training.json`. The stages ran for a set time, so another machine gives slightly other weights.{early}{notes}

    python -m tokensieve.testbed.train --size cpu --out runs/cpu --minutes {record["minutes"]:.0f}
    python -m tokensieve.testbed.train --size full --out runs/full --minutes 20      # on a GPU

## Limits

The model was taught with supervision that real towers do not get: its patch features spell out what they show, and one
patch of each thing is marked as its middle. Real models spread information over more tokens, so what survives reduction
here may not survive there. Use it to compare methods and to find mistakes, not to predict the accuracy of a real system.
"""
