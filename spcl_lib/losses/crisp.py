"""Crisp: estimates class priors from the annotated positives, and uses them in the loss.

"Class prior-driven single positive multi-label learning" (Crisp). Its final form adds a logit term.
We have not found the formula of that term, so our loss lacks it.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from spcl_lib.system.shapes import require_rows, require_tensor

_DELTA = _TAU = 0.01  # as published


def class_priors(scores: Tensor, labels: Tensor) -> Tensor:
    """(C,) share of the images that show each class, estimated from the annotated images.

    A threshold t gives two shares: of all images, and of the annotated images, that score at least
    t. The estimate is the first share divided by the second, at the t with the tightest bound.

    Args:
        scores: (N, C) predictions for all training images.
        labels: z (N, C); a class without annotation has the prior 0.
    """
    require_tensor("scores", scores, ("N", "C"), "float")
    require_tensor("labels", labels, scores.shape)
    priors = torch.zeros(scores.shape[1])
    for c in range(scores.shape[1]):
        annotated = scores[labels[:, c].bool(), c].sort().values
        if len(annotated):
            priors[c] = _prior(scores[:, c].sort().values, annotated)
    return priors


def _prior(scores: Tensor, annotated: Tensor) -> float:
    """The estimate for one class; both tensors ascending."""
    thresholds = annotated
    all_above = 1 - torch.searchsorted(scores, thresholds) / len(scores)
    own_above = 1 - torch.searchsorted(annotated, thresholds) / len(annotated)
    bound = math.log(4 / _DELTA) / 2
    slack = math.sqrt(bound / len(scores)) + math.sqrt(bound / len(annotated))
    best = ((all_above + (1 + _TAU) * slack) / own_above).argmin()
    return float((all_above[best] / own_above[best]).clamp(max=1))


def crisp(logits: Tensor, labels: Tensor, priors: Tensor) -> Tensor:
    """Crisp: mean over C of `2 pi * mean(1 - p of annotated images) + |mean(p) - pi|`.

    The first part is 0 for a class without an annotated image in the batch.

    Args:
        logits: s (B, C).
        labels: z (B, C).
        priors: pi (C,).
    """
    require_rows(logits, labels=labels)
    require_tensor("priors", priors, (logits.shape[1],), "float")
    p, labels = logits.sigmoid(), labels.to(logits)
    missed = ((1 - p) * labels).sum(0) / labels.sum(0).clamp(min=1)
    return (2 * priors * missed + (p.mean(0) - priors).abs()).mean()
