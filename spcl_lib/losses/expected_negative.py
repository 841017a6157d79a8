"""EN, expected negatives: the loss leaves out likely positives.

The idea comes from the paper (WACV version). The rule that selects the expected negatives is ours.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from spcl_lib.system.shapes import require_rows, require_tensor


def expected_negative(logits: Tensor, labels: Tensor, possible: Tensor) -> Tensor:
    """EN: BCE over the annotated positive and the expected negatives only.

    Args:
        logits: s (B, C).
        labels: z (B, C).
        possible: (B, C) bool; unknown labels that may be positive; the loss leaves them out.

    Returns:
        The sum over the other labels, divided by B * C: each label has the same weight as in AN.
    """
    require_rows(logits, labels=labels)
    require_tensor("possible", possible, logits.shape, "bool")
    loss = F.binary_cross_entropy_with_logits(logits, labels.to(logits), reduction="none")
    return loss.masked_fill(possible & ~labels.bool(), 0).mean()


def expected_negative_threshold(presence: Tensor, labels: Tensor, k: float) -> Tensor:
    """The least presence that makes an unknown label a possible positive (our rule).

    The network is surer of some classes than of others. So we divide the presence of a class by its
    mean over the images with this annotation (Elkan and Noto, 2008). The N * (k - 1) unknown labels
    with the highest ratios are possible positives. With the annotated one this makes k per image. A
    class without any annotated image stays negative, because nothing is known about it.

    Args:
        presence: (N, C) running averages.
        labels: z (N, C).
        k: expected positives per image.

    Returns:
        (C,) thresholds; infinite for a class that cannot be positive.
    """
    require_tensor("presence", presence, ("N", "C"), "float")
    require_tensor("labels", labels, presence.shape)
    labels = labels.bool()
    annotated = labels.sum(0)
    scale = (presence * labels).sum(0) / annotated.clamp(min=1)
    certain = labels | (annotated == 0)
    ratio = (presence / scale.clamp(min=1e-6)).masked_fill(certain, -math.inf)
    count = min(round(len(labels) * (k - 1)), int((~certain).sum()))
    if count <= 0:
        return torch.full_like(scale, math.inf)
    # Slightly lower, so that rounding does not lose the label that sets the threshold.
    least = ratio.flatten().topk(count).values[-1] * scale * (1 - 1e-6)
    return least.masked_fill(annotated == 0, math.inf)
