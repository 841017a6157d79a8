"""WAN, weak assumed negatives: an unknown label counts as a negative with little weight.

Cole et al., "Multi-Label Learning from Single Positive Labels" (CVPR 2021).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from spcl_lib.system.shapes import require_rows


def weak_negatives(logits: Tensor, labels: Tensor) -> Tensor:
    """WAN: AN with weight 1 / (C - 1) for unknown labels: both sides get the same total weight.

    Args:
        logits: s (B, C), C >= 2.
        labels: z (B, C).
    """
    require_rows(logits, labels=labels)
    if logits.shape[1] < 2:
        raise ValueError("logits must be of two classes or more")
    weight = torch.where(labels.bool(), 1.0, 1 / (logits.shape[1] - 1))
    return F.binary_cross_entropy_with_logits(logits, labels.to(logits), weight.to(logits))
