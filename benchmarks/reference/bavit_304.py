"""A two-layer classifier of patches into foreground and background, in front of a larger encoder."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class BackgroundViT(nn.Module):
    """From embedded patches ``(B, N, D)`` to the probability of foreground of each, ``(B, N)``.

    Source: BAViT, arXiv 2410.09324: a few layers of a ViT, trained on boxes or masks. Deviation: it reads the embeddings of the
    encoder behind it, so that they are made once; the paper's makes its own.
    """

    def __init__(self, width: int, layers: int = 2, heads: int = 4):
        super().__init__()
        block = nn.TransformerEncoderLayer(width, heads, 2 * width, 0.0, "gelu", batch_first=True, norm_first=True)
        self.blocks = nn.TransformerEncoder(block, layers, enable_nested_tensor=False)
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 1)

    def logits(self, patches: Tensor) -> Tensor:
        return self.head(self.norm(self.blocks(patches)))[..., 0]

    def forward(self, patches: Tensor) -> Tensor:
        return self.logits(patches).sigmoid()


@torch.enable_grad()
def fit(patches: Tensor, foreground: Tensor, steps: int = 400, seed: int = 0) -> BackgroundViT:
    """Trained on patches ``(n, N, D)`` and whether each shows part of an object, ``(n, N)`` bool."""
    torch.manual_seed(seed)
    model = BackgroundViT(patches.shape[2])
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for _ in range(steps):
        pick = torch.randint(len(patches), (32,))
        loss = F.binary_cross_entropy_with_logits(model.logits(patches[pick]), foreground[pick].float())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()
