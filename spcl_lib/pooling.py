"""Pooling: from score maps to an image's logits.

Second-hand sources say that the paper takes the mean over the cells; one of them takes it of
probabilities ("probability" here). Ours is of logits. It dilutes small objects, and the best
pooling depends on the data, so it is a setting of the model.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from spcl_lib.system.errors import UserError, unknown_name
from spcl_lib.system.shapes import require_seen, require_tensor

# The kinds, with the usual strength of those that have one.
_USUAL = {
    "mean": 0.0, "boost": 5.0, "lse": 1.0, "top": 0.25, "attention": 0.0, "probability": 0.0,
    "softmax": 1.0, "cells": 1.0, "cells_top": 0.1, "cells_sure": 0.0,
}  # fmt: skip
KINDS = tuple(_USUAL)


@dataclass(frozen=True)
class Pooling:
    """One way to pool, with a `strength` where the kind has one; 0 = the usual one.

    "mean": of the logits. "boost": mean, after positive logits are multiplied by the strength
    (BoostLU, Kim et al., CVPR 2023). "lse": log of the mean of exp(strength * f), divided by the
    strength. "top": mean of the highest cells; the strength is their share. "attention": mean,
    weighted by a softmax over the cells (after Jouanneau et al., 2023). "probability": logit of the
    mean of sigmoid(f).

    In the last four the classes compete: their logit is that of p, which sums to 1 over the
    classes. "softmax": of the mean logits; the strength is its temperature. "cells": mean of the
    softmax in every cell (ours; Pathak et al., 2015, take a class's highest cell). "cells_sure":
    weighted by how sure every cell is. "cells_top": over the highest cells of every class, so p
    sums to more than 1.
    """

    kind: str = "mean"
    strength: float = 0.0

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise unknown_name("pooling", self.kind, KINDS)
        # A share of the cells, or of no meaning.
        limit = 1 if "top" in self.kind else 1000 if _USUAL[self.kind] else 0
        if not 0 <= self.strength <= limit:
            raise UserError(f"strength of '{self.kind}' must be in 0..{limit}; got {self.strength}")

    @property
    def competes(self) -> bool:
        """Whether the classes compete, so that heatmaps are distributions over the classes."""
        return self.kind == "softmax" or self.kind.startswith("cells")

    @property
    def temperature(self) -> float:
        """What divides the logits before the softmax over the classes."""
        return self._strength if self.kind in ("softmax", "cells") else 1.0

    @property
    def _strength(self) -> float:
        return self.strength or _USUAL[self.kind]

    def __call__(self, maps: Tensor, seen: Tensor | None = None) -> Tensor:
        """Image logits s (B, C) of score maps f (B, C, G, G).

        `seen` (B, 1, G, G) in {0, 1} are the cells that count; without any, s means nothing.
        """
        require_tensor("maps", maps, ("B", "C", "H", "W"), "float")
        if seen is None and self.kind == "mean":
            return maps.mean((2, 3))
        if seen is None:
            seen = torch.ones_like(maps[:, :1])
        else:  # a check of all would fix the size of a batch in exports
            require_seen(seen, maps)
        cells, weight = maps.flatten(2), seen.flatten(2).to(maps)  # (B, C or 1, G * G)
        return getattr(self, f"_{self.kind}")(cells, weight)

    def heat(self, maps: Tensor) -> Tensor:
        """Probabilities (B, C, G, G) of every cell: what the heatmaps average."""
        return (maps / self.temperature).softmax(1) if self.competes else maps.sigmoid()

    def presence(self, heatmaps: Tensor, seen: Tensor) -> Tensor:
        """Presence (B, C) of every class in heatmaps, pooled as the model pools its maps.

        Without a cell in `seen` (see `HeatmapBank.read`) it is 0.
        """
        cells, weight = heatmaps.flatten(2), seen.flatten(2).to(heatmaps)
        if heatmaps.shape[2:] == (1, 1):  # that of one cell, as CL's, is its value
            presence = heatmaps[:, :, 0, 0]
        elif self.kind == "softmax":  # of the mean logits
            presence = self._mean(cells.clamp(min=1 / 512).log(), weight).softmax(1)
        elif self.competes:  # the heat is what these kinds pool
            if self.kind == "cells_sure":
                shares = cells / cells.sum(1, keepdim=True).clamp(min=1e-6)  # uint8 rounds the sum
                weight = weight * _sureness(shares).clamp(min=0)
            is_top = self.kind == "cells_top"
            presence = self._top(cells, weight) if is_top else self._mean(cells, weight)
        else:
            presence = self(logit(heatmaps), seen).sigmoid()
        return presence.where(seen.sum((2, 3)) > 0, 0)

    def __str__(self) -> str:
        """What `parse_pooling` reads: "mean", "lse:0.3"."""
        return f"{self.kind}:{self.strength:g}" if self.strength else self.kind

    # Each takes cells (B, C, G * G) and their weight (B, 1 or C, G * G), 0 where nothing was seen.

    def _mean(self, cells: Tensor, weight: Tensor) -> Tensor:
        return (cells * weight).sum(2) / weight.sum(2).clamp(min=1e-6)

    def _boost(self, cells: Tensor, weight: Tensor) -> Tensor:
        return self._mean(torch.where(cells > 0, self._strength * cells, cells), weight)

    def _lse(self, cells: Tensor, weight: Tensor) -> Tensor:
        return _log_mean_exp(self._strength * cells, weight, empty=0.0) / self._strength

    def _top(self, cells: Tensor, weight: Tensor) -> Tensor:
        lowest = cells.detach().amin(2, keepdim=True) - 1  # below every cell, and finite
        ordered = torch.where(weight > 0, cells, lowest).sort(2, descending=True).values
        count = (self._strength * weight.sum(2) - 1e-4).ceil().clamp(min=1)  # (B, 1)
        rank = torch.arange(cells.shape[2], device=cells.device)
        return self._mean(ordered, (rank < count[..., None]).to(cells))

    def _attention(self, cells: Tensor, weight: Tensor) -> Tensor:
        share = cells.masked_fill(weight == 0, -1e4).softmax(2)
        return (share * cells).sum(2)

    def _probability(self, cells: Tensor, weight: Tensor) -> Tensor:
        return torch.logit(self._mean(cells.sigmoid(), weight), eps=1e-6)

    def _softmax(self, cells: Tensor, weight: Tensor) -> Tensor:
        return _logit_of_log((self._mean(cells, weight) / self._strength).log_softmax(1))

    def _cells(self, cells: Tensor, weight: Tensor) -> Tensor:
        own = (cells / self._strength).log_softmax(1)
        return _logit_of_log(_log_mean_exp(own, weight, empty=-1.0))

    def _cells_top(self, cells: Tensor, weight: Tensor) -> Tensor:
        return _logit_of_log(self._top(cells.softmax(1), weight).clamp(min=1e-30).log())

    def _cells_sure(self, cells: Tensor, weight: Tensor) -> Tensor:
        own = cells.softmax(1)
        return _logit_of_log(self._mean(own, weight * _sureness(own)).clamp(min=1e-30).log())


def _sureness(cells: Tensor) -> Tensor:
    """1 - entropy / log C of distributions over the classes (B, C, G * G): (B, 1, G * G)."""
    entropy = -(cells * cells.clamp(min=torch.finfo(cells.dtype).tiny).log()).sum(1, keepdim=True)
    return 1 - entropy / math.log(max(2, cells.shape[1]))


def _log_mean_exp(cells: Tensor, weight: Tensor, empty: float) -> Tensor:
    """Log of the mean of exp(cells); `empty` without any cell."""
    total = cells.masked_fill(weight == 0, -math.inf).logsumexp(2)
    count = weight.sum(2)
    return torch.where(count > 0, total - count.clamp(min=1).log(), empty)


def _logit_of_log(log_p: Tensor) -> Tensor:
    """log(p / (1 - p)) of log p; finite for p = 1."""
    log_p = log_p.clamp(max=-1e-6)
    return log_p - torch.log(-torch.expm1(log_p))


MEAN_POOLING = Pooling()
# Trained with one pooling, a network may predict with another at no cost. These are tried (ours).
TEST_POOLINGS = (
    MEAN_POOLING, Pooling("lse", 0.3), Pooling("lse", 1.0), Pooling("boost", 2.0), Pooling("top"),
    Pooling("attention"), Pooling("probability"), Pooling("softmax"), Pooling("cells"),
    Pooling("cells", 2.0), Pooling("cells_top"),
)  # fmt: skip


def parse_pooling(text: str) -> Pooling:
    """Reads a pooling from a text: "lse", or "lse:3" with a strength."""
    kind, colon, strength = text.partition(":")
    try:
        return Pooling(kind, float(strength) if colon else 0.0)
    except ValueError:
        raise UserError(f"pooling '{text}': the strength is no number; write {kind}:3") from None


def logit(p: Tensor) -> Tensor:
    """The logits of probabilities, which it keeps away from 0 and 1 by half a step of uint8."""
    return torch.logit(p, eps=1 / 512)
