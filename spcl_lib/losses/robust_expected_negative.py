"""REN, robust expected negatives: our EN with a loss that forgives wrong negatives.

The term `ren` adds Crisp's loss, which tells how frequent each class is: see terms.py.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from spcl_lib.system.shapes import require_rows, require_tensor

_SLOPE = 2.0  # how fast the weight of a negative falls when the presence passes the threshold
_LEAST = 1e-3


def robust_expected_negative(
    logits: Tensor,
    labels: Tensor,
    presence: Tensor | None,
    threshold: Tensor,
    robustness: float,
    hidden: float = 0.0,
) -> Tensor:
    """The first part of REN: -log p where z = 1, else w n; the mean, weighted with 1 and w.

    n = (1 - h) (1 - (1 - p)^r) / r - h log p.

    EN (the paper) leaves out likely positives. REN gives them a small weight instead:
    w = sigmoid(-2 (logit(q) - logit(t))), with the presence q and EN's threshold t. The other
    unknown labels still contain hidden positives. The generalised cross-entropy (Zhang and Sabuncu,
    NeurIPS 2018) has a small gradient where the network is sure that the class is present. r = 1
    is the mean absolute error, r -> 0 is BCE. An unknown label is a positive with the probability
    h: with r = 1, p comes to rest at h / (1 - h) and not at 0, so that nothing pushes a class that
    the network has not learned yet out of its reach.

    Args:
        logits: s (B, C).
        labels: z (B, C).
        presence: q (B, C) in [0, 1]; None, so w = 1, before the loss uses the running averages.
        threshold: t (C,), the least presence of a possible class.
        robustness: r in (0, 1].
        hidden: h in [0, 1), the share of positives among the unknown labels.
    """
    require_rows(logits, labels=labels)
    require_tensor("threshold", threshold, (logits.shape[1],), "float")
    if presence is not None:
        require_tensor("presence", presence, logits.shape, "float")
    if not 0 < robustness <= 1:
        raise ValueError(f"robustness must be in (0, 1]; got {robustness}")
    if not 0 <= hidden < 1:
        raise ValueError(f"hidden must be in [0, 1); got {hidden}")
    positive = labels.bool()
    negative = (1 - (1 - logits.sigmoid()).clamp(min=1e-6) ** robustness) / robustness
    surprise = -F.logsigmoid(logits)
    if hidden:
        negative = (1 - hidden) * negative + hidden * surprise
    loss = torch.where(positive, surprise, negative)
    if presence is None:
        return loss.mean()
    above = torch.logit(presence, eps=_LEAST) - torch.logit(threshold, eps=_LEAST)
    weight = torch.where(positive, 1.0, torch.sigmoid(-_SLOPE * above))
    return (weight * loss).sum() / weight.sum()
