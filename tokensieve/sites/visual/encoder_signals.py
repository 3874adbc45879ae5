"""Sight: what the encoder said about the pictures, laid out as their tokens stand in the prompt."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from tokensieve.parts.budget import Keep
from tokensieve.sites.encoder.watch import ENCODER_SIGNALS
from tokensieve.sites.model import guards
from tokensieve.sites.model.quirks import TILED
from tokensieve.sites.model.structure import Anatomy
from tokensieve.sites.visual.encoder_listener import KINDS, Listener
from tokensieve.sites.visual.images import Images
from tokensieve.sites.visual.layout import EncoderPass, Unmapped, crops, numbered
from tokensieve.sites.visual.pictures import Pictures, are_tiles, order, runs_of
from tokensieve.sites.visual.token_stream import Stream


class Sight:
    """Lays out what a :class:`Listener` has heard as the prompt's pictures are grouped."""

    def __init__(self, anatomy: Anatomy, listener: Listener):
        self.anatomy, self.listener, self.needs = anatomy, listener, listener.needs

    def images(
        self, kinds: dict[str, Tensor], pictures: dict[str, Pictures], shared: Sequence[Keep], sequence: Tensor | None
    ) -> Images:
        """Which visual tokens belong to which picture.

        Args:
            kinds: for "image" and "video", ``(B, L)`` bool, its placeholders.
            pictures: by kind, what stands there.
            shared: budgets per prompt; with any, the pictures of a prompt are one group.
            sequence: ``(B, L)`` long, which of the sequences in its row each token belongs to; None where rows hold one.
        """
        if list(pictures) == ["video"] and not bool(kinds["video"].any()):
            kinds = {"image": kinds["video"], "video": kinds["image"]}  # one placeholder serves for both
        visual = kinds["image"] | kinds["video"]
        source = torch.zeros_like(visual, dtype=torch.long)
        picture = torch.zeros_like(source)
        runs = runs_of(visual, sequence)
        looks: list[EncoderPass] = []
        known = True
        for kind in KINDS:
            here = kinds[kind]
            if not bool(here.any()):
                continue
            found = order(here, pictures.get(kind, []), looks)
            if found is None:
                known, picture = False, torch.where(here, 2 * runs, picture)
                continue
            label, at = found
            own = runs[here]
            look = pictures[kind][0][0]
            if kind == "image" and (self._tiled(look) or are_tiles(own, look.tile)):
                label = own
            picture[here] = 2 * label + (kind == "video")
            source[here] = at
        for look in looks:
            self.listener.placed(look)
        made = Images.of(visual, picture[visual], source[visual] if known else None, shared, sequence)
        made.looks = tuple(looks) if known else ()
        return made

    def grid(self, images: Images, mask: Tensor) -> tuple[int, int] | None:
        """Rows and columns of a picture's tokens, where they lie on one grid that fits ``mask``, ``(I, n)`` bool."""
        grid = images.looks[0].grid() if len(images.looks) == 1 else None
        fits = grid is not None and mask.shape[1] == grid[0] * grid[1] and bool(mask.all())
        return grid if fits else None

    def signals(self, stream: Stream, heard: bool, strange: Callable[[], str]) -> dict[str, Any]:
        """What it said, for the tokens still in the stream: crop, frame and spot, and encoder signals by layer (``heard``).

        Args:
            strange: says why features are not known.
        """
        out: dict[str, Any] = self._places(stream)
        if not heard:
            return out
        looks = stream.images.looks
        for name in {n for look in looks for n in look.seen}:
            for layer in {i for look in looks for i in look.seen.get(name, ())}:
                if any(layer not in look.seen.get(name, ()) for look in looks):
                    self._missing(name, "only some of its pictures come with it")
                    continue
                try:
                    rows = torch.cat([look.tokens_of(look.seen[name][layer]) for look in looks])
                except Unmapped as error:
                    self._missing(name, str(error))
                    continue
                laid = stream.reduction.take(stream.images.lay(rows.nan_to_num(0.0)))
                out.setdefault(name, {})[layer] = laid if name in ("keys", "values") else laid.movedim(1, -1)
        if "entropy" in out:
            out["entropy"] = out["entropy"][0]
        wanted = {n for watch in self.listener.watches for n in watch.wanted()}
        if looks and wanted and not any(wanted & look.seen.keys() for look in looks):
            raise guards.refusal("unheard", signals=" and ".join(sorted(wanted)))
        if not looks:
            for name in {n for watch in self.listener.watches for need in self.needs for n in watch.names(need)}:
                self._missing(name, strange())
        return out

    def _missing(self, name: str, why: str) -> None:
        for need in self.needs:
            rest = {need.name, *need.instead} - set(ENCODER_SIGNALS)
            if name in (need.name, *need.instead) and not rest:
                raise ValueError(
                    f"{type(self.anatomy.model).__name__} cannot give {name} of its visual tokens: {why}; "
                    "use a method that reads features only, such as 'divprune'"
                )

    def _places(self, stream: Stream) -> dict[str, Any]:
        looks = stream.images.looks
        found = [look.crop_index for look in looks]
        if not found or any(s is None for s in found):
            return {}
        images, device = stream.images, stream.index.device
        count = [len(look.grids) for look in looks if look.grids is not None]
        shifted = [s[0] + (s[0] >= 0) * sum(count[:i]) for i, s in enumerate(found) if s is not None]
        index = images.lay(torch.cat(shifted).to(device) + 1) - 1
        spot = images.lay(torch.cat([s[1] for s in found if s is not None]).to(device))
        of_video = torch.cat([torch.full((k.tokens,), k.kind == "video") for k in looks]).to(device)
        video = images.lay(of_video) & (index >= 0)
        still = images.mask & ~images.lay(of_video)
        number = numbered(index)
        tiled = any(self._tiled(look) for look in looks)
        out: dict[str, Any] = {}
        if bool((number[still] > 0).any()) and bool((images.pictures == 1).all()):
            out["crop"] = torch.where(still, crops(number, tiled), -1)
        if bool(video.any()):
            out["frame"] = torch.where(video, number, -1)
        if not (tiled and "crop" in out):  # where tiles lie in the picture is not told
            out["spot"] = spot
        return {name: stream.reduction.take(value) for name, value in out.items()}

    def _tiled(self, look: EncoderPass) -> bool:
        config: Any = self.anatomy.model.config
        return look.kind == "image" and config.model_type in TILED
