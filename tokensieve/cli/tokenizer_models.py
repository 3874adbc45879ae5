"""The commands of tokenizers that write: train one, extend a model's, move a model to another."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tokensieve.cli.common import Json, print_table
from tokensieve.cli.progress import Steps

if TYPE_CHECKING:
    from tokensieve.text.adapt import Bits, Point

Texts = Annotated[list[Path], typer.Argument(help="Files of text in UTF-8, or folders of them.")]
Out = Annotated[Path, typer.Option(help="The folder to write.")]
Judged = Annotated[int, typer.Option("--judged", min=1, help="Bytes of held-out text that bits are counted on.")]


def train(
    texts: Texts,
    out: Out,
    vocab: Annotated[int, typer.Option(help="Tokens, special ones and bytes included.")] = 16384,
    algorithm: Annotated[str, typer.Option(help="bpe, unigram or wordpiece.")] = "bpe",
    superwords: Annotated[
        float, typer.Option(help="Share of what is learned that goes across words; 0.45 is a good one.")
    ] = 0.0,
    barriers: Annotated[
        str | None, typer.Option(help="What no token goes across, of words,newline,punctuation; 'none' for nothing.")
    ] = None,
    numbers: Annotated[str | None, typer.Option(help="How digits are cut: r2l, l2r, single, comma or free.")] = None,
    parity: Annotated[
        Path | None, typer.Option(help="A folder of LANGUAGE.txt with parallel lines; languages then cost alike.")
    ] = None,
    bytes_: Annotated[
        bool, typer.Option("--bytes", help="Learn from raw bytes of any files, with no UTF-8 step.")
    ] = False,
    special: Annotated[str, typer.Option(help="Special tokens, with commas between.")] = "<|endoftext|>",
    sample: Annotated[
        int, typer.Option(min=0, help="MB of text to learn from, of documents drawn at random; all if 0.")
    ] = 0,
    seed: Annotated[int, typer.Option(min=0, help="Of that draw.")] = 0,
    json_: Json = False,
) -> None:
    """Train a tokenizer on your texts: a tokenizer.json that from_pretrained opens, and its recipe."""
    from tokensieve.text.config import TokenizerConfig
    from tokensieve.text.corpus import read, read_bytes
    from tokensieve.text.parallel import by_language
    from tokensieve.text.train import check_writable
    from tokensieve.text.train import train as make

    given = None if barriers is None else tuple(b for b in barriers.split(",") if b)
    if bytes_:
        chosen: dict[str, Any] = {"barriers": given or ("none",), "numbers": numbers or "free"}
    else:
        chosen = ({} if given is None else {"barriers": given}) | ({} if numbers is None else {"numbers": numbers})
    config = TokenizerConfig(
        vocab=vocab, algorithm=algorithm, superwords=superwords, raw=bytes_, sample=sample * 1_000_000, seed=seed,
        special=tuple(s for s in special.split(",") if s), **chosen,
    )  # fmt: skip
    check_writable(out)
    dev = by_language(parity) if parity else None
    corpus = read_bytes(texts) if bytes_ else read(texts)
    made = make(corpus, config, dev, show=not json_)
    made.save(out)
    if json_:
        typer.echo(json.dumps({"config": config.json(), **made.facts}, indent=2))
        return
    learned = ", ".join(f"{count:,} merges {where}" for where, count in made.facts.get("merges", {}).items())
    told = made.facts["learned from"]
    typer.echo(
        f"{out}: {made.facts['vocabulary']:,} tokens" + (f" ({learned})" if learned else "")
        + f", learned from {told['files']:,} files of {told['bytes'] / 1e6:,.1f} MB"
    )  # fmt: skip
    for name, why in list(corpus.skipped.items())[:20]:
        typer.echo(f"passed over: {name}: {why}")


def extend(
    model: Annotated[str, typer.Argument(help="A causal language model's folder.")],
    texts: Texts,
    out: Out,
    add: Annotated[int, typer.Option(min=1, help="New tokens.")] = 4096,
    words_only: Annotated[bool, typer.Option("--words-only", help="No new token goes across words.")] = False,
    tune: Annotated[int, typer.Option(min=0, help="Steps to train the new rows for, of 1,024 tokens each.")] = 0,
    tune_all: Annotated[bool, typer.Option("--tune-all", help="Train all weights instead of the new rows.")] = False,
    judged: Judged = 40_000,
    seed: Annotated[int, typer.Option(min=0, help="Of the draw of held-out texts.")] = 0,
    json_: Json = False,
) -> None:
    """Add tokens of your texts to a model's tokenizer: what is saved beside what is lost. Every old id stays."""
    from tokensieve.text import adapt, models
    from tokensieve.text.corpus import read
    from tokensieve.text.extend import extend as grow
    from tokensieve.text.loading import open_tokenizer

    tokenizer = open_tokenizer(model)
    learned, held = adapt.split(read(texts).documents, judged, seed)
    _refuse(out, tune)
    opened = models.open_model(model)
    grown = grow(tokenizer, learned, add, words_only, show=not json_)
    with Steps(json_) as steps:
        before = adapt.Bits("before", adapt.count(tokenizer, held), models.bits_per_byte(
            opened, tokenizer, held, lambda done: steps.step("bits before", done, len(held))))  # fmt: skip
        adapt.extended(opened, grown)
        after = adapt.Bits("extended", adapt.count(grown.tokenizer, held), models.bits_per_byte(
            opened, grown.tokenizer, held, lambda done: steps.step("bits after", done, len(held))))  # fmt: skip
        curve = []
        if tune:
            fresh = None if tune_all else grown.added
            curve = adapt.recovery(
                opened, grown.tokenizer, learned, held, tune, fresh, step=steps.step, kept=_put_down(out)
            )
    models.save(opened, grown.tokenizer, model, out)
    facts = {"added": len(grown.added), "first": grown.added[0], **_told([before, after], curve)}
    _finish(out, facts, [before, after], curve, json_)


def transplant(
    model: Annotated[str, typer.Argument(help="A causal language model's folder.")],
    tokenizer: Annotated[
        str, typer.Option(help="The new tokenizer: a folder, a tokenizer.json, a hub or tiktoken name.")
    ],
    out: Out,
    init: Annotated[
        str, typer.Option(help="How rows that are missing are made: omp, mean, hybrid, zero, random.")
    ] = "mean",
    donor: Annotated[
        str | None,
        typer.Option(
            help="Vectors of the new tokens: a model's folder of that tokenizer, 'minilm', or 'corpus' (of --text)."
        ),
    ] = None,
    text: Annotated[
        list[Path] | None, typer.Option(help="Texts to judge by, and to tune on; Python's help if not given.")
    ] = None,
    tune: Annotated[int, typer.Option(min=0, help="Steps to train the new rows for, of 1,024 tokens each.")] = 0,
    tune_all: Annotated[bool, typer.Option("--tune-all", help="Train all weights instead of the new rows.")] = False,
    judged: Judged = 40_000,
    seed: Annotated[int, typer.Option(min=0, help="Of what is drawn at random.")] = 0,
    json_: Json = False,
) -> None:
    """Move a model to another tokenizer without training: rows of shared tokens stay, the others are made up."""
    from tokensieve.text import adapt, models
    from tokensieve.text.loading import open_tokenizer
    from tokensieve.text.rows import INITS
    from tokensieve.text.transplant import roles, settled

    INITS.get(init)
    if INITS.entry(init).facts.get("donor") and donor is None:
        raise ValueError(f"--init {init} needs --donor: a model's folder of the new tokenizer, 'minilm' or 'corpus'")
    _refuse(out, tune)
    old, new = open_tokenizer(model), open_tokenizer(tokenizer)
    learned, held = adapt.split(_texts(text), judged, seed)
    opened = models.open_model(model)
    space = None if donor is None else _donor(donor, new, learned)
    size = max(new.get_vocab(with_added_tokens=True).values()) + 1
    with Steps(json_) as steps:
        before = adapt.Bits("before", adapt.count(old, held), models.bits_per_byte(
            opened, old, held, lambda done: steps.step("bits before", done, len(held))))  # fmt: skip
        settings = models.settings_of(tokenizer)
        configs = (opened.config, opened.config.get_text_config(), opened.generation_config)
        same, lost = settled(configs, old, new, roles(new, settings))
        gaps = adapt.gaps_of(opened, old, new, space, seed, same)
        rows = [before, *adapt.compared(opened, gaps, new, size, held, steps.step)]
        adapt.moved(opened, gaps, init, size)
        curve = []
        if tune:
            fresh = None if tune_all else gaps[0].missing.tolist()
            curve = adapt.recovery(opened, new, learned, held, tune, fresh, step=steps.step, kept=_put_down(out))
    models.save(opened, new, tokenizer, out, settings)
    facts = {"shared": len(gaps[0].shared_new), "missing": len(gaps[0].missing), "init": init, **_told(rows, curve)}
    if lost:
        typer.echo(f"the new tokenizer has no token for {', '.join(lost)}; set them in config.json", err=True)
    _finish(out, facts, rows, curve, json_)


def _texts(given: Sequence[Path] | None) -> Any:
    from tokensieve.text.corpus import Document, read

    if given:
        return read(list(given)).documents
    from pydoc_data.topics import topics

    return [Document(name, topics[name]) for name in sorted(topics)]


def _donor(donor: str, new: Any, texts: Sequence[str]) -> Any:
    """The donor space by its name."""
    from tokensieve.text import donors, models

    if donor == "corpus":
        return donors.of_corpus(new, texts)
    if donor == "minilm":
        from tokensieve.retrieval.encoders.loading import load_encoder

        encoder = load_encoder()
        return donors.of_strings(new, lambda strings: donors.pooled(encoder.documents(list(strings))))
    return models.embeddings(models.open_model(donor))[0]


def _put_down(out: Path) -> Path:
    """Where an interrupted run keeps what it tuned."""
    return out.with_name(out.name + ".tuning")


def _refuse(out: Path, tune: int) -> None:
    if out.exists():
        raise ValueError(f"--out {out} exists; give a folder that does not, so that nothing is written over")
    from tokensieve.text.train import check_writable

    check_writable(out)
    if tune and _put_down(out).exists():
        typer.echo(f"{_put_down(out)}: an interrupted run, whose tuning is taken up", err=True)


def _told(rows: Sequence[Bits], curve: Sequence[Point]) -> dict[str, Any]:
    return {"bits": [asdict(r) for r in rows], "curve": [asdict(p) for p in curve]}


def _finish(out: Path, facts: dict[str, Any], rows: Sequence[Bits], curve: Sequence[Point], json_: bool) -> None:
    """Print what was saved beside what was lost, and keep it with the model."""
    from tokensieve.core.files import write_json

    write_json(out / "vocabulary.json", facts)
    if curve:
        _put_down(out).unlink()
        from tokensieve.text.curve import draw

        draw(curve, rows[0].bits, out / "recovery.png")
    if json_:
        typer.echo(json.dumps(facts, indent=2))
        return
    first = rows[0]
    head = ("vocabulary", "tokens", "tokens saved", "bits per byte", "bits per byte lost")
    cells = [
        (r.name, f"{r.tokens:,}", f"{1 - r.tokens / first.tokens:.1%}", f"{r.bits:.3f}", f"{r.bits - first.bits:+.3f}")
        for r in rows
    ]
    print_table(head, cells)
    if curve:
        print_table(("tokens trained on", "bits per byte"), [(f"{p.trained:,}", f"{p.bits:.3f}") for p in curve])
        typer.echo(f"{out / 'recovery.png'}: the curve")
    typer.echo(f"{out}: model and tokenizer")
