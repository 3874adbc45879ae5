"""ImageFolder: two tokens of one place in one autoregressive step."""

from __future__ import annotations

import torch
from torch import Generator, Tensor, nn
from torch.nn.functional import cross_entropy, pad

from benchmarks.reference.instella_95 import WIDTH, learned, stack


class Folded(nn.Module):
    """A causal transformer over codes ``(B, N, branches)``: a place a step, all branches at once (folded), or one code a step.

    Source: arXiv 2410.01756. Folded, a place is the sum of its codes' embeddings, and all its codes are predicted from one
    state, as if independent given the past; flattened, each code sees those of its place before it, at as many more steps.

    Args:
        codes: of a branch; branches; places: N.
        folded: which of the two.
    """

    def __init__(self, codes: int, branches: int, places: int, folded: bool):
        super().__init__()
        self.codes, self.branches, self.folded = codes, branches, folded
        self.steps = places if folded else places * branches
        self.tables = nn.ModuleList(nn.Embedding(codes, WIDTH) for _ in range(branches))
        self.heads = nn.ModuleList(nn.Linear(WIDTH, codes) for _ in range(branches))
        self.begin, self.places, self.body = learned(WIDTH), learned(self.steps, WIDTH), stack()

    def logits(self, indices: Tensor) -> list[Tensor]:
        """For each branch ``(B, N, codes)``, each from the codes before it alone."""
        said = torch.stack([t(i) for t, i in zip(self.tables, indices.unbind(2), strict=True)], 2)
        said = said.sum(2) if self.folded else said.flatten(1, 2)
        x = pad(said, (0, 0, 1, 0))[:, : self.steps]
        x = torch.cat([x[:, :1] + self.begin, x[:, 1:]], 1) + self.places[: x.shape[1]]
        mask = nn.Transformer.generate_square_subsequent_mask(x.shape[1])
        out = self.body(x, mask=mask, is_causal=True)
        if self.folded:
            return [head(out) for head in self.heads]
        return [head(out[:, i :: self.branches]) for i, head in enumerate(self.heads)]

    def loss(self, indices: Tensor) -> Tensor:
        """Nats an image."""
        told = zip(self.logits(indices), indices.unbind(2), strict=True)
        return sum(
            (cross_entropy(a.flatten(0, 1), b.flatten(), reduction="sum") for a, b in told), torch.zeros(())
        ) / len(indices)

    @torch.no_grad()
    def sample(self, count: int, places: int, generator: Generator | None = None) -> tuple[Tensor, int]:
        """Codes ``(count, places, branches)``, and how often the model was called."""
        out, calls = torch.zeros(count, places, self.branches, dtype=torch.int64), 0
        for step in range(self.steps):
            at = step if self.folded else step // self.branches
            logits, calls = self.logits(out[:, : at + 1]), calls + 1
            for branch in range(self.branches) if self.folded else [step % self.branches]:
                p = logits[branch][:, at].softmax(1)
                out[:, at, branch] = torch.multinomial(p, 1, generator=generator)[:, 0]
        return out, calls
