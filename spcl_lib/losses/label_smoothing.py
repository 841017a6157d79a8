"""AN-LS, assume negative with label smoothing: no target is exactly 0 or 1.

Cole et al., "Multi-Label Learning from Single Positive Labels" (CVPR 2021). The paper writes
eps / 2 with eps = 0.1; the published code uses 0.1 itself.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from spcl_lib.system.shapes import require_rows


def label_smoothing(logits: Tensor, labels: Tensor, smoothing: float = 0.1) -> Tensor:
    """AN-LS: mean over B * C of BCE(s, t), t = 1 - smoothing where z = 1, smoothing elsewhere.

    Args:
        logits: s (B, C).
        labels: z (B, C).
        smoothing: in [0, 0.5].
    """
    require_rows(logits, labels=labels)
    if not 0 <= smoothing <= 0.5:
        raise ValueError(f"smoothing must be in [0, 0.5]; got {smoothing}")
    targets = labels.to(logits) * (1 - 2 * smoothing) + smoothing
    return F.binary_cross_entropy_with_logits(logits, targets)
