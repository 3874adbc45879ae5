"""The testbed's causal LM: an unmodified `LlamaForCausalLM` with rotary positions and grouped-query attention."""

from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from .corpus import END, PAD, VOCABULARY

# (width, layers, query heads, key-value heads, head width, mlp); "micro" is for tests only, "deep" is trained on the spot.
SIZES = {"micro": (64, 2, 4, 2, 16, 96), "deep": (128, 8, 4, 2, 32, 320), "cpu": (256, 4, 4, 2, 64, 640)}
LENGTH = 8192  # the longest context it was trained on
THETA = 1e8  # half the frequencies hardly turn within LENGTH: they match contents at any distance


def path() -> Path:
    """The directory of the packaged model, which `from_pretrained` reads as it is."""
    return Path(__file__).parent.parent / "llama"


def load(device="cpu", dtype=torch.float32, directory=None, **kwargs):
    """The packaged model in evaluation mode, and its tokenizer. `kwargs` go to `from_pretrained`."""
    directory = directory or path()
    model = LlamaForCausalLM.from_pretrained(directory, dtype=dtype, **kwargs)
    return model.to(device).eval(), PreTrainedTokenizerFast.from_pretrained(directory)


def build(size: str, seed: int = 0, counts: torch.Tensor | None = None) -> LlamaForCausalLM:
    """An untrained model of one of `SIZES`; `counts` (V,) says how often each token is to be expected at first."""
    torch.manual_seed(seed)
    width, layers, heads, groups, head, mlp = SIZES[size]
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=groups,
        head_dim=head,
        intermediate_size=mlp,
        max_position_embeddings=LENGTH,
        rope_parameters={"rope_type": "default", "rope_theta": THETA},
        initializer_range=0.5 * width**-0.5,  # 0.02 is meant for far wider models
        tie_word_embeddings=False,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=1,
    )
    model = LlamaForCausalLM(config)
    _look_back(model, torch.ones(VOCABULARY) if counts is None else counts)
    return model


def build_tokenizer(file: Path) -> PreTrainedTokenizerFast:
    """The tokenizer that `corpus` has trained, as transformers reads it."""
    return PreTrainedTokenizerFast(
        tokenizer_file=str(file),
        bos_token=END,
        eos_token=END,
        pad_token=PAD,
        padding_side="left",
        model_max_length=LENGTH,
        clean_up_tokenization_spaces=False,
    )


CONSTANT, COMMON, OWN = 0, 1, 2  # the channels that are the same everywhere, that raise frequent tokens, of the token


@torch.no_grad()
def _look_back(
    model: LlamaForCausalLM, counts: torch.Tensor, sharp: float = 6.0, match: float = 2.0, copy: float = 4.0
) -> None:
    """Start with heads that find earlier text like the present one and repeat what came next.

    In the first layer three heads attend to the tokens 1, 2 and 3 back and write what they see into channels of their
    own. In the second, one head per group compares these three with the present token and the two before it, and copies
    the token found. Beside that the frequencies of the tokens are expected. A model this small otherwise spends most of
    its training on finding out that this helps. All of it stays trainable.
    """
    config, scale = model.config, 0.3
    width, head, heads = config.hidden_size, config.head_dim, config.num_attention_heads
    groups, layers = config.num_key_value_heads, model.model.layers
    own = width // 2  # the token is in OWN..own, and what was seen 1, 2, 3 back in the rest
    part = min((width - own) // 3, head - 1)
    seen = [slice(own + i * part, own + (i + 1) * part) for i in range(3)]
    for layer in layers:
        for matrix in (layer.self_attn.o_proj, layer.mlp.down_proj):
            matrix.weight *= 0.2

    table, output = model.model.embed_tokens.weight, model.lm_head.weight
    table.normal_(std=scale)
    table[:, own:] *= 0.1
    table[:, CONSTANT], table[:, COMMON] = 3 * scale, 0
    output *= 0.1
    output[:, OWN:own] = 0.2 * table[:, OWN:own]
    output[:, COMMON] = (counts + 1).log() - (counts + 1).log().mean()

    code = torch.zeros(part, own)
    code[:, OWN:] = _spread(part, own - OWN)
    first = layers[0].self_attn
    half, turning = head // 2, 6  # pairs of channels, and how many of them turn fast enough to tell places apart
    speed = model.model.rotary_emb.inv_freq[:turning]
    for group in range(groups):
        key, value = (matrix.weight[group * head : (group + 1) * head] for matrix in (first.k_proj, first.v_proj))
        key.zero_()
        value.zero_()
        key[:turning, CONSTANT] = 1.0
        value[:part, :own] = code
        value[part, CONSTANT] = 1.0
    for index in range(min(heads, 3)):
        rows = slice(index * head, (index + 1) * head)
        query = first.q_proj.weight[rows]
        query.zero_()
        # A key at place j is turned by j; turning the query back makes them meet that many places earlier.
        query[:turning, CONSTANT] = sharp * torch.cos(speed * (index + 1))
        query[half : half + turning, CONSTANT] = -sharp * torch.sin(speed * (index + 1))
        first.o_proj.weight[:, rows] = 0
        first.o_proj.weight[seen[index], rows] = scale * torch.eye(part, head)
    first.o_proj.weight[COMMON, part] = scale / 3

    second = layers[1].self_attn
    still = torch.tensor([*range(half // 2, half), *range(half + half // 2, head)])  # these hardly turn
    for group in range(groups):
        mine = torch.arange(group * head, (group + 1) * head)
        asking = torch.arange(group * (heads // groups) * head, (group * (heads // groups) + 1) * head)
        for matrix, there in ((second.k_proj, mine), (second.v_proj, mine), (second.q_proj, asking)):
            matrix.weight[there] = 0
        for step in range(3):
            view = _spread(len(still), part)
            second.k_proj.weight[mine[still], seen[step]] = view
            now = (slice(own), match * view @ code) if step == 0 else (seen[step - 1], match * view)
            second.q_proj.weight[asking[still], now[0]] = now[1]
        piece = torch.arange(OWN + group * (own - OWN) // groups, OWN + (group + 1) * (own - OWN) // groups)[:head]
        second.v_proj.weight[mine[: len(piece)], piece] = 1.0
        second.o_proj.weight[:, asking] = 0
        second.o_proj.weight[piece, asking[: len(piece)]] = copy * scale


def _spread(rows: int, columns: int) -> torch.Tensor:
    """A random matrix with orthonormal rows, or columns where there are fewer of them."""
    made = torch.linalg.qr(torch.randn(max(rows, columns), min(rows, columns)))[0]
    return made if rows > columns else made.T
