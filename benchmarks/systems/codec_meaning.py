"""Checks of tokenizers that are trained for more than pixels: a teacher's features, words, a language model."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.reference import dualtoken_217, imagefolder_324, tokenflow_2, unicode2_182, unicode_211, unitok_193
from benchmarks.systems.bed import CheckContext, Outcome, check
from benchmarks.systems.codec_bed import (
    BASELINES,
    FEATURES,
    LATENT,
    PUBLISHED,
    REVIVED,
    SEEDS,
    TOKENS,
    described,
    digits,
    fitted,
    kept,
    numbers,
    probe,
    several,
    teacher,
    told,
    trained,
    whole,
    wins,
)
from tokensieve.bench.codec.autoencoder import Autoencoder
from tokensieve.codec import Quantizer, quantizer, usage

SHAPE = (1, 8, 8)
Rows = dict[str, list[dict[str, Any]]]


def table(rows: Rows, *keys: str) -> dict[str, Any]:
    """Numbers of all seeds, by arm and by key."""
    return {f"{name} {key}": told(row, key) for name, row in rows.items() for key in keys if key in row[0]}


def both(model: Any, *data: tuple[Tensor, Tensor]) -> tuple[Any, Any]:
    """Codes of the training and of the test part."""
    with torch.no_grad():
        return model.encode(*(d[0] for d in data)), model.encode(*(d[1] for d in data))


def judged(model: Any, train: Any, test: Any, part: Any = lambda values: values) -> dict[str, Any]:
    """Usage, error of pixels, and a probe of a part of the values."""
    with torch.no_grad():
        error = float((model.decode(test.values)[0] - digits()[1]).square().mean())
    out: dict[str, Any] = described(torch.cat([train.indices, test.indices]), test.levels, error)
    return out | {"probe": probe(part(train.values), part(test.values))}


@check(2)
def tokenflow(bed: CheckContext) -> Outcome:
    """Digits with a small classifier's features at 16 places, 1,024 codes, equal steps, three seeds: a probe of the joint index
    above that of pixels alone (revived and default VQ), its error below that of features alone."""
    train, test, _, _ = digits()
    arms = {"joint": tokenflow_2.SPACES, "pixels alone": ("pixels",), "features alone": ("semantic",)}

    def arm(spaces: tuple[str, ...], revive: float, seed: int) -> dict[str, Any]:
        model = tokenflow_2.TokenFlow(SHAPE, TOKENS, FEATURES, 1024, spaces, revive=revive)
        trained(model, lambda rows, draw: model.loss(train[rows], teacher()[0][rows], draw), seed)
        return judged(model, *both(model, (train, test), teacher()))

    rows: Rows = {
        f"{name}, {kind}": [
            kept(f"2 {name} {kind}", s, lambda: arm(spaces, revive, s), tokenflow_2)  # noqa: B023
            for s in SEEDS
        ]
        for name, spaces in arms.items()
        for kind, revive in (("revived", 0.1), ("default", 0.0))
        if kind == "revived" or name == "pixels alone"
    }
    n = table(rows, "mse", "probe", "codes")
    means = wins(n["pixels alone, revived probe"], n["joint, revived probe"])
    nearer = wins(n["joint, revived mse"], n["features alone, revived mse"])
    n |= {"seeds with a higher probe": means, "seeds with a lower error": nearer}
    return whole(rows["joint, revived"]) and means == nearer == len(SEEDS), n


@check(217)
def dualtoken(bed: CheckContext) -> Outcome:
    """Digits and a small classifier's features, 24 bits at each of 16 places, equal steps, three seeds: a probe of the deep
    codes and the error of pixels from shallow ones, both better than one residual codebook of as many bits that both losses
    train; default and revived VQ in either."""
    train, test, _, _ = digits()

    def arm(shared: bool, options: dict[str, Any], seed: int) -> dict[str, Any]:
        model = dualtoken_217.DualToken(SHAPE, TOKENS, FEATURES, 64, 2, shared=shared, **options)
        trained(model, lambda rows, draw: model.loss(train[rows], teacher()[0][rows], draw), seed)
        return judged(model, *both(model, (train, test)), model.meant)

    rows: Rows = {
        f"{name}, {kind}": [
            kept(f"217 {name} {kind}", s, lambda: arm(name == "shared", options, s), dualtoken_217)  # noqa: B023
            for s in SEEDS
        ]
        for name in ("dual", "shared")
        for kind, options in BASELINES.items()
    }
    n = table(rows, "mse", "probe")
    means = wins(n["shared, revived probe"], n["dual, revived probe"])
    nearer = wins(n["dual, revived mse"], n["shared, revived mse"])
    n |= {"seeds with a higher probe": means, "seeds with a lower error": nearer}
    return whole(rows["dual, revived"]) and means == nearer == len(SEEDS), n


@check(182)
def unicode2(bed: CheckContext) -> Outcome:
    """22,400 features of a small classifier at places of digits, 2,048 codes under an adapter, equal steps, three seeds: share
    of codes used above 80% and above codebooks trained with it (default and revived VQ), and a higher probe of the quantized
    features."""
    labels = digits()[2]
    made = {"cascade": {"name": "cascade"}} | {f"vq, {kind}": {"name": "vq"} | o for kind, o in BASELINES.items()}

    def arm(options: dict[str, Any], seed: int) -> dict[str, Any]:
        model = unicode2_182.Adapter(FEATURES, quantizer(**options, codes=2048, dim=FEATURES), 10)
        if options["name"] == "cascade":
            model.anchor(teacher()[0], torch.Generator().manual_seed(seed))
        trained(model, lambda rows, draw: model.loss(teacher()[0][rows], labels[rows], draw), seed)
        with torch.no_grad():
            one, two = (model.quantizer(model.into(part)) for part in teacher())
            error = float((model.out_of(two.values) - teacher()[1]).square().mean() / teacher()[1].var())
        seen = usage(torch.cat([one.indices, two.indices]), one.levels)
        return {"error": error, "used": seen.distinct / 2048, "probe": probe(one.values.mean(1), two.values.mean(1))}

    rows: Rows = {
        name: [kept(f"182 {name}", s, lambda: arm(options, s), unicode2_182) for s in SEEDS]  # noqa: B023
        for name, options in made.items()
    }
    n = table(rows, "used", "probe", "error")
    n["features themselves, probe"] = round(probe(*(part.mean(1) for part in teacher())), 4)
    fuller = all(wins(n[f"vq, {kind} used"], n["cascade used"]) == len(SEEDS) for kind in BASELINES)
    higher = all(wins(n[f"vq, {kind} probe"], n["cascade probe"]) == len(SEEDS) for kind in BASELINES)
    return min(n["cascade used"]) > 0.8 and fuller and higher, n


@check(193)
def unitok(bed: CheckContext) -> Outcome:
    """Digits at 12 equal bits, three seeds: error and usage of 4 sub-codebooks better than one large codebook, default and
    revived; trained with a contrast to the labels' words it names more digits than the same head on codes that reconstruction
    alone has trained."""
    train, test, labels, truth = digits()
    four: dict[str, Any] = {"name": "product", "of": "vq", "groups": 4, "dim": LATENT, "codes": 8}
    spread = float(train.var())

    def arm(contrast: bool, seed: int) -> dict[str, Any]:
        head = unitok_193.Matched(LATENT)
        made = Autoencoder(SHAPE, TOKENS, quantizer(**four)) if contrast else fitted(four, seed).requires_grad_(False)
        assert isinstance(made.quantizer, Quantizer)

        def loss(rows: Tensor, draw: torch.Generator) -> Tensor:
            codes = made.quantizer(made.latents(train[rows]), generator=draw)  # type: ignore[misc]
            error = (
                (made.signals(codes.values) - train[rows]).square().mean() / spread + codes.loss if contrast else 0.0
            )
            return error + head.loss(codes.values, labels[rows])

        trained(nn.ModuleList([made, head]) if contrast else head, loss, seed)
        made.eval()
        with torch.no_grad():
            named = head.named(made.encode(test).values)  # type: ignore[union-attr]
        return numbers(made) | {"named": float((named == truth).float().mean())}

    rows: Rows = {
        name: [kept(f"193 {name}", s, lambda: arm(contrast, s), unitok_193) for s in SEEDS]  # noqa: B023
        for name, contrast in (("4 of 8, with words", True), ("4 of 8, reconstruction alone", False))
    }
    rows |= {
        f"one codebook, {kind}": several({"name": "vq", "codes": 4096, "dim": LATENT} | o)
        for kind, o in BASELINES.items()
    }
    n = table(rows, "mse", "used", "named")
    alone = "4 of 8, reconstruction alone"
    nearer = [wins(n[f"{alone} mse"], n[f"one codebook, {kind} mse"]) for kind in BASELINES]
    fuller = [wins(n[f"one codebook, {kind} used"], n[f"{alone} used"]) for kind in BASELINES]
    named = wins(n[f"{alone} named"], n["4 of 8, with words named"])
    n |= {"seeds below default and revived": nearer, "seeds that name more": named}
    return whole(rows[alone]) and {*nearer, *fuller, named} == {len(SEEDS)}, n


@check(324)
def imagefolder(bed: CheckContext) -> Outcome:
    """Digits, two branches of 1,024 codes, one of them drawn to a small classifier's features, three seeds: error below one
    codebook (default, revived) at as many autoregressive steps, with twice the bits; folded decoding takes half the steps of
    flattened, and its bits an image beside those."""
    train, test, _, _ = digits()
    spread = float(train.var())

    def arm(seed: int) -> dict[str, Any]:
        made = Autoencoder(SHAPE, TOKENS, quantizer("product", of="vq", groups=2, dim=LATENT, codes=1024))
        meant = nn.Linear(LATENT // 2, FEATURES)

        def loss(rows: Tensor, draw: torch.Generator) -> Tensor:
            codes = made.quantizer(made.latents(train[rows]), generator=draw)  # type: ignore[misc]
            features = teacher()[0][rows]
            far = (meant(codes.values[..., : LATENT // 2]) - features).square().mean() / features.var()
            return (made.signals(codes.values) - train[rows]).square().mean() / spread + codes.loss + far

        trained(nn.ModuleList([made, meant]), loss, seed)
        made.eval()
        one, two = both(made, (train, test))
        out: dict[str, Any] = numbers(made)
        for name in ("folded", "flattened"):
            model = imagefolder_324.Folded(1024, 2, TOKENS, name == "folded")
            trained(model, lambda rows, draw: model.loss(one.indices[rows]) / 100, seed, batch=32, rate=3e-3)  # noqa: B023
            with torch.no_grad():
                bits = float(model.loss(two.indices)) / 0.6931
            out |= {f"{name} steps": model.sample(1, TOKENS)[1], f"{name} bits": bits}
        return out

    rows: Rows = {"two branches": [kept("324", s, lambda: arm(s), imagefolder_324) for s in SEEDS]}  # noqa: B023
    rows |= {"one codebook, default": several(PUBLISHED), "one codebook, revived": several(REVIVED)}
    keys = [f"{name} {what}" for what in ("steps", "bits") for name in ("folded", "flattened")]
    n = {k: [round(v, 4) for v in values] for k, values in table(rows, "mse", *keys).items()}
    below = all(wins(n["two branches mse"], n[f"one codebook, {kind} mse"]) == len(SEEDS) for kind in BASELINES)
    half = [2 * s for s in n["two branches folded steps"]] == n["two branches flattened steps"]
    return whole(rows["two branches"]) and below and half, n


@check(211)
def unicode(bed: CheckContext) -> Outcome:
    """Digits and a small causal model of their codes and labels with one table for both, three seeds: the codebook's cosine to
    the table above 0.9 after training, and residual depth 4 over that table halves the error of depth 1; beside it residual VQ
    of 1,024 codes, default and revived."""
    train, test, labels, _ = digits()
    spread, codes = float(train.var()), 256

    def arm(stages: int, seed: int) -> dict[str, Any]:
        made = Autoencoder(
            SHAPE, TOKENS, quantizer("residual", of="tied", stages=stages, dim=LATENT, codes=codes, shared=True)
        )
        model = unicode_211.OneTable(codes, 10, LATENT, TOKENS * stages + 1)
        book: Any = made.quantizer.stages()[0]  # type: ignore[union-attr,operator]

        def loss(rows: Tensor, draw: torch.Generator) -> Tensor:
            book.follow(model.rows())
            held = made.quantizer(made.latents(train[rows]), generator=draw)  # type: ignore[misc]
            symbols = torch.cat([held.indices.flatten(1), labels[rows, None] + codes], 1)
            return (made.signals(held.values) - train[rows]).square().mean() / spread + held.loss + model.loss(symbols)

        trained(nn.ModuleList([made, model]), loss, seed)
        made.eval()
        with torch.no_grad():
            near = torch.cosine_similarity(book.codebook, model.rows()).mean()
            indices = made.encode(test).indices.flatten(1)  # type: ignore[union-attr]
            bits = model.loss(indices) / 0.6931
        return numbers(made) | {"cosine": float(near), "bits a code": float(bits)}

    rows: Rows = {
        f"one table, depth {stages}": [kept(f"211 {stages}", s, lambda: arm(stages, s), unicode_211) for s in SEEDS]  # noqa: B023
        for stages in (1, 4)
    }
    for kind, options in BASELINES.items():
        flat = PUBLISHED if kind == "default" else REVIVED
        rows[f"vq, {kind}, depth 1"] = several(flat)
        deep = {"name": "residual", "of": "vq", "stages": 4, "dim": LATENT, "codes": flat["codes"]}
        rows[f"vq, {kind}, depth 4"] = several(deep | options)
    n = table(rows, "mse", "cosine", "bits a code")
    one, four = n["one table, depth 1 mse"], n["one table, depth 4 mse"]
    halves = sum(2 * deep < flat for deep, flat in zip(four, one, strict=True))
    n["seeds that halve"] = halves
    tables = [rows[f"one table, depth {stages}"] for stages in (1, 4)]
    near = min(c for stages in (1, 4) for c in n[f"one table, depth {stages} cosine"])
    return whole(*tables) and near > 0.9 and halves == len(SEEDS), n
