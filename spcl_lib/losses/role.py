"""ROLE, regularised online label estimation: the optimiser learns labels with the network.

Cole et al., "Multi-Label Learning from Single Positive Labels" (CVPR 2021).
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from spcl_lib.losses.expected_positives import expected_positive_regularisation
from spcl_lib.system.shapes import require_rows, require_size, require_tensor

_START_POSITIVE, _START_UNKNOWN = 0.995, 0.6  # as published


def role(logits: Tensor, labels: Tensor, estimates: Tensor, k: float) -> Tensor:
    """ROLE: (L'(p | y) + L'(y | p)) / 2 with L'(a | b) = BCE(a, stop(b)) + EPR(a).

    Args:
        logits: s (B, C).
        labels: z (B, C).
        estimates: (B, C) logits of the estimated labels y; the optimiser also changes them.
        k: expected positives per image.
    """
    require_rows(logits, labels=labels)
    require_tensor("estimates", estimates, logits.shape, "float")
    return (_one_side(logits, estimates, labels, k) + _one_side(estimates, logits, labels, k)) / 2


def _one_side(learning: Tensor, fixed: Tensor, labels: Tensor, k: float) -> Tensor:
    loss = F.binary_cross_entropy_with_logits(learning, fixed.detach().sigmoid())
    return loss + expected_positive_regularisation(learning, labels, k)


def first_estimates(labels: Tensor, seed: int) -> Tensor:
    """(N, C) logits of the first estimates: 0.995 where annotated, else between 0.4 and 0.6.

    Args:
        labels: z (N, C) of the whole training set.
        seed: seed of the random values.
    """
    require_tensor("labels", labels, ("N", "C"))
    require_size(seed, "seed", 0)
    limit = math.log(_START_UNKNOWN / (1 - _START_UNKNOWN))
    chance = torch.rand(labels.shape, generator=torch.Generator().manual_seed(seed))
    certain = math.log(_START_POSITIVE / (1 - _START_POSITIVE))
    return torch.where(labels.bool(), certain, (2 * chance - 1) * limit)
