"""TextToLatents: a text as a few embeddings in front of a frozen language model, and the files it is kept in."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tokensieve.core.errors import near
from tokensieve.core.files import write
from tokensieve.sites.prompt.readers import places

FORMAT = "tokensieve.latents.1"
TASKS = ("continue", "repeat")
"""What the language model is to do with the text: go on behind it, or say it again."""


class Reader(Protocol):
    """What turns token ids ``(B, N)`` and which are real into states ``(B, K, W)`` and which are real; ``width`` is W."""

    width: int

    def __call__(self, ids: Tensor, real: Tensor) -> tuple[Tensor, Tensor]: ...


@dataclass(frozen=True)
class TextLatents:
    """Texts as embeddings of a language model.

    Attributes:
        embeds: ``(B, K, D)``, in front of which nothing stands.
        real: ``(B, K)`` bool; rows of texts of different lengths have different numbers.
    """

    embeds: Tensor
    real: Tensor

    @property
    def counts(self) -> Tensor:
        """``(B,)``: the places each row takes in the language model's prompt."""
        return self.real.sum(1)

    def before(
        self, model: Any, input_ids: Tensor | None = None, attention_mask: Tensor | None = None
    ) -> dict[str, Tensor]:
        """What ``model.generate(**inputs)`` and ``model(**inputs)`` take: the latents, and tokens behind them.

        Args:
            model: the language model.
            input_ids: ``(B, T)``, a question, the last tokens of a text; none by default.
            attention_mask: ``(B, T)``, 0 at padding on either side.

        Returns:
            ``inputs_embeds``, ``attention_mask`` and ``position_ids``, of ``K + T`` places with all padding in front.

        Raises:
            ValueError: another number of rows, or a model of another width.
        """
        _, embeds, real = self._packed(model, input_ids, attention_mask)
        return {"inputs_embeds": embeds, "attention_mask": real.long(), "position_ids": places(real)}

    def loss(self, model: Any, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """The mean loss of tokens, each told by the latents and the tokens before it; gradients reach the latents alone.

        Args:
            model: the language model, which learns nothing whether or not it is frozen.
            input_ids: ``(B, T)``; attention_mask: ``(B, T)``, 0 at padding, which counts for nothing.

        Returns:
            A scalar, in nats for a token.
        """
        return -self.told(model, input_ids, attention_mask).sum() / _real(input_ids, attention_mask).sum()

    def told(self, model: Any, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """``(B, T)``: the log probability of each token behind the latents and the tokens before it; 0 at padding."""
        order, embeds, real = self._packed(model, input_ids, attention_mask)
        learning = [p for p in model.parameters() if p.requires_grad]
        for p in learning:
            p.requires_grad_(False)
        try:
            logits = model(
                inputs_embeds=embeds, attention_mask=real.long(), position_ids=places(real), use_cache=False
            ).logits
        finally:
            for p in learning:
                p.requires_grad_(True)
        length, wide = input_ids.shape[1], torch.cat([input_ids.new_zeros(self.real.shape), input_ids], 1)
        ids = wide.gather(1, order)[:, 1:]
        said = logits[:, :-1].float().log_softmax(-1).gather(2, ids[..., None])[..., 0]
        # Back to where the tokens stood.
        back = order.argsort(1)[:, -length:] - 1
        mask = _real(input_ids, attention_mask)
        return said.gather(1, back.clamp(min=0)) * mask

    def _packed(self, model: Any, ids: Tensor | None, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """The order ``(B, K + T)`` that brings all padding to the front, and embeddings and what is real in it."""
        table = model.get_input_embeddings()
        if table.weight.shape[1] != self.embeds.shape[2]:
            raise ValueError(
                f"the latents are {self.embeds.shape[2]} wide, and the embeddings of {type(model).__name__} "
                f"{table.weight.shape[1]}; they were made for another model"
            )
        embeds, real = self.embeds, self.real
        if ids is not None:
            if len(ids) != len(embeds):
                raise ValueError(f"input_ids has {len(ids)} rows, and the latents {len(embeds)}; give one row a text")
            with torch.no_grad():
                tokens = table(ids)
            embeds = torch.cat([embeds.to(tokens.dtype), tokens], 1)
            real = torch.cat([real, _real(ids, mask)], 1)
        order = real.to(torch.int8).argsort(dim=1, stable=True)
        return order, embeds.gather(1, order[..., None].expand_as(embeds)), real.gather(1, order)


def _real(ids: Tensor, mask: Tensor | None) -> Tensor:
    """Which tokens are real.

    Raises:
        ValueError: ids of other than two dimensions, a mask of another shape.
    """
    if ids.dim() != 2:
        raise ValueError(f"input_ids has the shape {tuple(ids.shape)}; it must be (rows, tokens)")
    if mask is None:
        return torch.ones_like(ids, dtype=torch.bool)
    if mask.shape != ids.shape:
        raise ValueError(
            f"attention_mask has the shape {tuple(mask.shape)}; it must be that of input_ids, {tuple(ids.shape)}"
        )
    return mask.bool()


class TextToLatents(nn.Module):
    """Turns texts into a few embeddings that a frozen language model reads in place of their tokens.

    A reader makes states of a text, a projection brings them into the space of the language model's embeddings, and behind them
    stands one more learned embedding that says what to do with them; it counts as a latent. Made by :func:`arc`, :func:`c3` or
    :func:`vist`, and of no use before it was trained.

    Args:
        reader: from token ids to states.
        project: ``(B, K, W)`` to ``(B, K, D)``.
        width: D, of the language model's embeddings.
        recipe: what a file says of how it was made: the name of the preset and its options.
        scale: the standard deviation of the language model's embeddings, which the learned ones begin with.
    """

    def __init__(self, reader: nn.Module, project: nn.Module, width: int, recipe: dict[str, Any], scale: float = 0.02):
        super().__init__()
        self.reader, self.project, self.recipe = reader, project, recipe
        self.task = nn.Parameter(torch.randn(len(TASKS), width) * scale)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None, task: str = "continue") -> TextLatents:
        """Texts as latents.

        Args:
            input_ids: ``(B, N)``, by the tokenizer of the reader (of the language model, unless another was given).
            attention_mask: ``(B, N)``, 0 at padding, on either side.
            task: ``"continue"``, or ``"repeat"``, which is trained for by saying the text again.

        Raises:
            ValueError: no such task, a mask of another shape, a row without a token.
        """
        if task not in TASKS:
            raise ValueError(f"task={task!r}; it must be one of {near(task, TASKS)}")
        real = _real(input_ids, attention_mask)
        empty = (~real.any(1)).nonzero()[:, 0].tolist()
        if empty:
            raise ValueError(f"row {empty[0]} has no token to read; leave out texts that are empty")
        states, asked = self.reader(input_ids, real)
        marker = self.task[TASKS.index(task)].expand(len(states), 1, -1)
        embeds = torch.cat([self.project(states), marker.to(states.dtype)], 1)
        return TextLatents(embeds, torch.cat([asked, asked.new_ones(len(asked), 1)], 1))

    def save(self, path: str | Path) -> None:
        """Write weights and how they came to be to one safetensors file, whole or not at all."""
        tensors = {name: value.detach().contiguous().clone() for name, value in self.state_dict().items()}
        meta = {"format": FORMAT, "recipe": json.dumps(self.recipe)}
        write(path, lambda part: save_file(tensors, part, metadata=meta))


def recipe_in(path: str | Path) -> dict[str, Any]:
    """How the module in a file was made.

    Raises:
        ValueError: a file that :meth:`TextToLatents.save` did not write.
    """
    try:
        with safe_open(path, "pt") as opened:
            meta = opened.metadata() or {}
    except SafetensorError as error:
        raise ValueError(f"{path} is no safetensors file: {error}") from error
    if meta.get("format") != FORMAT:
        raise ValueError(f"{path} is of the format {meta.get('format')!r}; TextToLatents.save writes {FORMAT!r}")
    return json.loads(meta["recipe"])


def fill(module: TextToLatents, path: str | Path) -> TextToLatents:
    """Weights from a file.

    Raises:
        ValueError: they are those of a module of other parts.
    """
    try:
        module.load_state_dict(load_file(path))
    except RuntimeError as error:
        raise ValueError(
            f"{path} holds weights of other parts ({str(error).splitlines()[-1].strip()}); give load() the language model, and "
            "the encoder, tokenizer or vision, that the module was made with"
        ) from error
    return module.eval()
