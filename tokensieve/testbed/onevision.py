"""The model of several pictures: a LLaVA-OneVision of the same parts, which reads clips, pairs and pictures in crops."""

from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import (
    BatchFeature,
    LlavaForConditionalGeneration,
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    LlavaOnevisionImageProcessorPil,
    PreTrainedTokenizerFast,
)

from .clips import FRAMES
from .model import tokenizer
from .scenes import SIZE
from .several import Several
from .words import EXTENDED

PINS = ((SIZE, SIZE), (2 * SIZE, 2 * SIZE))
TOKENS = {"clip": FRAMES * 144 + 1, "pair": 2 * 577, "anyres": 576 + 24 * 25}
"""Visual tokens of a prompt. Every frame is pooled to 12 x 12 and a clip ends in one more token, as a picture of a pair does;
the four crops are pooled to 24 x 24 together, and their lines end in one more each."""


def several_path() -> Path:
    """The directory of the packaged model of several pictures."""
    return Path(__file__).parent / "onevision"


def grown(model: LlavaForConditionalGeneration) -> LlavaOnevisionForConditionalGeneration:
    """A OneVision with the weights of a LLaVA; words that are new to it get small random ones."""
    old, vocabulary = model.config, len(EXTENDED)
    text = old.text_config.to_dict() | {"vocab_size": vocabulary}
    config = LlavaOnevisionConfig(
        vision_config=old.vision_config,
        text_config=type(old.text_config).from_dict(text),
        image_token_index=old.image_token_index,
        video_token_index=EXTENDED.index("<video>"),
        vision_feature_layer=old.vision_feature_layer,
        vision_feature_select_strategy=old.vision_feature_select_strategy,
        image_grid_pinpoints=[list(pin) for pin in PINS],
        vision_aspect_ratio="anyres_max_1",
        tie_word_embeddings=False,
    )
    new = LlavaOnevisionForConditionalGeneration(config)
    state = new.state_dict()
    for name, value in model.state_dict().items():
        state[name][: len(value)] = value
    state["model.image_newline"].zero_()
    new.load_state_dict(state)
    new.generation_config = model.generation_config
    return new


class ItemReader:
    """Makes model inputs of items of one form, and text of answers.

    Attributes:
        tokenizer, image_processor: those of the directory, as transformers reads them.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast, image_processor: LlavaOnevisionImageProcessorPil):
        self.tokenizer, self.image_processor = tokenizer, image_processor

    @classmethod
    def fresh(cls) -> "ItemReader":
        side = {"height": SIZE, "width": SIZE}
        return cls(tokenizer(EXTENDED), LlavaOnevisionImageProcessorPil(size=side, image_grid_pinpoints=list(PINS)))

    @classmethod
    def load(cls, directory: Path) -> "ItemReader":
        return cls(
            PreTrainedTokenizerFast.from_pretrained(directory),
            LlavaOnevisionImageProcessorPil.from_pretrained(directory),
        )

    def save(self, directory: Path) -> None:
        self.tokenizer.save_pretrained(directory)
        self.image_processor.save_pretrained(directory)

    def __call__(self, items: Sequence[Several]) -> BatchFeature:
        """Inputs of a batch, padded on the left.

        Raises:
            ValueError: items of different forms.
        """
        forms = {item.form for item in items}
        if len(forms) > 1:
            raise ValueError(f"a batch holds items of one form; got {', '.join(sorted(forms))}")
        form = forms.pop()
        seen = self.image_processor([list(item.images) for item in items], return_tensors="pt")
        if form == "clip":
            seen = {"pixel_values_videos": seen["pixel_values"].view(len(items), FRAMES, 3, SIZE, SIZE)}
        each = TOKENS[form] // (2 if form == "pair" else 1)
        texts = [
            item.prompt.replace("<image>", "<image>" * each).replace("<video>", "<video>" * each) for item in items
        ]
        asked = self.tokenizer(texts, padding=True, return_tensors="pt", return_token_type_ids=False)
        return BatchFeature({**asked, **seen})

    def batch_decode(self, ids, skip_special_tokens: bool = True) -> list[str]:
        return self.tokenizer.batch_decode(ids, skip_special_tokens=skip_special_tokens)


def load_several(device="cpu", dtype=torch.float32, directory=None, **kwargs):
    """The packaged model of several pictures in evaluation mode, and its :class:`ItemReader`."""
    directory = directory or several_path()
    model = LlavaOnevisionForConditionalGeneration.from_pretrained(directory, dtype=dtype, **kwargs)
    return model.to(device).eval(), ItemReader.load(directory)


def prefix(model, form: str, tiles: torch.Tensor) -> torch.Tensor:
    """`<s>` and the visual tokens of pictures `(B, T, 3, 336, 336)`, embedded: `(B, 1 + TOKENS[form], D)`.

    A large picture comes as its thumbnail and four crops.
    """
    body, count = model.model, len(tiles)
    if form == "clip":
        seen = body.get_video_features(tiles).pooler_output
    elif form == "pair":
        sizes = torch.full((2 * count, 2), SIZE)
        number = torch.full((count,), 2)
        made = body.get_image_features(tiles.flatten(0, 1)[:, None], sizes, batch_num_images=number)
        seen = torch.stack(list(made.pooler_output)).view(count, TOKENS[form], -1)
    else:
        seen = torch.stack(list(body.get_image_features(tiles, torch.full((count, 2), 2 * SIZE)).pooler_output))
    start = torch.full((count, 1), EXTENDED.index("<s>"), device=tiles.device)
    return torch.cat([model.get_input_embeddings()(start).to(seen.dtype), seen], dim=1)
