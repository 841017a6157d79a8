"""Pooling: from score maps to an image's logits.

Second-hand sources say that the paper takes the mean over the cells. The mean dilutes small
objects. The best pooling depends on the data, so it is a setting of the model. All code that turns
maps into logits uses `Pooling`: training, running averages, prediction, figures, the explorer.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from spcl_lib.system.errors import UserError, unknown_name
from spcl_lib.system.shapes import require_seen, require_tensor

KINDS = ("mean", "boost", "lse", "top", "attention", "probability")
_USUAL = {"boost": 5.0, "lse": 1.0, "top": 0.25}  # default strength, for kinds that have one
_EPSILON = 1 / 512  # keeps probabilities away from 0 and 1 before a logit: half a step of uint8


@dataclass(frozen=True)
class Pooling:
    """One way to pool.

    Attributes:
        kind: "mean": mean of the logits. "boost": mean, after positive logits are multiplied by
            `strength` (BoostLU, Kim et al., CVPR 2023; they use 5). "lse": log of the mean of
            exp(strength * f), divided by the strength. "top": mean of the highest cells; `strength`
            is their share. "attention": mean weighted by a softmax over the cells (Jouanneau et
            al.). "probability": logit of the mean of sigmoid(f).
        strength: its meaning depends on the kind, see there; 0 is the kind's default.

    Raises:
        UserError: an unknown kind, or a strength outside its range.

    Example:
        >>> Pooling("lse")(torch.zeros(2, 3, 4, 4)).shape
        torch.Size([2, 3])
    """

    kind: str = "mean"
    strength: float = 0.0

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise unknown_name("pooling", self.kind, KINDS)
        limits = {"boost": 1000.0, "lse": 1000.0, "top": 1.0}
        if not 0 <= self.strength <= limits.get(self.kind, math.inf):
            raise UserError(
                f"the strength of pooling '{self.kind}' must be in 0..{limits[self.kind]:g} "
                f"(0: the usual {_USUAL[self.kind]:g}); got {self.strength}"
            )

    def __call__(self, maps: Tensor, seen: Tensor | None = None) -> Tensor:
        """Image logits s (B, C).

        Args:
            maps: score-map logits f (B, C, G, G).
            seen: (B, 1, G, G) in {0, 1}, the cells that count; None for all. The logits of an
                image without such a cell mean nothing.
        """
        require_tensor("maps", maps, ("B", "C", "H", "W"), "float")
        if seen is not None:
            require_seen(seen, maps)
        if seen is None and self.kind == "mean":
            return maps.mean((2, 3))
        cells = maps.flatten(2)  # (B, C, G * G)
        weight = torch.ones_like(cells[:, :1]) if seen is None else seen.flatten(2).to(cells)
        return getattr(self, f"_{self.kind}")(cells, weight)

    def presence(self, heatmaps: Tensor, seen: Tensor | None = None) -> Tensor:
        """Presence of every class according to heatmaps; their logits are pooled as the model does.

        Args:
            heatmaps: (B, C, G, G) in [0, 1].
            seen: (B, 1, G, G) in {0, 1}, the cells that count; None for all.

        Returns:
            (B, C) in [0, 1]; 0 where no cell has been seen.
        """
        require_tensor("heatmaps", heatmaps, ("B", "C", "H", "W"), "float")
        presence = self(torch.logit(heatmaps, eps=_EPSILON), seen).sigmoid()
        return presence if seen is None else presence.where(seen.sum((2, 3)) > 0, 0)

    def __str__(self) -> str:
        """What `parse_pooling` reads: "mean", "lse:0.3"."""
        return f"{self.kind}:{self.strength:g}" if self.strength else self.kind

    @property
    def effective_strength(self) -> float:
        """The strength, or the kind's default; 0 for a kind without one."""
        return self.strength or _USUAL.get(self.kind, 0.0)

    def _mean(self, cells: Tensor, weight: Tensor) -> Tensor:
        return (cells * weight).sum(2) / weight.sum(2).clamp(min=1)

    def _boost(self, cells: Tensor, weight: Tensor) -> Tensor:
        return self._mean(torch.where(cells > 0, self.effective_strength * cells, cells), weight)

    def _lse(self, cells: Tensor, weight: Tensor) -> Tensor:
        scaled = (self.effective_strength * cells).masked_fill(weight == 0, -math.inf)
        total = scaled.logsumexp(2) - weight.sum(2).clamp(min=1).log()
        return torch.where(weight.sum(2) > 0, total / self.effective_strength, 0)

    def _top(self, cells: Tensor, weight: Tensor) -> Tensor:
        lowest = cells.detach().min() - 1  # below every cell, and finite
        ordered = torch.where(weight > 0, cells, lowest).sort(2, descending=True).values
        count = (self.effective_strength * weight.sum(2)).ceil().clamp(min=1)  # (B, 1)
        rank = torch.arange(cells.shape[2], device=cells.device)
        return self._mean(ordered, (rank < count[..., None]).to(cells))

    def _attention(self, cells: Tensor, weight: Tensor) -> Tensor:
        share = cells.masked_fill(weight == 0, -1e4).softmax(2)
        return (share * cells).sum(2)

    def _probability(self, cells: Tensor, weight: Tensor) -> Tensor:
        return torch.logit(self._mean(cells.sigmoid(), weight), eps=1e-6)


MEAN_POOLING = Pooling()
# Trained with one pooling, a network may predict with another at no cost. These are tried (ours).
TEST_POOLINGS = (
    MEAN_POOLING, Pooling("lse", 0.3), Pooling("lse", 1.0), Pooling("boost", 2.0), Pooling("top"),
    Pooling("attention"), Pooling("probability"),
)  # fmt: skip


def parse_pooling(text: str) -> Pooling:
    """Reads a pooling from a text: "lse", or "lse:3" with a strength.

    Raises:
        UserError: the text does not describe a pooling.
    """
    kind, colon, strength = text.partition(":")
    try:
        return Pooling(kind, float(strength) if colon else 0.0)
    except ValueError:
        raise UserError(
            f"pooling '{text}' has a strength that is no number; write {kind}:3"
        ) from None


def pooling_of(model: object) -> Pooling:
    """The pooling of a model; the mean if the model has no attribute `pooling`."""
    return getattr(model, "pooling", MEAN_POOLING)
