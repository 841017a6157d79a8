"""GPR, the generalised pseudo-label robust loss: GR, and likely positives are pseudo-labels.

Tran et al., "More Reliable Pseudo-labels, Better Performance: A Generalized Approach to Single
Positive Multi-label Learning" (ICCV 2025; the framework is AEVLP). Theirs: the loss and its
numbers. Ours: where the pseudo-labels come from. Their pseudo-positives are a vision-language
model's; ours are the labels that EN takes as possible positives, chosen by the running averages.
Their pseudo-negatives have no counterpart here: what is no pseudo-positive stays with GR. GR's
schedule is GR's own, which is theirs for VOC; for other data sets theirs is steeper.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from spcl_lib.losses.expected_positives import count_penalty
from spcl_lib.losses.robust import robust_parts

_RHO = 0.9  # as published: a pseudo-positive is one with this probability
_MOST = 0.7  # as published for VOC, COCO and NUS: the largest weight of a pseudo-positive


def pseudo_robust(
    logits: Tensor,
    labels: Tensor,
    possible: Tensor,
    progress: float,
    k: float,
    least: float = 0.4,
    count_weight: float = 0.05,
) -> Tensor:
    """GPR: mean over B * C of GR, or of w (-0.9 log p - 0.1 log(1 - p)); + reg * count penalty.

    The second is that of pseudo-positives. Their weight is w = 1 - v, limited to [least, 0.7], with
    GR's v; it is larger the farther p is from GR's centre, and no gradient runs through it.

    Args:
        logits: s (B, C).
        labels: z (B, C).
        possible: (B, C) bool; unknown labels that become pseudo-positives.
        progress: share of the training that is done, in [0, 1].
        k: expected positives per image.
        least: smallest weight of a pseudo-positive (0.4 for VOC, 0.5 for COCO and NUS).
        count_weight: reg, weight of EPR's penalty (0.05 for VOC, 0.001 for COCO and NUS).
    """
    loss, v = robust_parts(logits, labels, progress)
    weight = (1 - v).clamp(least, _MOST)
    pseudo = -weight * (_RHO * F.logsigmoid(logits) + (1 - _RHO) * F.logsigmoid(-logits))
    loss = torch.where(possible & ~labels.bool(), pseudo, loss)
    return loss.mean() + count_weight * count_penalty(logits, k)
