"""Linear probes on the outputs of attention heads, and the ensemble of the best of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tokensieve.core.files import write

FORMAT = "tokensieve.probes.1"


@dataclass(frozen=True)
class Probes:
    """An ensemble of logistic regressions, each on the output of one attention head.

    Attributes:
        heads: ``(K, 2)`` long, the layer and the head of each.
        weight: ``(K, d)``; bias: ``(K,)``.
        threshold: the mean probability from which the ensemble says yes.
        f1: of the ensemble at that threshold, on samples that it was not fitted to.
    """

    heads: Tensor
    weight: Tensor
    bias: Tensor
    threshold: float
    f1: float

    def probability(self, states: Tensor) -> Tensor:
        """The mean of the probes' probabilities.

        Args:
            states: ``(N, layers, heads, d)``, outputs of all heads.

        Returns:
            ``(N,)``.

        Raises:
            ValueError: a model with fewer layers or heads, or heads of another width.
        """
        most = (self.heads.amax(0) + 1).tolist()
        if states.shape[1] < most[0] or states.shape[2] < most[1] or states.shape[3] != self.weight.shape[1]:
            raise ValueError(
                f"states of shape {tuple(states.shape)}; these probes read at least {most[0]} layers and {most[1]} heads of "
                f"width {self.weight.shape[1]}: fit probes for this model"
            )
        own = states[:, self.heads[:, 0], self.heads[:, 1]].float()
        return torch.sigmoid(torch.einsum("nkd,kd->nk", own, self.weight) + self.bias).mean(1)

    def save(self, path: str | Path) -> None:
        """Write a safetensors file, whole or not at all."""
        from safetensors.torch import save_file

        tensors = {"heads": self.heads, "weight": self.weight, "bias": self.bias}
        facts = {"format": FORMAT, "threshold": repr(self.threshold), "f1": repr(self.f1)}
        write(path, lambda part: save_file({k: v.contiguous() for k, v in tensors.items()}, part, facts))

    @classmethod
    def load(cls, path: str | Path) -> Probes:
        """Read what :meth:`save` wrote.

        Raises:
            ValueError: another kind of file.
        """
        from safetensors import safe_open

        with safe_open(path, "pt") as held:
            facts = held.metadata() or {}
            if facts.get("format") != FORMAT:
                raise ValueError(f"{path} holds no probes (format {facts.get('format')!r})")
            tensors = {name: held.get_tensor(name) for name in ("heads", "weight", "bias")}
        return cls(**tensors, threshold=float(facts["threshold"]), f1=float(facts["f1"]))


def fit(
    states: Tensor,
    labels: Sequence[bool],
    groups: Sequence[int],
    heads: int = 8,
    precision: float = 0.95,
    seed: int = 0,
) -> Probes:
    """Fit a probe to every head, and keep the best.

    Three fifths of the groups are fitted to; the others choose the heads, by F1, and then the threshold: the lowest at which
    ``precision`` of what the ensemble says yes to is rightly so.

    Args:
        states: ``(N, layers, heads, d)``, outputs of all heads; labels: what is to be said of each.
        groups: which of the N belong together, and are not split.
        heads: how many are kept.

    Raises:
        ValueError: an argument out of range; one of the two parts has labels of one kind only.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import f1_score
    from sklearn.preprocessing import StandardScaler

    n, depth, width = states.shape[:3]
    if not (n == len(labels) == len(groups)) or not 1 <= heads <= depth * width or not 0 < precision <= 1:
        raise ValueError(
            f"{n} states, {len(labels)} labels, {len(groups)} groups, heads={heads} of {depth * width}, precision={precision}; "
            "the first three must be equal, heads between 1 and all, precision above 0 and at most 1"
        )
    truth, group = np.array(labels, bool), np.array(groups)
    order = np.random.default_rng(seed).permutation(np.unique(group))
    fitted = np.isin(group, order[: (3 * len(order) + 4) // 5])
    for part, name in ((fitted, "to fit"), (~fitted, "to choose by")):
        if len(set(truth[part].tolist())) < 2:
            raise ValueError(
                f"of the {part.sum()} states {name}, all are labelled alike; give more samples, some of which are sufficient "
                "after some chunks and not after others"
            )
    x = states.float().numpy()
    found = []
    for layer, head in np.ndindex(depth, width):
        own = x[:, layer, head]
        scaler = StandardScaler().fit(own[fitted])
        model = LogisticRegression(class_weight="balanced", max_iter=1000)
        model.fit(scaler.transform(own[fitted]), truth[fitted])
        weight = model.coef_[0] / scaler.scale_
        bias = float(model.intercept_[0] - (weight * scaler.mean_).sum())
        said = model.predict(scaler.transform(own[~fitted]))
        found.append((float(f1_score(truth[~fitted], said)), (layer, head), weight, bias))
    best = sorted(found, key=lambda row: -row[0])[:heads]
    made = Probes(
        torch.tensor([place for _, place, _, _ in best]),
        torch.tensor(np.stack([w for _, _, w, _ in best]), dtype=torch.float32),
        torch.tensor([b for *_, b in best], dtype=torch.float32),
        0.5,
        0.0,
    )
    p = made.probability(states[torch.from_numpy(~fitted)]).numpy()
    threshold = _lowest(p, truth[~fitted], precision)
    f1 = float(f1_score(truth[~fitted], p >= threshold))
    return Probes(made.heads, made.weight, made.bias, threshold, f1)


def _lowest(p: np.ndarray, truth: np.ndarray, precision: float) -> float:
    """The lowest probability from which on so large a share is true; the highest of all where none is."""
    order = np.argsort(-p, kind="stable")
    right = np.cumsum(truth[order]) / np.arange(1, len(p) + 1)
    # Equal probabilities are told apart by no threshold.
    ends = np.r_[p[order][1:] != p[order][:-1], True]
    good = np.flatnonzero((right >= precision) & ends)
    return float(p[order][good[-1]]) if len(good) else float(np.nextafter(p.max(), 2.0))
