"""ASL, asymmetric loss: easy negatives have little weight, and none if p is below 0.05.

Ridnik et al., "Asymmetric Loss for Multi-Label Classification" (ICCV 2021). They take the sum over
B * C; we take the mean.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from spcl_lib.system.shapes import require_rows

_SHIFT = 0.05
_LEAST = 1e-8


def asymmetric(logits: Tensor, labels: Tensor, gamma: float = 4.0) -> Tensor:
    """ASL: -log p where z = 1; -q^gamma log(1 - q), q = max(p - 0.05, 0), elsewhere.

    Args:
        logits: s (B, C).
        labels: z (B, C).
        gamma: focusing exponent of the negatives.
    """
    require_rows(logits, labels=labels)
    q = (logits.sigmoid() - _SHIFT).clamp(min=0)
    negative = -(q**gamma) * (1 - q).clamp(min=_LEAST).log()
    return torch.where(labels.bool(), -F.logsigmoid(logits), negative).mean()
