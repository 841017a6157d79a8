"""EPR, expected positive regularisation: the positive, and how many positives an image has.

Cole et al., "Multi-Label Learning from Single Positive Labels" (CVPR 2021).
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from spcl_lib.system.shapes import require_number, require_rows


def expected_positive_regularisation(logits: Tensor, labels: Tensor, k: float) -> Tensor:
    """EPR: -(1 / BC) sum over z = 1 of log p, + ((mean over B of sum over C of p - k) / C)^2.

    Args:
        logits: s (B, C).
        labels: z (B, C).
        k: expected positives per image.
    """
    require_rows(logits, labels=labels)
    positive = -(F.logsigmoid(logits) * labels.to(logits)).mean()
    return positive + count_penalty(logits, k)


def count_penalty(logits: Tensor, k: float) -> Tensor:
    """EPR's second part: ((mean over B of sum over C of p - k) / C)^2."""
    require_rows(logits)
    require_number(k, "k")
    count = logits.sigmoid().sum(1).mean()
    return ((count - k) / logits.shape[1]).square()
