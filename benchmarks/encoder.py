"""What a sieve in an encoder costs and saves on one thread: ratios inside one run, minima of rounds by turns.

`python -m benchmarks.encoder [--rounds 10] [--batch 8] [--tome FOLDER]` prints a table, CPU seconds behind it; `--packed` prints
what running rows of different counts one behind the other takes of running them padded. The reference merges in a plain loop
over the same blocks with the same fused attention, by public ToMe's matching where FOLDER is a checkout of it: its licence
forbids this project to carry it. Without one a plain loop of our own stands in, by the paper's algorithm, and the table says so.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from functools import partial
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from time import process_time
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize, scaled_dot_product_attention
from transformers import BertConfig, BertModel, ViTConfig, ViTModel, WhisperConfig
from transformers.models.whisper.modeling_whisper import WhisperEncoder

import tokensieve as ts
from tokensieve.bench.results import environment
from tokensieve.sites.encoder import packed

DEIT_S = {"hidden_size": 384, "num_hidden_layers": 12, "num_attention_heads": 6, "intermediate_size": 1536}
TINY_EN = {
    "d_model": 384,
    "encoder_layers": 4,
    "encoder_attention_heads": 6,
    "encoder_ffn_dim": 1536,
    "num_mel_bins": 80,
}


def turns(runs: Mapping[str, Callable[[], object] | tuple[Any, Callable[[], object]]], rounds: int) -> dict[str, float]:
    """CPU seconds of each, the least of rounds by turns; of a pair, of what runs under a sieve that is attached."""
    best = dict.fromkeys(runs, float("inf"))
    for _ in range(rounds):
        for name, given in runs.items():
            around, run = given if isinstance(given, tuple) else (nullcontext(), given)
            with around:
                start = process_time()
                run()
                best[name] = min(best[name], process_time() - start)
    return best


def matched(key: Tensor, r: int) -> tuple[Tensor, Tensor, Tensor]:
    """Of tokens behind the class token, those at even places that leave, those that stay, and where the first ones go."""
    unit = normalize(key, dim=-1)
    like = unit[:, ::2] @ unit[:, 1::2].transpose(1, 2)
    value, partner = like.max(-1)
    order = value.argsort(-1, descending=True)
    return order[:, :r], order[:, r:].sort(-1).values, partner.gather(1, order[:, :r])


def merged(x: Tensor, size: Tensor, how: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """States and sizes behind one step."""
    gone, stay, into = how
    cls, tokens = x[:, :1], x[:, 1:] * size[:, 1:]
    even, odd = tokens[:, ::2], tokens[:, 1::2]
    width = x.shape[-1]
    joins = even.gather(1, gone[..., None].expand(-1, -1, width))
    odd = odd.scatter_add(1, into[..., None].expand(-1, -1, width), joins)
    number = size[:, 2::2].scatter_add(1, into[..., None], size[:, 1::2].gather(1, gone[..., None]))
    rest = even.gather(1, stay[..., None].expand(-1, -1, width))
    sizes = torch.cat([size[:, :1], size[:, 1::2].gather(1, stay[..., None]), number], 1)
    return torch.cat([cls, torch.cat([rest, odd], 1) / sizes[:, 1:]], 1), sizes


Merging = Callable[[Tensor, Tensor, Tensor, int], tuple[Tensor, Tensor]]
"""From metric, states, sizes and how many leave, class token among them, to states and sizes."""


def own(metric: Tensor, x: Tensor, size: Tensor, r: int) -> tuple[Tensor, Tensor]:
    """The paper's step."""
    return merged(x, size, matched(metric[:, 1:], r))


def published(folder: Path) -> Merging:
    """The step of a checkout of public ToMe.

    Raises:
        FileNotFoundError: it is none.
    """
    file = folder / "tome" / "merge.py"
    if not file.is_file():
        raise FileNotFoundError(f"--tome {folder}: no {file}; give the folder of a checkout of facebookresearch/ToMe")
    spec = spec_from_file_location("public_tome_merge", file)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)

    def step(metric: Tensor, x: Tensor, size: Tensor, r: int) -> tuple[Tensor, Tensor]:
        merge, _ = module.bipartite_soft_matching(metric, r, class_token=True)
        return module.merge_wavg(merge, x, size)

    return step


@torch.no_grad()
def by_hand(model: ViTModel, x: Tensor, r: int, merging: Merging) -> Tensor:
    """The blocks of a ViT in a plain loop, ``r`` tokens merged between attention and MLP of each."""
    size = x.new_ones(*x.shape[:2], 1)
    for block in model.layers:
        a, h = block.attention, block.layernorm_before(x)
        q, k, v = (p(h).unflatten(2, (6, -1)).transpose(1, 2) for p in (a.q_proj, a.k_proj, a.v_proj))
        y = scaled_dot_product_attention(q, k, v, attn_mask=size.log()[:, None, :, 0][:, :, None])
        x = x + a.o_proj(y.transpose(1, 2).flatten(2))
        x, size = merging(k.mean(1), x, size, r)
        x = x + block.mlp(block.layernorm_after(x))
    return x


@torch.no_grad()
def of_lengths(model: ViTModel, x: Tensor, lengths: list[int]) -> Tensor:
    """The blocks on the first so many tokens."""
    for block, n in zip(model.layers, lengths, strict=True):
        x = block(x[:, :n])
    return x


LOWEST = (0.95, 0.8, 0.5, 0.2)
"""The least length of a row, as a share of the longest's."""
SHAPES = ((384, 12, 128), (384, 6, 200), (128, 4, 64), (768, 12, 200), (64, 4, 576))
"""Width, heads, tokens of the longest row."""


def packing(rounds: int, batch: int) -> None:
    """Print what blocks take packed of what they take padded, under ``random`` at a half, where rows differ in length."""
    for width, heads, length in SHAPES:
        shape = {"hidden_size": width, "num_attention_heads": heads, "intermediate_size": 4 * width}
        config = BertConfig(**shape, num_hidden_layers=4, max_position_embeddings=length, vocab_size=100)
        model = BertModel(config, add_pooling_layer=False).eval()
        for lowest in LOWEST:
            share = torch.rand(batch, generator=torch.Generator().manual_seed(1)) * (1 - lowest) + lowest
            share[0] = 1.0
            real = torch.arange(length) < (share * length).round()[:, None]
            ids = torch.randint(5, 100, real.shape).masked_fill(~real, 0)

            @torch.no_grad()
            def run(filled: float, ids: Tensor = ids, real: Tensor = real, model: BertModel = model) -> Tensor:
                plain, packed.FILLED = packed.FILLED, filled
                try:
                    return model(input_ids=ids, attention_mask=real.long()).last_hidden_state
                finally:
                    packed.FILLED = plain

            sieve = ts.sieve(model, "random", keep=0.5)
            forms = {
                "padded": (sieve, partial(run, 0.0)),
                "packed": (sieve, partial(run, 1.0)),
                "full": partial(run, 0.0),
            }
            t = turns(forms, rounds)
            print(
                f"width {width}, {batch} rows of up to {length} tokens, {real.float().mean():.2f} filled: packed takes "
                f"{t['packed'] / t['padded']:.3f} of padded; {t['packed'] / t['full']:.2f} of the full model, padded "
                f"{t['padded'] / t['full']:.2f}",
                flush=True,
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--tome", type=Path, help="a checkout of public ToMe")
    parser.add_argument(
        "--packed", action="store_true", help="rows of different counts, packed and padded, and nothing else"
    )
    asked = parser.parse_args()
    merging = own if asked.tome is None else published(asked.tome)
    reference = "a plain loop of ours" if asked.tome is None else "public ToMe's matching"
    torch.set_num_threads(1)
    torch.manual_seed(0)
    if asked.packed:
        print(f"{environment()['cpu']}, one thread, minima of {asked.rounds} rounds by turns, CPU seconds")
        packing(asked.rounds, asked.batch)
        return
    model = ViTModel(ViTConfig(**DEIT_S, image_size=224, patch_size=16), add_pooling_layer=False).eval()
    pixels, whole = torch.randn(asked.batch, 3, 224, 224), torch.randn(asked.batch, 197, 384)

    @torch.no_grad()
    def run() -> Tensor:
        return model(pixel_values=pixels).last_hidden_state

    def embedded(blocks: Callable[[Tensor], Tensor]) -> Callable[[], Tensor]:
        return torch.no_grad()(lambda: model.layernorm(blocks(model.embeddings(pixels))))

    def under(name: str, **how: Any) -> tuple[Any, Callable[[], Tensor]]:
        return ts.sieve(model, name, **how), run

    print(f"{environment()['cpu']}, one thread, batch {asked.batch}, minima of {asked.rounds} rounds by turns; "
          f"by hand: {reference} over the same blocks, with fused attention")  # fmt: skip
    for r in (13, 16):
        plan = ts.Plan(ts.stage("tome", ts.Keep(r=r)))
        promised = 1 / ts.cost(model, plan, tokens=196).share
        lengths = [197 - r * i for i in range(12)]
        t = turns(
            {
                "full": run, "tome": under("tome", r=r), "by hand": embedded(lambda x, r=r: by_hand(model, x, r, merging)),
                "random": under("random", r=r), "lengths": embedded(lambda x, n=lengths: of_lengths(model, x, n)),
            },
            asked.rounds,
        )  # fmt: skip
        gain, hand = t["full"] / t["tome"], t["full"] / t["by hand"]
        print(
            f"r={r}: tome {gain:.2f}x, by hand {hand:.2f}x: {t['tome'] / t['by hand']:.3f} of its time; "
            f"FLOPs promise {promised:.2f}x, "
            f"{gain / promised:.2f} of that; random "
            f"{t['full'] / t['random']:.2f}x, {t['random'] / t['lengths']:.3f} of the blocks "
            "on those lengths"
        )
    every = torch.randn(asked.batch, 6, 197, 64)
    key = every[:, :, 1:]
    t = turns(
        {
            "block": torch.no_grad()(lambda: model.layers[0](whole)),
            "step": lambda: ts.reduce(whole[:, 1:], "tome", keep=180, keys=key).apply(whole[:, 1:]),
            "by hand": lambda: merging(every.mean(1), whole, whole.new_ones(*whole.shape[:2], 1), 16),
        },
        asked.rounds,
    )
    print(f"one step 197 -> 181: {t['step'] / t['block']:.3f} of a block, by hand {t['by hand'] / t['block']:.3f}")
    encoder = WhisperEncoder(WhisperConfig(**TINY_EN)).eval()
    features = torch.full((1, 80, 3000), -1.0)
    features[..., :500] = torch.rand(80, 500) + 0.5

    def heard() -> object:
        with torch.no_grad():
            return encoder(features)

    t = turns({"padded": heard, "cut": (ts.sieve(encoder, "speech"), heard)}, max(3, asked.rounds // 2))
    print(f"Whisper tiny.en's shape, 5 s: {t['cut'] / t['padded']:.3f} of the padded encoder")


if __name__ == "__main__":
    main()
