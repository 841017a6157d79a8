"""Paired bootstrap intervals of differences in mAP.

Every resample draws images (with replacement) and seeds once, and all compared methods use the same
draw.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from spcl_lib.system.randomness import keyed_generator


class Resamples:
    """Bootstrap resamples of images and seeds, the same for all methods.

    Args:
        labels: (N, C) bool.
        ignored: (N, C) bool or None.
        seeds: number of seeds of every method.
        count: number of resamples.
    """

    def __init__(self, labels: Tensor, ignored: Tensor | None, seeds: int, count: int) -> None:
        generator = keyed_generator("bootstrap", count)
        drawn = torch.randint(len(labels), (count, len(labels)), generator=generator)
        self.weights = torch.zeros(count, len(labels)).scatter_add_(
            1, drawn, torch.ones_like(drawn, dtype=torch.float32)
        )
        self.seeds = torch.randint(seeds, (count, seeds), generator=generator)
        self.labels, self.ignored = labels, ignored

    def mean_average_precisions(self, scores: Sequence[Tensor]) -> Tensor:
        """The mAP of a method on every resample, the mean over its seeds: (count,), in percent.

        Args:
            scores: for every seed (N, C).
        """
        by_seed = torch.stack([self._of_seed(s) for s in scores], 1)  # (count, seeds)
        return by_seed.gather(1, self.seeds).mean(1)

    def _of_seed(self, scores: Tensor) -> Tensor:
        """(count,) mAP of one seed; images with equal scores keep their order."""
        found = torch.empty(len(self.weights), scores.shape[1])
        for c in range(scores.shape[1]):
            order = scores[:, c].argsort(descending=True, stable=True)
            weight = self.weights[:, order]  # (count, N)
            if self.ignored is not None:
                weight = weight * ~self.ignored[order, c]
            positive = self.labels[order, c].nonzero().flatten()
            ranks = weight.cumsum(1)[:, positive]
            hit = weight[:, positive]
            hits = hit.cumsum(1)
            found[:, c] = (hit * hits / ranks.clamp(min=1)).sum(1) / hits[:, -1]
        return 100 * found.nanmean(1)


def interval_of(differences: Tensor) -> list[float]:
    """Both ends of the 95 % interval of a difference; one value (count,) for every resample."""
    return torch.quantile(differences, torch.tensor([0.025, 0.975])).tolist()
