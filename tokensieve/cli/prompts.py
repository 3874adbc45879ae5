"""The commands of prompts: compress, bench-prompts."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from tokensieve.cli.common import Json, budget, console, measured, print_table
from tokensieve.cli.progress import Steps


def add(app: typer.Typer) -> None:
    """Make these commands part of an application."""
    app.command()(compress)
    app.command("bench-prompts")(bench_prompts)


def compress(
    files: Annotated[list[Path], typer.Argument(help="Text files in UTF-8, each a passage; - for standard input.")],
    question: Annotated[str, typer.Option(help="What is to be answered from the text.")] = "",
    keep: Annotated[str | None, typer.Option(help="Tokens, or a share such as 0.25. [0.25]")] = None,
    method: Annotated[
        str | None, typer.Option(help="question, crag, tcra, surprisal, random-text, ... [question]")
    ] = None,
    unit: Annotated[
        str | None, typer.Option(help="What the text is cut into: sentence, passage, line or word. [the method's]")
    ] = None,
    protect: Annotated[
        str,
        typer.Option(
            help="What stays besides, with commas between: numbers, code, quotes, urls, or words of the text."
        ),
    ] = "",
    tokenizer: Annotated[
        str | None,
        typer.Option(
            help="The target's, which the budget is counted in: a folder, a hub name or one of tiktoken. [MiniLM's]"
        ),
    ] = None,
    encoder: Annotated[
        str | None, typer.Option(help="A folder or hub name of an encoder of sentences. [MiniLM]")
    ] = None,
    lm: Annotated[str | None, typer.Option(help="For surprisal: smollm2, testbed, or a causal language model.")] = None,
    plan: Annotated[Path | None, typer.Option(help="A saved plan, in the place of method and keep.")] = None,
    each: Annotated[bool, typer.Option("--each", help="Every file has the budget for itself.")] = False,
    show: Annotated[
        bool, typer.Option("--show", help="Show the whole text on the terminal, what left greyed out.")
    ] = False,
    page: Annotated[Path | None, typer.Option(help="Write the same as an HTML page.")] = None,
    out: Annotated[Path | None, typer.Option(help="Write the compressed text here instead of printing it.")] = None,
    seed: Annotated[int, typer.Option(help="For methods that draw.")] = 0,
    json_: Json = False,
) -> None:
    """Compress text in front of a model: sentences that answer the question stay, within a budget of tokens."""
    from tokensieve.core.files import write_text
    from tokensieve.core.plan import Plan
    from tokensieve.prompt import compress as prompts
    from tokensieve.prompt import shown
    from tokensieve.retrieval.encoders.loading import load_encoder

    texts = [_read(file) for file in files]
    if plan is not None and (keep or method or unit):
        raise ValueError("--plan carries its own methods and budgets; leave out --keep, --method and --unit")
    try:
        made = prompts.compress(
            texts, question, None if plan else budget(keep or "0.25"), method=method, plan=Plan.load(plan) if plan else None,
            tokenizer=tokenizer, encoder=None if encoder is None else load_encoder(encoder), lm=_model(lm),
            protect=[p.strip() for p in protect.split(",") if p.strip()], each=each, seed=seed,
            **({"unit": unit} if unit else {}),
        )  # fmt: skip
    except ImportError as error:
        raise ValueError(str(error)) from error
    if page is not None:
        shown.page(made, question, page)
    if out is not None:
        write_text(out, made.text)
    if json_:
        facts = {"text": made.text, "before": made.before, "after": made.after, "counted": made.counted}
        typer.echo(json.dumps(facts | {"spans": made.spans, "dropped": made.dropped, "notes": made.notes}))
        return
    if show:
        screen = console()
        # Where there are no colours, brackets hold what left.
        screen.print(
            shown.terminal(made) if screen.is_terminal else shown.bracketed(made), markup=False, highlight=False
        )
    elif out is None:
        typer.echo(made.text)
    share = made.after / made.before if made.before else 1.0
    typer.echo(
        f"{made.before:,} tokens before, {made.after:,} after ({share:.1%}), by the tokenizer of {made.counted}",
        err=True,
    )
    for note in made.notes:
        typer.echo(f"note: {note}", err=True)


def _read(file: Path) -> str:
    if str(file) == "-":
        return sys.stdin.read()
    if not file.is_file():
        raise FileNotFoundError(f"{file}: no such file")
    try:
        return file.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{file}: no text in UTF-8 (byte {error.start}); of other documents read the text first"
        ) from error


def _model(name: str | None) -> tuple[object, object] | None:
    if name is None:
        return None
    from tokensieve.bench.loading import language_model

    return language_model(name, "cpu", "float32")


def bench_prompts(
    data: Annotated[
        Path,
        typer.Option(
            help='JSON lines of {"question": .., "answer": .. or [..], "context": text or list, "kind": .., "system": ..}.'
        ),
    ],
    model: Annotated[str, typer.Option(help="Who answers: smollm2, testbed, or a causal language model.")],
    keep: Annotated[str, typer.Option(help="Comma-separated budgets: tokens, or shares.")] = "0.5,0.25,0.1",
    methods: Annotated[
        str,
        typer.Option(
            help="Comma-separated names, with a unit where it is not the method's own: question,surprisal:sentence."
        ),
    ] = "question",
    plan: Annotated[
        list[Path] | None, typer.Option(help="A saved plan with a prompt stage; may be given again.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Where results go; a second run goes on there.")] = Path(
        "tokensieve-prompts"
    ),
    limit: Annotated[int | None, typer.Option(min=1, help="At most so many questions.")] = None,
    new_tokens: Annotated[int, typer.Option(min=1, help="Of an answer, at most.")] = 24,
    encoder: Annotated[
        str | None, typer.Option(help="A folder or hub name of an encoder of sentences. [MiniLM]")
    ] = None,
    lm: Annotated[str | None, typer.Option(help="For surprisal; the model that answers if not given.")] = None,
    batch: Annotated[
        int, typer.Option(min=1, help="Questions answered at once: quicker, but times are then shares of a batch's.")
    ] = 1,
    seed: Annotated[int, typer.Option(help="For methods that draw.")] = 0,
    dtype: Annotated[str, typer.Option(help="float32, bfloat16, float16 or auto.")] = "auto",
    device: Annotated[str, typer.Option(help="cpu, cuda, ... or auto.")] = "auto",
) -> None:
    """Measure what a model still answers from compressed text, what survived, and from which length on it pays; resumes."""
    from tokensieve.bench.context import page, rows, table
    from tokensieve.bench.context.run import PromptConfig, run

    names = [n.strip() for n in methods.split(",") if n.strip()]
    asked = PromptConfig(
        model, data, names, [budget(k) for k in keep.split(",")], out, tuple(plan or ()), limit, new_tokens, seed, dtype, device,
        encoder, lm, batch,
    )  # fmt: skip

    def work() -> None:
        with Steps(False) as bar:
            results = run(asked, lambda what, done, of: bar.step("answers", done, of))
        made = results.data["rows"]
        print_table(*table.table(made))
        for line in rows.verdicts(made):
            typer.echo(line)
        for note in results.data["notes"]:
            typer.echo(f"note: {note}", err=True)
        for line in results.data["skipped"][:8]:
            typer.echo(f"skipped: {line}", err=True)
        typer.echo(f"\n{page.page(results.data, out)}")

    try:
        measured(work, out)
    except ImportError as error:
        raise ValueError(str(error)) from error
