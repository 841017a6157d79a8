"""AN, assume negative: every unknown label counts as a negative. The paper's baseline."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from spcl_lib.system.shapes import require_rows


def assume_negative(logits: Tensor, labels: Tensor) -> Tensor:
    """AN: mean over B * C of BCE(s, z). With full labels y it is the upper bound, Full.

    Args:
        logits: s (B, C).
        labels: z (B, C), or y.
    """
    require_rows(logits, labels=labels)
    return F.binary_cross_entropy_with_logits(logits, labels.to(logits))
