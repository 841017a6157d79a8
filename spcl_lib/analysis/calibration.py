"""How well scores answer a yes-or-no question: ranking (AP, AUROC) and calibration.

All results are in percent. A tie counts half in the AUROC. Tied scores count together in the AP. So
the order of the data never matters, and a constant score has AUROC 50 and AP = the share of yes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from spcl_lib.evaluate import average_precisions


def auroc(scores: Tensor, truth: Tensor) -> float:
    """Probability in percent that a yes scores above a no; a tie counts half.

    Args:
        scores: (M,), higher means more likely yes.
        truth: (M,) bool.

    Returns:
        The percentage; NaN unless both answers occur.
    """
    _check(scores, truth)
    _, group, counts = scores.unique(return_inverse=True, return_counts=True)
    rank = counts.cumsum(0).double() - (counts - 1) / 2  # mean rank of a group of ties, from 1
    yes, no = int(truth.sum()), int((~truth).sum())
    if yes == 0 or no == 0:
        return math.nan
    wins = float(rank[group][truth].sum()) - yes * (yes + 1) / 2
    return 100 * wins / (yes * no)


def average_precision(scores: Tensor, truth: Tensor) -> float:
    """Average precision of scores (M,) in percent, as in `evaluate.average_precisions`."""
    _check(scores, truth)
    return float(average_precisions(scores[:, None], truth[:, None]))


def over_classes(
    metric: Callable[[Tensor, Tensor], float], scores: Tensor, truth: Tensor, asked: Tensor
) -> float:
    """Mean of a metric over the classes that have both a yes and a no among the pairs that count.

    Args:
        metric: function of scores (M,) and truth (M,).
        scores: (N, C).
        truth: (N, C) bool.
        asked: (N, C) bool; the pairs that count.

    Returns:
        The mean, or NaN if there is no such class.
    """
    values = []
    for s, t, a in zip(scores.T, truth.T, asked.T, strict=True):
        if bool(t[a].any()) and not bool(t[a].all()):
            values.append(metric(s[a], t[a]))
    return sum(values) / len(values) if values else math.nan


@dataclass(frozen=True)
class Reliability:
    """Scores in bins of equal width, and how often the answer was yes in each.

    Attributes:
        score: (bins,) mean score, NaN in an empty bin.
        share: (bins,) share of yes, NaN in an empty bin.
        count: (bins,) int64.
    """

    score: Tensor
    share: Tensor
    count: Tensor

    def error(self) -> float:
        """Expected calibration error: mean |share - score| over the data, in percent points."""
        gap = (self.share - self.score).abs().nan_to_num(0)
        total = int(self.count.sum())
        return 100 * float((gap * self.count).sum()) / total if total else math.nan


def reliability(scores: Tensor, truth: Tensor, bins: int = 10) -> Reliability:
    """How often the answer is yes, by score; for a calibrated score of 0.3, in 30 of 100 cases.

    Args:
        scores: (M,) probabilities.
        truth: (M,) bool.
        bins: number of bins of equal width over [0, 1]; a score of 1 belongs to the last bin.

    Raises:
        ValueError: a score is outside [0, 1].
    """
    _check(scores, truth)
    if not bool(((scores >= 0) & (scores <= 1)).all()):
        raise ValueError("scores must be probabilities in [0, 1]")
    scores = scores.double()
    place = (scores * bins).long().clamp(max=bins - 1)
    count = torch.bincount(place, minlength=bins)
    total = torch.bincount(place, weights=scores, minlength=bins)
    yes = torch.bincount(place, weights=truth.double(), minlength=bins)
    return Reliability(total / count, yes / count, count)


def _check(scores: Tensor, truth: Tensor) -> None:
    if scores.ndim != 1 or scores.shape != truth.shape or truth.dtype != torch.bool:
        raise ValueError(
            f"scores must be (M,) and truth (M,) bool; got {tuple(scores.shape)} "
            f"and {tuple(truth.shape)} {truth.dtype}"
        )
