"""Hill and SPLC: robust losses with a margin on the annotated labels.

Zhang et al., "Simple and Robust Loss Design for Multi-Label Learning with Missing Labels" (2021).
They take sums over B * C. We take means, so that all losses have one scale.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from spcl_lib.system.shapes import require_rows

_MARGIN, _GAMMA = 1.0, 2.0  # as published


def hill(logits: Tensor, labels: Tensor) -> Tensor:
    """Hill: -(1 - q)^2 log q where z = 1, q = sigmoid(s - 1); (1.5 - p) p^2 elsewhere.

    The negative side falls again where p is high: such labels are probably positive.

    Args:
        logits: s (B, C).
        labels: z (B, C).
    """
    require_rows(logits, labels=labels)
    positive = -((1 - (logits - _MARGIN).sigmoid()) ** _GAMMA) * F.logsigmoid(logits - _MARGIN)
    p = logits.sigmoid()
    return torch.where(labels.bool(), positive, (1.5 - p) * p.square()).mean()


def splc(logits: Tensor, labels: Tensor, epoch: float, threshold: float = 0.6) -> Tensor:
    """SPLC: focal loss (gamma 2); after the first epoch p > threshold counts as a positive.

    Args:
        logits: s (B, C); the loss lowers the annotated ones by a margin of 1.
        labels: z (B, C).
        epoch: epochs done.
        threshold: tau.
    """
    require_rows(logits, labels=labels)
    lowered = torch.where(labels.bool(), logits - _MARGIN, logits)
    p = lowered.sigmoid()
    positive = labels.bool() | ((p > threshold) if epoch >= 1 else torch.zeros_like(labels.bool()))
    right = torch.where(positive, p, 1 - p)
    loss = -torch.where(positive, F.logsigmoid(lowered), F.logsigmoid(-lowered))
    return ((1 - right) ** _GAMMA * loss).mean()
