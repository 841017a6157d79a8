"""EN, expected negatives, and our REN and GPR, which build on it.

EN leaves likely positives out of the loss. The idea comes from the paper (WACV version). The rule
that selects the expected negatives is ours.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from spcl_lib.losses.priors import PriorsState, class_priors, crisp
from spcl_lib.losses.settings import MethodSettings
from spcl_lib.losses.state import Context, State
from spcl_lib.losses.stateless import (
    assume_negative,
    count_penalty,
    generalised_robust,
    masked_negatives,
    robust_terms,
)


def expected_negative_threshold(presence: Tensor, labels: Tensor, k: float) -> Tensor:
    """The least presence that makes an unknown label a possible positive (our rule).

    The network is surer of some classes than of others. So we divide the presence of a class by its
    mean over the images with this annotation (Elkan and Noto, 2008). The N * (k - 1) unknown labels
    with the highest ratios are possible positives. With the annotated one this makes k per image. A
    class without any annotated image stays negative, because nothing is known about it.

    Args:
        presence: (N, C) of what is compared with the threshold: the presence in views.
        labels: z (N, C).
        k: expected positives per image.

    Returns:
        (C,) thresholds; infinite for a class that cannot be positive.
    """
    labels = labels.bool()
    annotated = labels.sum(0)
    scale = (presence * labels).sum(0) / annotated.clamp(min=1)
    certain = labels | (annotated == 0)
    ratio = (presence / scale.clamp(min=1e-6)).masked_fill(certain, -math.inf)
    count = min(round(len(labels) * (k - 1)), int((~certain).sum()))
    if count <= 0:
        return torch.full_like(scale, math.inf)
    # Slightly lower, so that rounding does not lose the label that sets the threshold.
    least = ratio.flatten().topk(count).values[-1] * scale * (1 - 1e-6)
    return least.masked_fill(annotated == 0, math.inf)


class ExpectedNegatives(State):
    """EN: AN without the possible positives; AN before `start`, and until averages are known."""

    def __init__(self, labels: Tensor, settings: MethodSettings, epochs: int, seed: int) -> None:
        super().__init__(labels, settings, epochs, seed)
        self.register_buffer("threshold", torch.full((labels.shape[1],), math.inf))

    def possible(self, presence: Tensor) -> Tensor:
        """(B, C) bool: labels that may be positive, according to the running averages."""
        return presence >= self.threshold.to(presence.device)

    def forward(self, s: Tensor, z: Tensor, context: Context) -> Tensor:
        if context.presence is None:
            return assume_negative(s, z)
        return masked_negatives(s, z, self.possible(context.presence))

    def end_epoch(self, done: int, presence: Tensor | None, labels: Tensor) -> None:
        if presence is None:
            return
        k = self.settings.expected_positives
        if self.settings.expected_count == "estimated":
            k = max(1.0, class_priors(presence, labels).sum().item())
        self.threshold.copy_(expected_negative_threshold(presence, labels, k))


class PseudoRobust(ExpectedNegatives):
    """GPR: GR, or w (-0.9 log p - 0.1 log(1 - p)) for likely positives; + reg * count penalty.

    Tran et al., "More Reliable Pseudo-labels, Better Performance" (ICCV 2025; the framework is
    AEVLP). The weight w = 1 - v, limited to [least, 0.7], has no gradient. The loss and its numbers
    come from the paper. The source of the pseudo-positives is ours: EN's possible positives; the
    paper takes them from a vision-language model. We use GR, with its own schedule, for all other
    unknown labels; the paper also has pseudo-negatives. Of its regularisers we have EPR's only.
    """

    def forward(self, s: Tensor, z: Tensor, context: Context) -> Tensor:
        if context.presence is None:
            return generalised_robust(s, z, context)
        loss, v = robust_terms(s, z, context.progress)
        weight = (1 - v).clamp(self.settings.pseudo_least, 0.7)
        pseudo = -weight * (0.9 * F.logsigmoid(s) + 0.1 * F.logsigmoid(-s))
        loss = torch.where(self.possible(context.presence) & ~z.bool(), pseudo, loss)
        penalty = count_penalty(s, self.settings.expected_positives)
        return loss.mean() + self.settings.count_weight * penalty


class RobustExpectedNegatives(ExpectedNegatives, PriorsState):
    """REN (ours): EN made smooth and forgiving, and Crisp's loss, which knows class priors."""

    def forward(self, s: Tensor, z: Tensor, context: Context) -> Tensor:
        own = self.settings
        hidden = own.hidden_share * (own.expected_positives - 1) / max(1, s.shape[1] - 1)
        loss = robust_expected_negative(
            s, z, context.presence, self.threshold.to(s.device), own.robustness, min(hidden, 0.5)
        )
        if not self.knows_priors(context):
            return loss
        return loss + own.prior_weight * crisp(s, z, self.priors.to(s))

    def end_epoch(self, done: int, presence: Tensor | None, labels: Tensor) -> None:
        ExpectedNegatives.end_epoch(self, done, presence, labels)
        PriorsState.end_epoch(self, done, presence, labels)


def robust_expected_negative(
    s: Tensor,
    z: Tensor,
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
        s: logits (B, C).
        z: labels (B, C).
        presence: q (B, C) in [0, 1]; None, so w = 1, before the loss uses the running averages.
        threshold: t (C,), the least presence of a possible class.
        robustness: r in (0, 1].
        hidden: h in [0, 1), the share of positives among the unknown labels.
    """
    surprise = -F.logsigmoid(s)
    negative = -torch.expm1(robustness * F.logsigmoid(-s)) / robustness
    if hidden:
        negative = (1 - hidden) * negative + hidden * surprise
    loss = torch.where(z.bool(), surprise, negative)
    if presence is None:
        return loss.mean()
    above = torch.logit(presence, eps=1e-3) - torch.logit(threshold, eps=1e-3)
    weight = torch.where(z.bool(), 1.0, torch.sigmoid(-2 * above))
    return (weight * loss).sum() / weight.sum()
