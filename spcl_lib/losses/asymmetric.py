"""ASL, asymmetric loss: easy negatives weigh little, and probabilities below 0.05 nothing.

Ridnik et al., "Asymmetric Loss for Multi-Label Classification" (ICCV 2021). Theirs is a sum over
B * C; ours is a mean.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

_SHIFT = 0.05
_LEAST = 1e-8


def asymmetric(logits: Tensor, labels: Tensor, gamma: float = 4.0) -> Tensor:
    """ASL: -log p where z = 1; -q^gamma log(1 - q), q = max(p - 0.05, 0), elsewhere.

    Args:
        logits: s (B, C).
        labels: z (B, C).
        gamma: focusing of the negatives.
    """
    q = (logits.sigmoid() - _SHIFT).clamp(min=0)
    negative = -(q**gamma) * (1 - q).clamp(min=_LEAST).log()
    return torch.where(labels.bool(), -F.logsigmoid(logits), negative).mean()
