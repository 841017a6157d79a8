"""GPR, the generalised pseudo-label robust loss: GR with likely positives as pseudo-labels.

Tran et al., "More Reliable Pseudo-labels, Better Performance: A Generalized Approach to Single
Positive Multi-label Learning" (ICCV 2025; the framework is AEVLP). The loss and its numbers come
from the paper. The source of the pseudo-labels is ours. The paper takes pseudo-positives from a
vision-language model. We take EN's possible positives, which the running averages select. The paper
also has pseudo-negatives; we use GR for all unknown labels that are not pseudo-positives. We keep
GR's own schedule. The paper uses it for VOC, and steeper schedules for other data sets.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from spcl_lib.losses.expected_positives import count_penalty
from spcl_lib.losses.robust import robust_parts
from spcl_lib.system.shapes import require_rows, require_tensor

_RHO = 0.9  # as published: the probability that a pseudo-positive is positive
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

    The second form is for pseudo-positives. Their weight is w = 1 - v, limited to [least, 0.7],
    with GR's v. The weight grows with the distance of p from GR's centre. It has no gradient.

    Args:
        logits: s (B, C).
        labels: z (B, C).
        possible: (B, C) bool; unknown labels that become pseudo-positives.
        progress: finished share of the training, in [0, 1].
        k: expected positives per image.
        least: smallest weight of a pseudo-positive (0.4 for VOC, 0.5 for COCO and NUS).
        count_weight: reg, weight of EPR's penalty (0.05 for VOC, 0.001 for COCO and NUS).
    """
    require_rows(logits, labels=labels)
    require_tensor("possible", possible, logits.shape, "bool")
    loss, v = robust_parts(logits, labels, progress)
    weight = (1 - v).clamp(least, _MOST)
    pseudo = -weight * (_RHO * F.logsigmoid(logits) + (1 - _RHO) * F.logsigmoid(-logits))
    loss = torch.where(possible & ~labels.bool(), pseudo, loss)
    return loss.mean() + count_weight * count_penalty(logits, k)
