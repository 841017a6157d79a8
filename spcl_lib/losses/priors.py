"""Crisp: estimates class priors from the annotated positives, and uses them in the loss.

"Class prior-driven single positive multi-label learning" (Crisp). Its final form adds a logit term.
We have not found the formula of that term, so our loss lacks it.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from spcl_lib.losses.settings import MethodSettings
from spcl_lib.losses.state import Context, State
from spcl_lib.losses.stateless import assume_negative
from spcl_lib.system import ranks

_DELTA = _TAU = 0.01  # as published


def class_priors(scores: Tensor, labels: Tensor) -> Tensor:
    """(C,) share of the images that show each class, estimated from the annotated images.

    A threshold t gives two shares: of all images, and of the annotated images, that score at least
    t. The estimate is the first share divided by the second, at the t with the tightest bound.

    Args:
        scores: (N, C) predictions for all training images.
        labels: z (N, C); a class without annotation has the prior 0.
    """
    priors = torch.zeros(scores.shape[1])
    for c in range(scores.shape[1]):
        annotated = scores[labels[:, c].bool(), c].sort().values
        if len(annotated):
            priors[c] = _prior(scores[:, c].sort().values, annotated)
    return priors


def _prior(scores: Tensor, annotated: Tensor) -> float:
    """The estimate for one class; both tensors ascending."""
    all_above = 1 - torch.searchsorted(scores, annotated) / len(scores)
    own_above = 1 - torch.searchsorted(annotated, annotated) / len(annotated)
    bound = math.log(4 / _DELTA) / 2
    slack = math.sqrt(bound / len(scores)) + math.sqrt(bound / len(annotated))
    best = ((all_above + (1 + _TAU) * slack) / own_above).argmin()
    return float((all_above[best] / own_above[best]).clamp(max=1))


def crisp(s: Tensor, z: Tensor, priors: Tensor) -> Tensor:
    """Crisp: mean over C of `2 pi * mean(1 - p of annotated images) + |mean(p) - pi|`.

    The first part is 0 for a class without an annotated image in the batch.

    Args:
        s: logits (B, C).
        z: labels (B, C).
        priors: pi (C,).
    """
    p, z = s.sigmoid(), z.to(s)
    missed = ((1 - p) * z).sum(0) / z.sum(0).clamp(min=1)
    return (2 * priors * missed + (p.mean(0) - priors).abs()).mean()


class PriorsState(State):
    """Crisp's loss; AN before `start`, and until the priors are known."""

    def __init__(self, labels: Tensor, settings: MethodSettings, epochs: int, seed: int) -> None:
        super().__init__(labels, settings, epochs, seed)
        self.register_buffer("predictions", torch.full(labels.shape, 0.5))
        self.register_buffer("priors", torch.zeros(labels.shape[1]))

    def knows_priors(self, context: Context) -> bool:
        """Whether the loss uses the priors."""
        return context.epoch >= context.settings.start and bool(self.priors.any())

    def forward(self, s: Tensor, z: Tensor, context: Context) -> Tensor:
        if not self.knows_priors(context):
            return assume_negative(s, z)
        return crisp(s, z, self.priors.to(s))

    def observe(self, s: Tensor, context: Context) -> None:
        self.keep(self.predictions, context, s.sigmoid())

    def end_epoch(self, done: int, presence: Tensor | None, labels: Tensor) -> None:
        predictions = ranks.merge(self.predictions)
        self.priors.copy_(class_priors(predictions, self.labels.to(predictions.device)))
