"""Checks of quantizers: three seeds, equal steps, default VQ and revived VQ beside each."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
from sklearn.datasets import load_sample_image
from sklearn.decomposition import PCA
from torch import Tensor

from benchmarks.reference import magvit2_208, tokenbridge_237, wetok_72
from benchmarks.systems import small
from benchmarks.systems.bed import CheckContext, Outcome, check
from benchmarks.systems.codec_bed import (
    LATENT,
    PUBLISHED,
    REVIVED,
    SEEDS,
    digits,
    fitted,
    kept,
    numbers,
    several,
    told,
    trained,
    whole,
    wins,
)  # fmt: skip
from tokensieve.bench.codec.distortion import kernel_distance
from tokensieve.codec import QUANTIZERS, quantizer, sign_entropy, usage
from tokensieve.codec.registry import KINDS
from tokensieve.codec.search import kmeans, nearest
from tokensieve.codec.statistics import compression, entropy, zipf_slope
from tokensieve.parts.merge.pairs2d import learn_pairs
from tokensieve.testbed import lm
from tokensieve.testing.memory import Live


@check(208)
def magvit2(bed: CheckContext) -> Outcome:
    """Digits, 16 tokens of 10 bits, equal steps, three seeds: LFQ uses more codes than default VQ and has a lower error;
    beside revived VQ. Beside it clips of moving digits under a causal encoder: an image has the codes of a clip's first frame;
    and the rows of a table of 18-bit tokens in two groups of bits, over those in one."""
    rows = {
        "lfq": several({"name": "lfq", "bits": 10}), "vq, default": several(PUBLISHED), "vq, revived": several(REVIVED)
    }  # fmt: skip
    n: dict[str, Any] = {f"{name} {key}": told(row, key) for name, row in rows.items() for key in ("mse", "codes")}
    more = wins(n["vq, default codes"], n["lfq codes"])
    nearer = wins(n["lfq mse"], n["vq, default mse"])
    n |= {"seeds with more codes": more, "seeds with lower error": nearer} | clips()
    n["18 bits in 2 groups, share of rows"] = 2 * 2**9 / 2**18
    return whole(rows["lfq"]) and n["images with a clip's first codes"] == 1 and more == nearer == len(SEEDS), n


def clips() -> dict[str, Any]:
    """A causal tokenizer of digits that move, seed 0."""
    torch.manual_seed(0)
    train, test = (torch.stack([images.roll(i, 3) for i in range(5)], 2) for images in digits()[:2])
    model = magvit2_208.CausalTokenizer(1, 2, quantizer("lfq", bits=10, dim=LATENT))
    trained(model, lambda rows, draw: model.loss(train[rows], draw), 0)
    with torch.no_grad():
        codes, grid = model.encode(test)
        alone, _ = model.encode(test[:, :, :1])
        error = float((model.decode(codes.values, grid) - test).square().mean())
        still = float((test[:, :, :1] - test).square().mean())
    same = (alone.indices == codes.indices[:, : alone.indices.shape[1]]).all(2).float().mean()
    return {
        "images with a clip's first codes": round(float(same), 5), "grids of 5 frames": grid[0], "clips mse": round(error, 5),
        "first frame held, mse": round(still, 5),
    }  # fmt: skip


@check(72)
def wetok(bed: CheckContext) -> Outcome:
    """Digits, 16 tokens of 10 bits in 2 groups: error below VQ, default and revived; the naive entropy's memory grows
    linearly with groups of 2 bits and doubles a bit without. Beside it 2 tokens of 6 bits: kernel distance x 1000 of pixels of
    what a decoder with noise draws, and of what its deterministic twin of as many steps tells."""
    rows = {
        "grouped": several({"name": "lfq", "bits": 10, "groups": 2}), "vq, default": several(PUBLISHED),
        "vq, revived": several(REVIVED),
    }  # fmt: skip
    n: dict[str, Any] = {f"{name} mse": told(row, "mse") for name, row in rows.items()}
    for bits in (10, 12, 14):
        z = torch.randn(256, bits)
        codes = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0])] * bits)
        for what, call in (
            ("naive", lambda: (z @ codes.T).softmax(1).mean(0)),  # noqa: B023
            ("groups", lambda: [sign_entropy(part) for part in z.split(2, 1)]),  # noqa: B023
            ("exact", lambda: sign_entropy(z)),  # noqa: B023
        ):
            with Live() as seen:
                call()
            n[f"{what}, {bits} bits, KB"] = round(seen.peak / 1e3)
    doubles = n["naive, 14 bits, KB"] > 10 * n["naive, 10 bits, KB"]
    linear = n["groups, 14 bits, KB"] < 2 * n["groups, 10 bits, KB"]
    below = all(wins(n["grouped mse"], n[f"vq, {v} mse"]) == len(SEEDS) for v in ("default", "revived"))
    drawn = [kept("72 drawn", seed, partial(generative, seed), wetok_72) for seed in SEEDS]
    n |= {key: told(drawn, key) for key in drawn[0]}
    return whole(rows["grouped"]) and doubles and linear and below, n


def generative(seed: int) -> dict[str, float]:
    """A decoder with noise and a deterministic one over the same few codes, both trained on from the same autoencoder."""
    train, test, _, _ = digits()
    made = fitted({"name": "lfq", "bits": 6, "groups": 2}, seed, tokens=2)
    model = wetok_72.Generative(made)
    trained(model, lambda rows, draw: model.loss(train[rows], draw), seed, rate=2e-3)
    made.decoder.requires_grad_(True)

    def error(rows: Tensor, draw: torch.Generator) -> Tensor:
        return (made.signals(made.encode(train[rows]).values) - train[rows]).square().mean()  # type: ignore[union-attr]

    trained(made.decoder, error, seed, rate=2e-3)
    with torch.no_grad():
        values = made.encode(test).values  # type: ignore[union-attr]
        backs = {
            "drawn": model.decode(values, torch.Generator().manual_seed(seed)),
            "deterministic": made.signals(values),
        }
    out = {}
    for name, back in backs.items():
        out[f"{name} mse"] = float((back - test).square().mean())
        out[f"{name} kernel distance"] = kernel_distance(test.flatten(1), back.flatten(1))[0]
    return out


@check(209)
def gsq(bed: CheckContext) -> Outcome:
    """Digits, three seeds: usage above Euclidean VQ at equal size; error falls as groups go 1, 2, 4 of 64 codes each (bits
    grow, as in the paper). Beside it groups at 12 equal bits."""
    n: dict[str, Any] = {}
    rows = {groups: several({"name": "gsq", "codes": 64, "dim": LATENT, "groups": groups}) for groups in (1, 2, 4)}
    n |= {f"{groups} groups mse": told(row, "mse") for groups, row in rows.items()}
    one = several({"name": "gsq", "codes": 1024, "dim": LATENT, "groups": 1})
    n |= {"1,024 codes": told(one, "codes"), "vq, default codes": told(several(PUBLISHED), "codes"),
          "vq, revived codes": told(several(REVIVED), "codes")}  # fmt: skip
    equal = {1: 4096, 2: 64, 4: 8}
    for groups, codes in equal.items():
        made = several({"name": "gsq", "codes": codes, "dim": LATENT, "groups": groups})
        n[f"12 bits in {groups} mse"] = told(made, "mse")
    falls = wins(n["2 groups mse"], n["1 groups mse"]) == wins(n["4 groups mse"], n["2 groups mse"]) == len(SEEDS)
    more = wins(n["vq, default codes"], n["1,024 codes"]) == len(SEEDS)
    return whole(*rows.values()) and falls and more, n


@check(165)
def global_codes(bed: CheckContext) -> Outcome:
    """Digits at 160 equal bits, three seeds: error of 16 codes for whole channels against 16 codes for places, revived VQ;
    changing one code changes pixels of more of the image."""
    channels = {"name": "channels", "places": 16, "dim": LATENT, "codes": 1024}
    n: dict[str, Any] = {
        "channels mse": told(several(channels), "mse"),
        "vq, revived mse": told(several(REVIVED), "mse"),
    }
    n["vq, default mse"] = told(several(PUBLISHED), "mse")
    for name, options in (("channels", channels), ("places", REVIVED)):
        made = fitted(options, 0)
        indices = made.encode(digits()[1][:64]).indices  # type: ignore[union-attr]
        other = indices.clone()
        other[:, 5, 0] = (other[:, 5, 0] + 1) % 1024
        moved = (made.decode(other) - made.decode(indices)).abs()
        quarter = moved.unflatten(2, (4, 2)).unflatten(4, (4, 2)).amax((1, 3, 5)).flatten(1)
        n[f"{name}: patches that one code changes, of 16"] = round(
            float((quarter > 0.1 * quarter.amax(1, True)).float().sum(1).mean()), 2
        )
    spread = (
        n["channels: patches that one code changes, of 16"] > 1.5 * n["places: patches that one code changes, of 16"]
    )
    return spread and wins(n["channels mse"], n["vq, revived mse"]) == len(SEEDS), n


@check(237)
def tokenbridge(bed: CheckContext) -> Outcome:
    """Digits, a continuous autoencoder quantized afterwards, three seeds: 16 levels keep the error within 5% of continuous
    and below revived VQ of the same latent; 8 to 64 levels told. Beside it bits of a dimension (16 levels) from the token to the
    left, one dimension after another and all at once."""
    n: dict[str, Any] = {}
    ratios: dict[int, list[float]] = {bins: [] for bins in (8, 16, 32, 64)}
    errors = []
    for seed in SEEDS:
        made = fitted(None, seed)
        plain = numbers(made)["mse"]
        with torch.no_grad():
            latents, test = made.latents(digits()[0]), digits()[1]
            for bins, found in ratios.items():
                q = quantizer("quantile", bins=bins, dim=LATENT).fit(latents).eval()
                error = float((made.signals(q(made.latents(test)).values) - test).square().mean())
                found.append(round(error / plain, 3))
                errors += [error] if bins == 16 else []
    n |= {f"{bins} levels, error over continuous": found for bins, found in ratios.items()}
    n |= {"16 levels mse": [round(e, 5) for e in errors], "vq, revived mse": told(several(REVIVED), "mse"),
          "vq, default mse": told(several(PUBLISHED), "mse")}  # fmt: skip
    for name, chain in (("one after another", True), ("all at once", False)):
        found = [kept(f"237 {name}", seed, partial(dimensions, chain, seed), tokenbridge_237) for seed in SEEDS]
        n[f"bits of a dimension, {name}"] = told(found, "bits", 3)
    return max(ratios[16]) <= 1.05 and wins(n["16 levels mse"], n["vq, revived mse"]) == len(SEEDS), n


def dimensions(chain: bool, seed: int) -> dict[str, float]:
    """Bits of a held-out dimension at 16 levels, given the values of the token to the left."""
    made = fitted(None, seed)
    with torch.no_grad():
        train, test = (made.latents(images) for images in digits()[:2])
        q = quantizer("quantile", bins=16, dim=LATENT).fit(train).eval()
        pairs = [
            (codes.values[:, :-1].flatten(0, 1), codes.indices[:, 1:].flatten(0, 1)) for codes in (q(train), q(test))
        ]
    (states, indices), held = pairs
    model = tokenbridge_237.Dimensions(16, LATENT, LATENT, chain)
    trained(
        model, lambda rows, draw: model.loss(states[rows], indices[rows]), seed, batch=256, rate=3e-3, rows=len(states)
    )
    with torch.no_grad():
        return {"bits": float(model.loss(*held)) / math.log(2)}


@check(151)
def survey(bed: CheckContext) -> Outcome:
    """Every quantizer carries one of the survey's eight tags; usage is 1,024 codes for uniform codes and 1 for collapsed
    ones. Gradient bias is not measured."""
    even = usage(torch.arange(1024).repeat(4)[:, None], (1024,))
    one = usage(torch.zeros(999, 1, dtype=torch.int64), (1024,))
    tags = {name: QUANTIZERS.entry(name).facts["kind"] for name in QUANTIZERS.names()}
    n = {
        "uniform": even.perplexity,
        "collapsed": one.perplexity,
        "quantizers": len(tags),
        "kinds": sorted(set(tags.values())),
    }
    return set(tags.values()) <= set(KINDS) and abs(even.perplexity - 1024) < 1e-6 and one.perplexity == 1, n


@check(228)
def bpe_image(bed: CheckContext) -> Outcome:
    """Markov grids of 4 codes with a known entropy rate: bits a cell of the unigram code of merged symbols fall with 0, 16,
    64 merges towards the rate; grids of digits come back exactly."""
    draw = torch.Generator().manual_seed(0)
    stay, codes, side = 0.85, 4, 12
    grids = torch.randint(codes, (120, side, side), generator=draw)
    for c in range(1, side):  # each cell is the one to its left with this probability, else any
        held = torch.rand(120, side, generator=draw) < stay
        grids[:, :, c] = torch.where(held, grids[:, :, c - 1], grids[:, :, c])
    same = stay + (1 - stay) / codes
    rate = -(same * torch.tensor(same).log2() + (1 - same) * torch.tensor((1 - same) / (codes - 1)).log2())
    rate = float((2 + (side - 1) * rate) / side)
    n: dict[str, Any] = {"entropy rate": round(rate, 4)}
    for count in (0, 16, 64):
        merges = learn_pairs(grids[:80], codes, count)
        rows = [merges.encode(grid) for grid in grids]
        length = torch.cat(rows[80:])
        n[f"{count} merges, bits a cell"] = round(entropy(length) * len(length) / grids[80:].numel(), 4)
    levels = (digits()[1][:40, 0] * 3).round().long()
    merges = learn_pairs((digits()[0][:200, 0] * 3).round().long(), 4, 40)
    n["digits that come back"] = sum(torch.equal(merges.decode(merges.encode(g), 8, 8), g) for g in levels)
    falls = n["0 merges, bits a cell"] > n["16 merges, bits a cell"] > n["64 merges, bits a cell"] > 0.98 * rate
    return falls and n["digits that come back"] == 40, n


@check(361)
def language_of_codes(bed: CheckContext) -> Outcome:
    """Codes of patches of two photographs (256 k-means codes) beside as many tokens of text: normalized entropy higher,
    compression lower; Zipf slopes with those of shuffled codes, which keep their frequencies and lose their order."""
    patches = []
    for name in ("china.jpg", "flower.jpg"):
        image = torch.tensor(load_sample_image(name)[:424, :640] / 255.0, dtype=torch.float32)
        patches.append(image.reshape(53, 8, 80, 8, 3).permute(0, 2, 1, 3, 4).reshape(-1, 192))
    x = torch.cat(patches)
    x = torch.tensor(PCA(32, random_state=0).fit_transform(x.numpy()), dtype=torch.float32)
    codes = nearest(x, kmeans(x, 256, torch.Generator().manual_seed(0)))
    text = small.tokens(200_000)[: len(codes)]
    vocabulary = lm.load()[1].vocab_size
    mixed = codes[torch.randperm(len(codes), generator=torch.Generator().manual_seed(0))]
    n: dict[str, Any] = {"tokens": len(codes)}
    for name, held, most in (("codes", codes, 256), ("text", text, vocabulary), ("shuffled codes", mixed, 256)):
        kinds = min(most, int(held.unique().numel()))
        boot = [
            zipf_slope(held[torch.randint(len(held), (len(held),), generator=torch.Generator().manual_seed(i))])
            for i in range(50)
        ]
        low, high = torch.tensor(boot).quantile(torch.tensor([0.025, 0.975])).tolist()
        n |= {
            f"{name}: Zipf": [round(zipf_slope(held), 3), round(low, 3), round(high, 3)],
            f"{name}: entropy, share of most": round(entropy(held) / torch.tensor(float(kinds)).log2().item(), 3),
            f"{name}: compression": round(compression(held), 2),
        }
    fuller = n["codes: entropy, share of most"] > n["text: entropy, share of most"]
    return fuller and n["codes: compression"] < n["text: compression"], n
