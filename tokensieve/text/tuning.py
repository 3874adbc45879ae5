"""Training of a model on a row of ids, that can be put down and taken up again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from tokensieve.core.files import write

MOMENTS = ("exp_avg", "exp_avg_sq")


class Tuning:
    """AdamW without decay over windows of a row of ids, drawn at random::

        with Tuning(model, ids, fresh=None) as tuning:
            for _ in range(100):
                loss = tuning.step()

    Args:
        model: changed in place.
        ids: what it learns.
        fresh: ids of rows of input and output to train alone, all others stay bit for bit; all weights if None.
        length, batch: tokens of a window, and windows of a step.

    Attributes:
        done: steps that were made.

    Raises:
        ValueError: there are fewer than two ids.
    """

    def __init__(
        self,
        model: Any,
        ids: Sequence[int],
        fresh: Sequence[int] | None,
        rate: float = 1e-3,
        length: int = 256,
        batch: int = 4,
        seed: int = 0,
    ):
        self.model, self.done, self.batch = model, 0, batch
        self._stream = torch.tensor(ids)
        self.length = min(length, len(self._stream) - 1)
        if self.length < 1:
            raise ValueError(f"{len(self._stream)} tokens are too few to tune on; give more text")
        self._settings = [fresh is None or list(fresh), rate, self.length, batch, seed]
        self._generator = torch.Generator().manual_seed(seed)
        named = dict(model.named_parameters())
        if fresh is not None:
            head = model.get_output_embeddings()
            ends = [model.get_input_embeddings().weight, *([] if head is None else [head.weight])]
            named = {name: p for name, p in named.items() if any(p is end for end in ends)}
        self._named: dict[str, nn.Parameter] = named
        self._rows = None if fresh is None else torch.tensor(fresh, dtype=torch.long)
        self._optimizer = torch.optim.AdamW(named.values(), lr=rate, weight_decay=0.0)
        self._asked: dict[int, bool] = {}

    def __enter__(self) -> Tuning:
        self._asked = {id(p): p.requires_grad for p in self.model.parameters()}
        for p in self.model.parameters():
            p.requires_grad_(any(p is own for own in self._named.values()))
        return self

    def __exit__(self, *_: Any) -> None:
        self.model.eval()
        for p in self.model.parameters():
            p.requires_grad_(self._asked[id(p)])

    def step(self) -> float:
        """One step; the loss before it, nats a token."""
        self.model.train()
        at = torch.randint(len(self._stream) - self.length, (self.batch,), generator=self._generator)
        rows = torch.stack([self._stream[a : a + self.length + 1] for a in at]).to(self.model.device)
        logits = self.model(input_ids=rows[:, :-1]).logits.float()
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten())
        self._optimizer.zero_grad()
        loss.backward()
        if self._rows is not None:
            for w in self._named.values():
                assert w.grad is not None
                kept = w.grad[self._rows]
                w.grad.zero_()  # AdamW without decay leaves rows without a gradient as they are
                w.grad[self._rows] = kept
        self._optimizer.step()
        self.done += 1
        return float(loss.detach())

    def digest(self) -> str:
        """Of the weights as they are, of what is learned, and how; the same for the same run alone."""
        out = hashlib.sha256(json.dumps(self._settings).encode())
        out.update(self._stream.numpy().tobytes())
        for name, p in self.model.named_parameters():
            total = float(p.detach().sum(dtype=torch.float64))
            out.update(f"{name} {tuple(p.shape)} {total:.9g}".encode())  # threads add up in an order of their own
        return out.hexdigest()

    def put_down(self, file: Path, facts: dict[str, Any]) -> None:
        """Write what :meth:`take_up` needs, and some facts beside it, whole or not at all: safetensors."""
        held: dict[str, Tensor] = {"generator": self._generator.get_state()}
        for name, p in self._named.items():
            held[f"weight {name}"] = self._part(p.detach())
            for moment in MOMENTS:
                held[f"{moment} {name}"] = self._part(self._optimizer.state[p][moment])
        metadata = {"facts": json.dumps(facts), "done": str(self.done)}
        write(file, lambda part: save_file({k: v.contiguous() for k, v in held.items()}, part, metadata))

    def take_up(self, file: Path) -> None:
        """Go on where a run of the same :meth:`digest` was put down."""
        with safe_open(file, "pt") as held:
            self.done = int(held.metadata()["done"])
            self._generator.set_state(held.get_tensor("generator"))
            for name, p in self._named.items():
                self._fill(p.detach(), held.get_tensor(f"weight {name}"))
                state = {"step": torch.tensor(float(self.done))}
                for moment in MOMENTS:
                    state[moment] = torch.zeros_like(p)
                    self._fill(state[moment], held.get_tensor(f"{moment} {name}"))
                self._optimizer.state[p] = state

    def _part(self, whole: Tensor) -> Tensor:
        return whole if self._rows is None else whole[self._rows]

    def _fill(self, whole: Tensor, part: Tensor) -> None:
        if self._rows is None:
            whole.copy_(part)
        else:
            whole[self._rows] = part.to(whole)


def facts_of(file: Path) -> dict[str, Any]:
    """What stands beside a run that was put down."""
    with safe_open(file, "pt") as held:
        found: dict[str, Any] = json.loads(held.metadata()["facts"])
    return found
