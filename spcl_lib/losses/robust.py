"""GR, the generalised robust loss: an unknown label is a soft positive when the network is sure.

Chen et al., "Boosting Single Positive Multi-label Classification with Generalized Robust Loss"
(IJCAI 2024). The schedule of the published code stops one epoch before its end; ours reaches it.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from spcl_lib.system.shapes import require_rows

_Q_POSITIVE, _Q_NEGATIVE = 0.01, 1.0  # as published
# Values at the start and at the end, linear in between; the defaults of the published code.
_STARTS = {"slope": 0.0, "offset": -2.0, "centre": 0.5, "width": 2.0}
_ENDS = {"slope": 2.0, "offset": -2.0, "centre": 0.8, "width": 0.5}
_LEAST = 1e-6


def generalised_robust(logits: Tensor, labels: Tensor, progress: float) -> Tensor:
    """GR: -log p where z = 1; elsewhere v (k (1 - p^a) / a + (1 - k) (1 - (1 - p)^b) / b).

    k = sigmoid(slope * p + offset) is the probability that the label is positive.
    v = exp(-(p - centre)^2 / (2 width^2)) is its weight. Neither has a gradient.

    Args:
        logits: s (B, C).
        labels: z (B, C).
        progress: finished share of the training, in [0, 1].
    """
    return robust_parts(logits, labels, progress)[0].mean()


def robust_parts(logits: Tensor, labels: Tensor, progress: float) -> tuple[Tensor, Tensor]:
    """GR's loss of every label, and v; both (B, C). Arguments as in `generalised_robust`."""
    require_rows(logits, labels=labels)
    now = {name: start + progress * (_ENDS[name] - start) for name, start in _STARTS.items()}
    p = logits.sigmoid().clamp(_LEAST, 1 - _LEAST)
    fixed = p.detach()
    k = (now["slope"] * fixed + now["offset"]).sigmoid()
    v = torch.exp(-(fixed - now["centre"]).square() / (2 * now["width"] ** 2))
    positive = (1 - p**_Q_POSITIVE) / _Q_POSITIVE
    negative = (1 - (1 - p) ** _Q_NEGATIVE) / _Q_NEGATIVE
    unknown = v * (k * positive + (1 - k) * negative)
    return torch.where(labels.bool(), -F.logsigmoid(logits), unknown), v
