"""REN, robust expected negatives: ours. EN, with a loss that forgives wrong negatives.

The term `ren` adds Crisp's loss, which says how often each class is there: see terms.py.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

_SLOPE = 2.0  # how sharply a class stops being a negative where its presence passes the threshold
_LEAST = 1e-3


def robust_expected_negative(
    logits: Tensor,
    labels: Tensor,
    presence: Tensor | None,
    threshold: Tensor,
    robustness: float,
) -> Tensor:
    """The first part of REN: -log p where z = 1, else w (1 - (1 - p)^r) / r; the weighted mean.

    EN (the paper) leaves likely positives out. REN does so smoothly, with
    w = sigmoid(-2 (logit(q) - logit(t))), q the presence and t EN's threshold. What is left still
    holds hidden positives. The generalised cross-entropy (Zhang and Sabuncu, NeurIPS 2018) has a
    small gradient where the network is sure that such a class is there: r = 1 is the mean absolute
    error, r -> 0 is BCE.

    Args:
        logits: s (B, C).
        labels: z (B, C).
        presence: q (B, C) in [0, 1]; None before the running averages are used: then w = 1.
        threshold: t (C,), from which on a class is possible.
        robustness: r in (0, 1].
    """
    positive = labels.bool()
    negative = (1 - (1 - logits.sigmoid()).clamp(min=1e-6) ** robustness) / robustness
    loss = torch.where(positive, -F.logsigmoid(logits), negative)
    if presence is None:
        return loss.mean()
    above = torch.logit(presence, eps=_LEAST) - torch.logit(threshold, eps=_LEAST)
    weight = torch.where(positive, 1.0, torch.sigmoid(-_SLOPE * above))
    return (weight * loss).sum() / weight.sum()
