"""The commands of tokenizers, as one group: ``tokensieve tokenizer COMMAND``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from tokensieve.cli.common import Json, print_table
from tokensieve.cli.progress import Steps
from tokensieve.cli.tokenizer_models import Texts, extend, train, transplant

SHOWN = 20
"""Tokens named on the screen; --json names all."""

group = typer.Typer(no_args_is_help=True, help="What text costs in whose tokens: measure, audit, train, extend, move.")


def add(app: typer.Typer) -> None:
    """Make these commands part of an application."""
    for command in (report, audit, train, extend, transplant):
        group.command()(command)
    app.add_typer(group, name="tokenizer")


def report(
    texts: Texts,
    tokenizer: Annotated[
        list[str], typer.Option(help="A folder, a tokenizer.json, a hub name or a tiktoken name; several may be given.")
    ],
    languages: Annotated[
        str | None, typer.Option(help="Premium over English by names of CLDR: 'all', or some, such as 'de,my,zh_Hant'.")
    ] = None,
    parallel: Annotated[
        Path | None, typer.Option(help="Premium by a folder of files LANGUAGE.txt whose lines say the same.")
    ] = None,
    base: Annotated[str, typer.Option(help="The language that premiums are over.")] = "en",
    model: Annotated[
        str | None,
        typer.Option(help="A model's folder or hub name: what prefilling these texts takes, and its untrained tokens."),
    ] = None,
    bytes_: Annotated[
        bool, typer.Option("--bytes", help="Read raw bytes of any files, for tokenizers of those.")
    ] = False,
    out: Annotated[Path, typer.Option(help="The page.")] = Path("tokenizer-report.html"),
    json_: Json = False,
) -> None:
    """Compare tokenizers on your texts: a table, and a page that shows the tokens."""
    from tokensieve.text import page
    from tokensieve.text.corpus import read, read_bytes
    from tokensieve.text.loading import open_tokenizer
    from tokensieve.text.parallel import lines, names
    from tokensieve.text.report import report as make

    if languages is not None and parallel is not None:
        raise ValueError("--languages and --parallel both say where premiums come from; give one of them")
    asked = [name for name in (languages or "").split(",") if name and name != "all"]
    both = lines(parallel, base) if parallel else None if languages is None else names(asked, base)
    opened = [(name, open_tokenizer(name)) for name in tokenizer]
    corpus = read_bytes(texts) if bytes_ else read(texts)
    with Steps(json_) as steps:
        made = make([(_short(name, tokenizer), t) for name, t in opened], corpus, both, steps.step)
    notes = _notes(made, model)
    page.write(made, corpus.documents, [t for _, t in opened], out, notes)
    if json_:
        typer.echo(json.dumps(made.json() | {"notes": notes}, indent=2))
        return
    _print_report(made, notes)
    typer.echo(f"{out}: the page")


def _short(name: str, among: Sequence[str]) -> str:
    """The last part of a path that tells it from the others."""
    parts = Path(name).parts
    for n in range(1, len(parts)):
        tail = "/".join(parts[-n:])
        if (
            tail not in ("tokenizer.json", "models", "model")
            and sum(Path(o).parts[-n:] == parts[-n:] for o in among) == 1
        ):
            return tail
    return name


def _notes(made: Any, model: str | None) -> list[str]:
    """What stands under the table."""
    notes = [f"{row.name}: encoded by {row.note}" for row in made.rows if row.note != "tokenizers"]
    cut = made.rows[0].measured.cut
    if cut:
        notes.append(
            f"{len(cut)} documents are longer than is encoded at once, and were cut between lines or words: {', '.join(cut[:3])}"
        )
    if model is not None:
        from tokensieve.sites.cost import text_cost
        from tokensieve.text.models import open_config

        config = open_config(model)
        for row in made.rows:
            computed, held = text_cost(config, row.measured.lengths)
            notes.append(
                f"{row.name} in {model}: {computed:.3g} FLOPs to prefill each document by itself, {held / 1e6:,.1f} MB of cache"
            )
        notes.append(_untrained(model))
    return notes


def _untrained(model: str) -> str:
    """What is said of a model's own vocabulary."""
    from tokensieve.text import models
    from tokensieve.text.audit import audit as look
    from tokensieve.text.loading import open_tokenizer

    rows, head = models.embeddings(models.open_model(model))
    found = look(open_tokenizer(model), rows if head is None else head, most=5)
    if not found.untrained:
        return f"{model}: no untrained rows were found that are alike, so that under-trained tokens cannot be told"
    first = ", ".join(repr(f.token) for f in found.flags)
    return f"{model}: {found.certain:,} tokens of its own vocabulary look untrained, most of all {first}; audit probes them"


def _print_report(made: Any, notes: Sequence[str]) -> None:
    from tokensieve.text.columns import COLUMNS

    print_table(
        ("tokenizer", *(c.title for c in COLUMNS)), [(r.name, *(c.show(r) for c in COLUMNS)) for r in made.rows]
    )
    if made.rows[0].premium:
        order = sorted(made.rows[0].premium, key=lambda n: -max(r.premium[n] for r in made.rows))
        typer.echo(f"premium over {made.base}, the dearest {min(SHOWN, len(order))} of {len(order)} ({made.parallel}):")
        rows = [(n, *(f"{r.premium[n]:.2f}" for r in made.rows)) for n in order[:SHOWN]]
        print_table(("language", *(r.name for r in made.rows)), rows)
    if made.few:
        typer.echo(f"too few names for a premium: {', '.join(f'{n} {c}' for n, c in list(made.few.items())[:SHOWN])}"
                   + (f" and {len(made.few) - SHOWN} more" if len(made.few) > SHOWN else ""))  # fmt: skip
    for line in notes:
        typer.echo(line)
    for name, why in list(made.skipped.items())[:SHOWN]:
        typer.echo(f"passed over: {name}: {why}")
    if len(made.skipped) > SHOWN:
        typer.echo(f"passed over: {len(made.skipped) - SHOWN} more; --json names them")


def audit(
    source: Annotated[
        str,
        typer.Argument(
            help="A causal language model's folder or hub name; or a tokenizer alone, for what text reaches."
        ),
    ],
    most: Annotated[int, typer.Option(min=1, help="Tokens to flag and to probe, and as many drawn at random.")] = 40,
    probe: Annotated[bool, typer.Option(help="Ask the model to repeat each of them.")] = True,
    seed: Annotated[int, typer.Option(min=0, help="Of that draw.")] = 0,
    json_: Json = False,
) -> None:
    """Find the tokens that no text reaches, and those that a model has hardly been trained on."""
    from tokensieve.text import models
    from tokensieve.text.audit import audit as look
    from tokensieve.text.loading import open_tokenizer
    from tokensieve.text.reach import reach
    from tokensieve.text.vocabulary import Vocabulary

    tokenizer = open_tokenizer(source)
    vocabulary = Vocabulary.of(tokenizer)
    if not models.is_model(source):
        found = reach(tokenizer, vocabulary)
        if json_:
            typer.echo(json.dumps(asdict(found)))
            return
        _print_reach(found, vocabulary)
        typer.echo(f"{source} holds no weights: what a model was trained on is not known")
        return
    model = models.open_model(source)
    rows, head = models.embeddings(model)
    asked = (lambda ids: models.repeats(model, tokenizer, ids)) if probe else None
    made = look(tokenizer, rows if head is None else head, asked, most, seed)
    if json_:
        typer.echo(json.dumps(asdict(made) | {"failing": made.failing if probe else None}, indent=2))
        return
    _print_reach(made.reach, vocabulary)
    if made.untrained:
        names = ", ".join(repr(vocabulary.strings[i]) for i in made.untrained[:SHOWN] if i < len(vocabulary))
        typer.echo(
            f"{len(made.untrained)} untrained rows were found ({names}); {made.certain:,} tokens that text reaches are as like "
            "their mean as they are"
        )
    else:
        typer.echo("no untrained rows were found that are alike: tokens are flagged by short rows alone, a weak sign")
    table = [
        (repr(f.token), str(f.id), f"{f.likeness:.4f}", "" if f.probability is None else f"{f.probability:.4f}")
        for f in made.flags
    ]
    print_table(("flagged", "id", "likeness" if made.untrained else "shorter by", "repeated with probability"), table)
    if probe:
        flagged, drawn = made.failing
        typer.echo(
            f"cannot be repeated (probability below 0.01): {flagged:.1%} of these, {drawn:.1%} of as many drawn at random"
        )


def _print_reach(found: Any, vocabulary: Any) -> None:
    rows = [
        (name, f"{len(ids):,}", ", ".join(repr(vocabulary.strings[i]) for i in ids[:SHOWN] if vocabulary.strings[i]))
        for name, ids in asdict(found).items()
    ]
    print_table(("tokens", "count", "the first of them"), rows)
