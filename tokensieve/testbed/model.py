"""The testbed's LLaVA: real classes and real geometry, at two small sizes, and the packaged weights."""

from pathlib import Path

import torch
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

from .words import SPECIAL, VOCABULARY

# "cpu" is the size that is packaged; "full" is for a GPU. Both stay under 30 MB in bfloat16.
SIZES = {
    "micro": {"vision": (16, 2, 2, 32), "text": (16, 1, 2, 32)},  # (width, layers, heads, mlp); for tests only
    "cpu": {"vision": (128, 6, 4, 384), "text": (160, 4, 5, 448)},
    "full": {"vision": (256, 8, 8, 1024), "text": (384, 6, 6, 768)},
}


def path() -> Path:
    """The directory of the packaged model, which `from_pretrained` reads as it is."""
    return Path(__file__).parent / "llava"


def load(device="cpu", dtype=torch.float32, directory=None, **kwargs):
    """The packaged model in evaluation mode, and its processor.

    `kwargs` go to `from_pretrained`, e.g. `attn_implementation="eager"`.
    """
    directory = directory or path()
    model = LlavaForConditionalGeneration.from_pretrained(directory, dtype=dtype, **kwargs)
    return model.to(device).eval(), LlavaProcessor.from_pretrained(directory)


def build(size: str, seed: int = 0) -> LlavaForConditionalGeneration:
    """An untrained model of one of `SIZES`."""
    torch.manual_seed(seed)
    keys = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
    vision, text = (dict(zip(keys, SIZES[size][part], strict=True)) for part in ("vision", "text"))
    token = {name: VOCABULARY.index(name) for name in SPECIAL}
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**vision, image_size=336, patch_size=14, projection_dim=vision["hidden_size"]),
        text_config=LlamaConfig(
            **text,
            num_key_value_heads=text["num_attention_heads"],
            vocab_size=len(VOCABULARY),
            max_position_embeddings=2048,
            initializer_range=0.5 * text["hidden_size"] ** -0.5,  # 0.02 is meant for far wider models
            pad_token_id=token["<pad>"],
            bos_token_id=token["<s>"],
            eos_token_id=token["</s>"],
        ),
        image_token_index=token["<image>"],
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        tie_word_embeddings=False,
    )
    model = LlavaForConditionalGeneration(config)
    for name in ("pad", "bos", "eos"):
        setattr(model.generation_config, f"{name}_token_id", getattr(config.text_config, f"{name}_token_id"))
    see_neighbours(model.model.vision_tower)
    for layer in (model.model.multi_modal_projector.linear_1, model.model.multi_modal_projector.linear_2):
        torch.nn.init.xavier_uniform_(layer.weight)
    return model


def tokenizer(vocabulary: tuple[str, ...]) -> PreTrainedTokenizerFast:
    """One token for each word; markers of pictures, in angle brackets, need no blanks around them."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(vocabulary)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    words.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", vocabulary.index("<s>"))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=words,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        pad_token="<pad>",
        additional_special_tokens=[word for word in ("<image>", "<video>") if word in vocabulary],
        padding_side="left",
        model_max_length=2048,
    )


def build_processor() -> LlavaProcessor:
    """The image processor and word-level tokenizer that go with `build`."""
    images = CLIPImageProcessorPil(size={"shortest_edge": 336}, crop_size={"height": 336, "width": 336})
    return LlavaProcessor(
        images,
        tokenizer(VOCABULARY),
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )


@torch.no_grad()
def see_neighbours(tower, gain: float = 3.0) -> None:
    """Start the vision tower as something close to a convolution.

    A few channels hold the position as sines and cosines, at first undisturbed by anything else; in the early layers
    each head starts out attending to one neighbouring patch: its query is the key turned by one step of the grid. A
    tower this small otherwise spends most of its training on finding out which patches are side by side. All of it
    stays trainable.
    """
    config, side = tower.config, tower.config.image_size // tower.config.patch_size
    head = config.hidden_size // config.num_attention_heads
    waves = head // 4  # per axis; with sine and cosine, the two axes fill one head
    rate = 2 * torch.pi / torch.logspace(0.5, 1.6, waves)  # wavelengths of 3 to 40 patches
    angle = torch.arange(side)[:, None] * rate
    wave = torch.cat([angle.sin(), angle.cos()], dim=1)
    grid = torch.cat([wave[:, None].expand(side, side, -1), wave[None].expand(side, side, -1)], dim=-1)
    place = tower.embeddings.position_embedding.weight
    place.zero_()
    place[1:, :head] = 1.5 * grid.reshape(side * side, head)
    tower.embeddings.patch_embedding.weight[:head] = 0
    steps = [(0, -1), (0, 1), (-1, 0), (1, 0), (0, 0), (0, 2), (0, -2), (2, 0), (-2, 0), (1, 1), (-1, -1), (1, -1)]
    for index, layer in enumerate(tower.encoder.layers):
        layer.self_attn.out_proj.weight[:head] = 0
        layer.mlp.fc2.weight[:head] = 0
        if index >= config.num_hidden_layers - 2:
            continue  # the last layers look where they like
        for h in range(config.num_attention_heads):
            step = steps[(index * config.num_attention_heads + h) % len(steps)]
            turn = torch.zeros(head, head)
            for axis, move in enumerate(step):
                sine = 2 * waves * axis + torch.arange(waves)
                cosine, by = sine + waves, rate * move
                turn[sine, sine], turn[sine, cosine] = by.cos(), by.sin()
                turn[cosine, cosine], turn[cosine, sine] = by.cos(), -by.sin()
            rows = slice(h * head, (h + 1) * head)
            layer.self_attn.q_proj.weight[rows, :head] = gain * turn
            layer.self_attn.k_proj.weight[rows, :head] = gain * torch.eye(head)
        torch.nn.init.xavier_uniform_(layer.self_attn.v_proj.weight)
