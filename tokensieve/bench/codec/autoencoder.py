"""The one small autoencoder in which quantizers are compared, equal for all."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Generator, Tensor, nn

from tokensieve.codec import Codes, Quantizer, quantizer
from tokensieve.core.files import write, write_json

FORMAT = "tokensieve.tokenizer.1"
WIDTH, BLOCKS, LATENT, BATCH, RATE = 64, 2, 16, 16, 5e-3


def grid(shape: tuple[int, int, int], tokens: int) -> tuple[int, int]:
    """Rows and columns of so many tokens over signals ``(C, H, W)``, as near to square patches as can be.

    Raises:
        ValueError: no such grid divides the signal; it says which numbers of tokens would.
    """
    _, height, width = shape
    fits = [
        (rows, tokens // rows)
        for rows in range(1, tokens + 1)
        if tokens % rows == 0 and height % rows == 0 and width % (tokens // rows) == 0
    ]
    if not fits:
        rows = [r for r in range(1, height + 1) if height % r == 0]
        columns = [c for c in range(1, width + 1) if width % c == 0]
        known = sorted({r * c for r in rows for c in columns}, key=lambda n: abs(n - tokens))[:6]
        raise ValueError(
            f"tokens={tokens}: no grid of so many patches covers {height} x {width} values, a patch of at least one; "
            f"{', '.join(map(str, sorted(known)))} would"
        )
    return min(fits, key=lambda g: abs(math.log((height / g[0]) / (width / g[1]))))


class ResidualBlock(nn.Module):
    """A depthwise convolution and two maps across channels, added to what goes in."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Conv2d(WIDTH, WIDTH, 3, padding=1, groups=WIDTH)
        self.norm = nn.GroupNorm(1, WIDTH)
        self.up, self.down = nn.Conv2d(WIDTH, 2 * WIDTH, 1), nn.Conv2d(2 * WIDTH, WIDTH, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(nn.functional.gelu(self.up(self.norm(self.mix(x)))))


class Autoencoder(nn.Module):
    """A tokenizer of patches: encoder, quantizer, decoder. Without a quantizer it is the continuous twin.

    Args:
        shape: ``(C, H, W)`` of a signal.
        tokens: how many patches.
        made: the quantizer; None for none.
        rate: Hz of speech.
    """

    def __init__(self, shape: tuple[int, int, int], tokens: int, made: Quantizer | None, rate: int | None = None):
        super().__init__()
        self.shape, self.tokens, self.rate = shape, tokens, rate
        self.grid = grid(shape, tokens)
        patch = (shape[1] // self.grid[0], shape[2] // self.grid[1])
        latent = LATENT if made is None else made.dim
        self.quantizer = made
        self.encoder = nn.Sequential(
            nn.Conv2d(shape[0], WIDTH, patch, patch),
            *(ResidualBlock() for _ in range(BLOCKS)),
            nn.Conv2d(WIDTH, latent, 1),
        )
        self.decoder = nn.Sequential(
            nn.Conv2d(latent, WIDTH, 1),
            *(ResidualBlock() for _ in range(BLOCKS)),
            nn.ConvTranspose2d(WIDTH, shape[0], patch, patch),
        )

    @property
    def levels(self) -> tuple[int, ...]:
        return () if self.quantizer is None else self.quantizer.levels

    def latents(self, signals: Tensor) -> Tensor:
        """``(B, N, D)``.

        Raises:
            ValueError: signals of another shape.
        """
        if tuple(signals.shape[1:]) != self.shape:
            raise ValueError(
                f"signals of shape {tuple(signals.shape)}; this tokenizer takes (B, {', '.join(map(str, self.shape))})"
            )
        return self.encoder(signals - 0.5).flatten(2).transpose(1, 2)

    def signals(self, values: Tensor) -> Tensor:
        """The way back from ``(B, N, D)``."""
        return self.decoder(values.transpose(1, 2).unflatten(2, self.grid)) + 0.5

    @torch.no_grad()
    def encode(self, signals: Tensor) -> Codes | Tensor:
        z = self.latents(signals)
        return z if self.quantizer is None else self.quantizer(z)

    @torch.no_grad()
    def decode(self, encoded: Codes | Tensor) -> Tensor:
        if self.quantizer is None:
            assert isinstance(encoded, Tensor)
            return self.signals(encoded)
        indices = encoded.indices if isinstance(encoded, Codes) else encoded
        return self.signals(self.quantizer.lookup(indices))

    def neighbours(self, indices: Tensor, generator: Generator) -> Tensor:
        """Codes whose values are near to others'."""
        assert self.quantizer is not None
        return self.quantizer.neighbours(indices, generator)

    def fit(
        self, signals: Tensor, steps: int, seed: int, progress: Callable[[int], object] = lambda step: None
    ) -> list[str]:
        """Train by squared error, as a share of the signals' variance, and the quantizer's own losses, for so many steps.

        Returns:
            what was warned of.
        """
        generator = torch.Generator().manual_seed(seed)
        optimizer = torch.optim.AdamW(self.parameters(), RATE, weight_decay=1e-4)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps, pct_start=0.1)
        live = None if self.quantizer is None or self.quantizer.posthoc else self.quantizer
        spread = float(signals.var()) + 1e-6  # so that losses weigh alike whatever signals are measured in
        self.train()
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            for step in range(steps):
                rows = signals[torch.randint(len(signals), (BATCH,), generator=generator)]
                z = self.latents(rows)
                codes = None if live is None else live(z, generator=generator)
                back = self.signals(z if codes is None else codes.values)
                loss = nn.functional.mse_loss(back, rows) / spread + (0.0 if codes is None else codes.loss)
                optimizer.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(self.parameters(), 1.0)
                optimizer.step()
                schedule.step()
                progress(step + 1)
        self.eval()
        if self.quantizer is not None and self.quantizer.posthoc:
            with torch.no_grad():
                self.quantizer.fit(
                    torch.cat([self.latents(part) for part in signals.split(BATCH)]), generator=generator
                )
        return sorted({str(w.message) for w in said if w.category is RuntimeWarning})

    def save(self, folder: Path) -> Path:
        """Write it as a folder of ``tokenizer.json`` and ``tokenizer.safetensors``."""
        folder.mkdir(parents=True, exist_ok=True)
        state = {name: value.detach().clone().contiguous() for name, value in self.state_dict().items()}
        config = None if self.quantizer is None else self.quantizer.config
        write(folder / "tokenizer.safetensors", lambda part: save_file(state, part))
        write_json(folder / "tokenizer.json", {
            "format": FORMAT, "shape": list(self.shape), "tokens": self.tokens, "rate": self.rate, "quantizer": config,
        })  # fmt: skip
        return folder


def load(folder: Path) -> Autoencoder:
    """A tokenizer that was saved.

    Raises:
        ValueError: the folder holds none, or one of another version.
    """
    try:
        config = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError) as problem:
        raise ValueError(f"{folder} holds no tokenizer: {problem}") from problem
    if config.get("format") != FORMAT:
        raise ValueError(f"{folder / 'tokenizer.json'} is of format {config.get('format')!r}, not {FORMAT!r}")
    options = config["quantizer"]
    made = None if options is None else quantizer(**options)
    out = Autoencoder(tuple(config["shape"]), config["tokens"], made, config["rate"])
    out.load_state_dict(load_file(folder / "tokenizer.safetensors"))
    return out.eval()
