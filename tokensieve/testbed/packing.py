"""Many questions about one image in one sequence, each as if it were asked alone.

The image is encoded once: `[prefix | question 1 + answer | question 2 + answer | ...]`. A 4-D mask lets each question
see the prefix and itself, and its positions start again right after the prefix.
"""

from collections.abc import Callable

import torch

from .questions import SceneQuestion, prompt
from .words import EXTENDED

IGNORE = -100
_ID = {word: i for i, word in enumerate(EXTENDED)}
START = _ID["<s>"]


def encode(question: SceneQuestion) -> tuple[list[int], list[int]]:
    """Token ids of what follows the image in the prompt, and of the answer with its end."""
    after = prompt(question.text).removeprefix("<image> ").split()
    return [_ID[w] for w in after], [_ID[w] for w in question.answer.split()] + [_ID["</s>"]]


def pack(
    asked: list[list[SceneQuestion]],
    prefix: int,
    encode: Callable[[SceneQuestion], tuple[list[int], list[int]]] = encode,
    pad: int = _ID["<pad>"],
) -> dict[str, torch.Tensor]:
    """Rows of questions for a batch whose images (with what is before them) take `prefix` positions.

    Returns `ids`, `labels` and `segment` of shape (B, L), where the segment counts questions from 1 and is 0 on
    padding, and `positions` (B, prefix + L). `labels[i]` is what the token at `i` has to predict.
    """
    rows = []
    for questions in asked:
        ids: list[int] = []
        labels: list[int] = []
        segment: list[int] = []
        place: list[int] = []
        for number, question in enumerate(questions, 1):
            before, answer = encode(question)
            whole = before + answer
            ids += whole[:-1]
            labels += [IGNORE] * (len(before) - 1) + answer
            segment += [number] * (len(whole) - 1)
            place += range(prefix, prefix + len(whole) - 1)
        rows.append((ids, labels, segment, place))
    longest = max(len(row[0]) for row in rows)
    fills = (pad, IGNORE, 0, 0)
    padded = [torch.tensor([row[k] + [fill] * (longest - len(row[k])) for row in rows]) for k, fill in enumerate(fills)]
    positions = torch.cat([torch.arange(prefix).expand(len(rows), -1), padded[3]], dim=1)
    return {"ids": padded[0], "labels": padded[1], "segment": padded[2], "positions": positions}


def mask(segment: torch.Tensor, prefix: int) -> torch.Tensor:
    """The (B, 1, N, N) boolean mask: causal, and between questions nothing. Padding sees only itself."""
    whole = torch.cat([segment.new_full((len(segment), prefix), -1), segment], dim=1)
    row, column = whole[:, :, None], whole[:, None, :]
    causal = torch.ones(whole.shape[1], whole.shape[1], dtype=torch.bool, device=whole.device).tril()
    seen = causal & ((row == column) | (column == -1)) & (row != 0)
    return (seen | torch.eye(len(causal), dtype=torch.bool, device=whole.device))[:, None]


def run(model, prefix: torch.Tensor, packed: dict[str, torch.Tensor]) -> torch.Tensor:
    """Logits (B, L, V) of the packed questions behind the embedded prefix (B, P, D)."""
    return model.lm_head(states(model, prefix, packed))


def states(model, prefix: torch.Tensor, packed: dict[str, torch.Tensor]) -> torch.Tensor:
    """What the head is given there: (B, L, D)."""
    body = model.model
    embedded = torch.cat([prefix, model.get_input_embeddings()(packed["ids"]).to(prefix.dtype)], dim=1)
    hidden = body.language_model(
        inputs_embeds=embedded,
        attention_mask=mask(packed["segment"], prefix.shape[1]),
        position_ids=packed["positions"],
        use_cache=False,
    ).last_hidden_state
    return hidden[:, prefix.shape[1] :]


def image_prefix(model, pixel_values: torch.Tensor) -> torch.Tensor:
    """`<s>` and the projected patches, embedded: (B, 577, D)."""
    patches = torch.stack(list(model.get_image_features(pixel_values).pooler_output))
    start = torch.full((len(patches), 1), START, device=patches.device)
    return torch.cat([model.get_input_embeddings()(start).to(patches.dtype), patches], dim=1)


def right(logits: torch.Tensor, packed: dict[str, torch.Tensor]) -> list[list[bool]]:
    """For each row and question: would greedy decoding give exactly the answer?

    Greedy decoding follows the right answer as long as each next token is right, so one teacher-forced pass decides.
    """
    return answered(logits.argmax(-1), packed)


def answered(guess: torch.Tensor, packed: dict[str, torch.Tensor]) -> list[list[bool]]:
    """Likewise from the likeliest tokens (B, L); what stands where nothing has to be predicted does not matter."""
    wrong = ((guess != packed["labels"]) & (packed["labels"] != IGNORE)).cpu()
    segment = packed["segment"].cpu()
    failed = [set(row[bad].tolist()) for row, bad in zip(segment, wrong, strict=True)]
    return [[k not in bad for k in range(1, int(row.max()) + 1)] for row, bad in zip(segment, failed, strict=True)]
