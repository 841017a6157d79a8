"""EN, expected negatives: likely positives are left out of the loss.

The idea is the paper's (WACV version); the rule that selects the expected negatives is ours.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def expected_negative(logits: Tensor, labels: Tensor, possible: Tensor) -> Tensor:
    """EN: BCE over the annotated positive and the expected negatives only.

    Args:
        logits: s (B, C).
        labels: z (B, C).
        possible: (B, C) bool; unknown labels that may be positive and are left out.

    Returns:
        The sum over what is left, divided by B * C: each label weighs what it weighs in AN.
    """
    loss = F.binary_cross_entropy_with_logits(logits, labels.to(logits), reduction="none")
    return loss.masked_fill(possible & ~labels.bool(), 0).mean()


def expected_negative_threshold(presence: Tensor, labels: Tensor, k: float) -> Tensor:
    """The presence from which an unknown label counts as a possible positive (our rule).

    Classes differ in how sure the network is of them. So a class's presence is divided by its mean
    over the images that are annotated with it (Elkan and Noto, 2008). The N * (k - 1) unknown
    labels that rank highest are possible positives: k per image, with the annotated one. A class
    that no image is annotated with stays negative: nothing is known of it.

    Args:
        presence: (N, C) running averages.
        labels: z (N, C).
        k: expected positives per image.

    Returns:
        (C,) thresholds, the least presence that makes a class possible; infinite where nothing may
        be positive.
    """
    labels = labels.bool()
    annotated = labels.sum(0)
    scale = (presence * labels).sum(0) / annotated.clamp(min=1)
    certain = labels | (annotated == 0)
    ratio = (presence / scale.clamp(min=1e-6)).masked_fill(certain, -math.inf)
    count = min(round(len(labels) * (k - 1)), int((~certain).sum()))
    if count <= 0:
        return torch.full_like(scale, math.inf)
    # A hair lower: rounding must not lose the label that sets the threshold.
    least = ratio.flatten().topk(count).values[-1] * scale * (1 - 1e-6)
    return least.masked_fill(annotated == 0, math.inf)
