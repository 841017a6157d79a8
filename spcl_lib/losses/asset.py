"""Asset regularisation: a prediction must agree with a slow average of the image's predictions.

Sun et al., "Merlin L48 Spectrogram Dataset" (NeurIPS 2025). It is the published loss nearest to CL.
Their asset is a recording: its clips share one average. Our asset is an image: its crops share one
average. They add the term to several losses. We add it to the whole of AN, because CL is also AN
with agreement: so only the averages differ. These averages start undecided, act at once and move
slowly. CL's averages start with a prediction, act after `start` epochs and move faster.

A recording has at least 11 clips, and each clip moves the average in every epoch. An image moves
its average once per epoch. So the published step of 0.001 is too small for a short training.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from spcl_lib.losses.assume_negative import assume_negative
from spcl_lib.system.shapes import require_rows, require_size, require_tensor

_LOWEST, _HIGHEST = 0.4, 0.6  # as published


def asset_regularisation(logits: Tensor, labels: Tensor, averages: Tensor, alpha: float) -> Tensor:
    """AN + alpha * mean over B * C of BCE(s, P).

    Args:
        logits: s (B, C).
        labels: z (B, C).
        averages: P (B, C), before they move.
        alpha: weight of the agreement.
    """
    require_rows(logits, labels=labels, averages=averages)
    agreement = F.binary_cross_entropy_with_logits(logits, averages.to(logits))
    return assume_negative(logits, labels) + alpha * agreement


@torch.no_grad()
def moved_averages(averages: Tensor, logits: Tensor, step: float) -> Tensor:
    """P after a step: (1 - eps) P + eps * p, for all labels, also where z = 1.

    Args:
        averages: P (B, C).
        logits: s (B, C).
        step: eps, in [0, 1].
    """
    require_rows(logits, averages=averages)
    return (1 - step) * averages + step * logits.sigmoid().to(averages)


def first_averages(labels: Tensor, seed: int) -> Tensor:
    """(N, C) P at the start: 1 for the annotated label, between 0.4 and 0.6 for the others.

    Args:
        labels: z (N, C) of the whole training set.
        seed: seed of the random values.
    """
    require_tensor("labels", labels, ("N", "C"))
    require_size(seed, "seed", 0)
    chance = torch.rand(labels.shape, generator=torch.Generator().manual_seed(seed))
    return torch.where(labels.bool(), 1.0, _LOWEST + (_HIGHEST - _LOWEST) * chance)
