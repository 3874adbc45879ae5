"""Checks of next bytes from next tokens and of prompts cut inside a token, on the packaged model and on Markov text."""

from __future__ import annotations

import itertools
import math
import random
import re
from functools import cache
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from torch.nn.functional import one_hot

import tokensieve as ts
from benchmarks.systems.bed import CheckContext, Outcome, check
from tokensieve.testbed import lm
from tokensieve.testbed.lm.corpus import guide, is_held_out, standard_library
from tokensieve.text.decoding import ByteModel
from tokensieve.text.proper import Spelling

PROMPTS, CONTEXT = 60, 300


@cache
def packaged() -> tuple[Any, Any, ByteModel]:
    model, tokenizer = lm.load()
    return model, tokenizer, ts.byte_model(model, tokenizer)


@cache
def cut_prompts(count: int, context: int = CONTEXT) -> list[tuple[str, str, str]]:
    """Held-out Python: text up to a word that it holds before, the word, and where the word is cut: each offset in turn."""
    texts = [d.text for d in itertools.chain(standard_library(), guide()) if is_held_out(d) and len(d.text) > 2000]
    generator, out = random.Random(0), []
    generator.shuffle(texts)
    for text in itertools.cycle(texts):
        found = [m for m in re.finditer(r"(?<=[ (.])[a-z_]{5,12}(?=\W)", text) if m.start() > context]
        generator.shuffle(found)
        for m in found[:2]:
            before = text[m.start() - context : m.start()]
            if m[0] in before:
                out += [(before, m[0], m[0][:n]) for n in range(1, len(m[0]))]
        if len(out) >= count:
            generator.shuffle(out)
            return out[:count]
    raise AssertionError("unreached")


def completes(answer: bytes, word: str, given: str) -> bool:
    """Whether an answer goes on with the rest of a word, and then ends it."""
    rest = word[len(given) :].encode()
    return re.match(re.escape(rest) + rb"(?![a-z_])", answer) is not None


@torch.no_grad()
def greedy(text: str, tokens: int = 12) -> bytes:
    model, _, b = packaged()
    ids = torch.tensor([b.spelling.encode(text)])
    out = model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=tokens, do_sample=False, pad_token_id=0
    )
    return b.spelling.joined(out[0, ids.shape[1] :].tolist())


def aligned(text: str, back: int, tokens: int = 12) -> bytes:
    model, _, b = packaged()
    found = b.align(text, back)
    out = model.generate(**found.inputs, max_new_tokens=tokens + back, do_sample=False, pad_token_id=0)
    return found.completions(out)[0]


@check(280)
def alignment(_: CheckContext) -> Outcome:
    """The packaged model, held-out Python, 60 prompts cut at an offset of a word seen before: one token back completes more
    words than plain decoding; 60 prompts cut behind a word go on unchanged with back=0, and their share that back=1 changes."""
    prompts = cut_prompts(PROMPTS)
    right = {"uncut": 0, "naive": 0, "align 1": 0, "align 3": 0}
    for before, word, given in prompts:
        right["uncut"] += completes(greedy(before), word, "")
        right["naive"] += completes(greedy(before + given), word, given)
        for back in (1, 3):
            right[f"align {back}"] += completes(aligned(before + given, back), word, given)
    same = changed = 0
    for before, word, _given in prompts:
        plain = greedy(before + word)
        same += aligned(before + word, 0) == plain
        # One step more was taken back: compared is what both have.
        other = aligned(before + word, 1)
        changed += other[: min(len(other), len(plain))] != plain[: min(len(other), len(plain))]
    n: dict[str, Any] = {"prompts": len(prompts)} | {f"right, {k}": v for k, v in right.items()}
    n |= {"uncut prompts unchanged by back=0": same, "changed by back=1": changed}
    return right["align 1"] > right["naive"] and same == len(prompts), n


def enumerated(b: ByteModel, prefix: bytes) -> Tensor:
    """(257,) probabilities by the definition: every row of tokens that covers a byte more, its finished part proper, each read
    alone."""
    spelled = b.spelling.vocabulary.bytes
    mass = torch.zeros(257, dtype=torch.float64)
    start = 0

    @torch.no_grad()
    def behind(ids: list[int]) -> Tensor:
        return b.model(input_ids=torch.tensor([[start, *ids]])).logits[0].double().log_softmax(-1)

    def walk(ids: list[int], text: bytes) -> None:
        if b.spelling.encode(text.decode()) != ids:
            return
        logs = behind(ids)
        own = float(sum(logs[i, t] for i, t in enumerate(ids)))
        p = (own + logs[-1]).exp()
        if text == prefix:
            mass[256] += float(p[list(b.ends)].sum())
        for i, s in enumerate(spelled):
            if s and len(text + s) > len(prefix) and (text + s).startswith(prefix):
                mass[(text + s)[len(prefix)]] += p[i]
            elif s and len(text + s) <= len(prefix) and prefix.startswith(text + s):
                walk([*ids, i], text + s)

    walk([], b"")
    return mass / mass.sum()


@check(43)
def exact(_: CheckContext) -> Outcome:
    """The packaged model: next-byte probabilities of short prefixes equal enumeration over the same covers within 1e-5; of the
    60 prompts cut inside a word, byte by byte completes more than plain decoding, and at least as many as one token back."""
    b = packaged()[2]
    worst = 0.0
    for prefix in (b"", b"re", b"import o", b"def main", b"for name in ", b"the stat", b"    ret"):
        worst = max(worst, float((b.next(prefix).log_probs.exp() - enumerated(b, prefix)).abs().max()))
    right = {"naive": 0, "align 1": 0, "exact": 0}
    outside = []
    for before, word, given in cut_prompts(PROMPTS):
        text = before + given
        right["naive"] += completes(greedy(text), word, given)
        right["align 1"] += completes(aligned(text, 1), word, given)
        right["exact"] += completes(b.generate(text, max_bytes=len(word) - len(given) + 1), word, given)
        outside.append(b.next(text).outside)
    n: dict[str, Any] = {"largest difference to enumeration": worst, "prompts": PROMPTS}
    n |= {f"right, {k}": v for k, v in right.items()} | {"outside, mean": float(np.mean(outside))}
    return worst < 1e-5 and right["exact"] > right["naive"] and right["exact"] >= right["align 1"], n


CHAIN = np.array([[0.2, 0.5, 0.3], [0.6, 0.1, 0.3], [0.3, 0.4, 0.3]])
LETTERS = "abc"


def table(rows: list[list[int]], size: int) -> Tensor:
    """(size, size) log-probabilities of tokens given the last one, as counted in encoded text: all there is to know of the
    tokens of a Markov chain cut by longest match."""
    counts = np.full((size, size), 1e-9)
    for row in rows:
        np.add.at(counts, (row[:-1], row[1:]), 1)
    return torch.from_numpy(np.log(counts / counts.sum(1, keepdims=True)))


def markov(size: int) -> str:
    draws, state, out = np.random.default_rng(0).random(size).tolist(), 0, []
    bounds = CHAIN.cumsum(1).tolist()
    for u in draws:
        out.append(LETTERS[state])
        state = (u > bounds[state][0]) + (u > bounds[state][1])
    return "".join(out)


def vocabularies(text: str) -> dict[str, Tokenizer]:
    """A BPE learned on the text, and the same pieces cut by the longest match."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    bpe.decoder = decoders.ByteLevel()
    lines = [text[i : i + 200] for i in range(0, 40_000, 200)]
    trainer = trainers.BpeTrainer(
        vocab_size=16, initial_alphabet=list(LETTERS), special_tokens=["<s>"], show_progress=False
    )
    bpe.train_from_iterator(lines, trainer)
    pieces = {"[UNK]": len(bpe.get_vocab())} | bpe.get_vocab()
    greedy_ = Tokenizer(
        models.WordPiece(pieces, unk_token="[UNK]", continuing_subword_prefix="", max_input_chars_per_word=10**9)
    )
    greedy_.decoder = decoders.Fuse()
    greedy_.add_special_tokens(["<s>"])
    return {"bpe": bpe, "longest match": greedy_}


@check(176)
def transitions(_: CheckContext) -> Outcome:
    """A Markov chain of 3 letters, 3 million of them, cut by a BPE of 16 tokens and by longest match; the model is the table of
    its tokens' transitions. Next letters behind all contexts of 6 letters: within 0.02 of the chain's by covers, while those
    read off the next token alone are not."""
    text = markov(3_000_000)
    contexts = ["".join(c) for c in itertools.product(LETTERS, repeat=6)]
    n: dict[str, Any] = {"contexts": len(contexts)}
    shown = True
    for name, tokenizer in vocabularies(text).items():
        # The last tokens of a line stand where it was cut, and say nothing of the chain.
        rows = [[0, *tokenizer.encode(text[i : i + 500]).ids[:-4]] for i in range(0, len(text), 500)]
        size = max(tokenizer.get_vocab().values()) + 1
        logs = table(rows, size)
        model = _as_model(logs)
        b = ts.byte_model(model, tokenizer)
        spelled = Spelling(tokenizer).vocabulary.bytes
        exact_, naive = [], []
        for context in contexts:
            truth = CHAIN[LETTERS.index(context[-1])]
            letters = b.next(context).log_probs.exp()[[ord(c) for c in LETTERS]].numpy()
            exact_.append(np.abs(letters / letters.sum() - truth).max())
            p = logs[tokenizer.encode(context).ids[-1]].exp().numpy()
            alone = np.array([sum(p[i] for i, s in enumerate(spelled) if s and s[:1] == c.encode()) for c in LETTERS])
            naive.append(np.abs(alone / alone.sum() - truth).max())
        n |= {
            f"largest error, {name}, covers": float(max(exact_)),
            f"largest error, {name}, next token": float(max(naive)),
        }
        n[f"mean error, {name}, covers"] = float(np.mean(exact_))
        shown = shown and max(exact_) < 0.02 < max(naive)
    return shown, n


def _as_model(logs: Tensor) -> Any:
    """A Llama of one layer whose attention and MLP add nothing, so that its logits are the table's rows."""
    from transformers import LlamaConfig, LlamaForCausalLM

    size = len(logs)
    width = 2 * math.ceil(size / 2)
    config = LlamaConfig(
        vocab_size=size, hidden_size=width, intermediate_size=4, num_hidden_layers=1, num_attention_heads=1,
        bos_token_id=0, eos_token_id=0, rms_norm_eps=1e-12,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    for layer in model.model.layers:
        layer.self_attn.o_proj.weight.data.zero_()
        layer.mlp.down_proj.weight.data.zero_()
    model.model.embed_tokens.weight.data = one_hot(torch.arange(size), width).float()
    model.lm_head.weight.data = torch.zeros(size, width)
    model.lm_head.weight.data[:, :size] = logs.T.float() / math.sqrt(width)
    return model
