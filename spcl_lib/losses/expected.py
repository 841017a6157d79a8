"""EN, expected negatives; Crisp, which estimates class priors; REN and GPR, which build on them.

EN leaves possible positives out of the loss. The idea comes from the paper (WACV version). The rule
that selects the expected negatives is ours.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from spcl_lib.losses import stateless as of
from spcl_lib.losses.settings import MethodSettings
from spcl_lib.losses.state import Context, State
from spcl_lib.system import ranks


def expected_negative_threshold(presence: Tensor, labels: Tensor, k: float) -> Tensor:
    """(C,) the least presence (N, C) that makes an unknown label a possible positive (our rule).

    The network is surer of some classes than of others. So we divide the presence of a class by its
    mean over the images with this annotation (Elkan and Noto, 2008). The N * (k - 1) unknown labels
    with the highest ratios, and equal ones, are possible positives: k per image with the annotated
    one. A class without any annotated image stays negative (infinity): nothing is known about it.
    """
    labels = labels.bool()
    annotated = labels.sum(0)
    scale = ((presence * labels).sum(0) / annotated.clamp(min=1)).clamp(min=1e-6)
    certain = labels | (annotated == 0) | (presence <= 0)  # 0: the bank does not keep the class
    ratio = (presence / scale).masked_fill(certain, -math.inf)
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
            return of.assume_negative(s, z)
        return of.masked_negatives(s, z, self.possible(context.presence))

    def end_epoch(self, done: int, presence: Tensor | None, labels: Tensor) -> None:
        if presence is None:
            return
        k = self.settings.expected_positives
        if self.settings.expected_count == "estimated":
            k = max(1.0, class_priors(presence, labels).sum().item())
        self.threshold.copy_(expected_negative_threshold(presence, labels, k))


class ExpectedCompetitors(ExpectedNegatives):
    """EN where the classes compete (ours): -log(p / (1 - sum of the possible positives' p)).

    The annotated class has to win against the expected negatives alone. Contrastive learning leaves
    likely false negatives out of its softmax in the same way (Huynh et al., WACV 2022).
    """

    def forward(self, s: Tensor, z: Tensor, context: Context) -> Tensor:
        loss = of.annotated_only(s, z, context)
        if context.presence is None:
            return loss
        possible = self.possible(context.presence) & ~z.bool()
        left = 1 - (s.sigmoid() * possible).sum(1)
        return loss + left.clamp(min=1e-3).log().mean()


class PseudoRobust(ExpectedNegatives):
    """GPR: GR, but w (-0.9 log p - 0.1 log(1 - p)) for possible positives; + the count penalty.

    w = 1 - GR's v, limited to [pseudo_least, 0.7], has no gradient. The possible positives are EN's
    (ours; before `start` there are none, and no penalty); the paper takes them from a
    vision-language model, and has pseudo-negatives, too.
    """

    def forward(self, s: Tensor, z: Tensor, context: Context) -> Tensor:
        loss, v = of.robust_terms(s, z, context)
        if context.presence is None:
            return loss.mean()
        weight = (1 - v).clamp(self.settings.pseudo_least, 0.7)
        pseudo = -weight * (0.9 * F.logsigmoid(s) + 0.1 * F.logsigmoid(-s))
        loss = torch.where(self.possible(context.presence) & ~z.bool(), pseudo, loss)
        penalty = of.count_penalty(s, self.settings.expected_positives)
        return loss.mean() + self.settings.count_weight * penalty


def class_priors(scores: Tensor, labels: Tensor) -> Tensor:
    """(C,) share of the images that show each class, estimated from the annotated images (Crisp).

    A threshold t gives two shares: of all images, and of the annotated images, whose scores (N, C)
    reach t. The estimate is the first share divided by the second, at the t with the tightest
    bound; 0 for a class without annotation.
    """
    priors = torch.zeros(scores.shape[1])
    for c in range(scores.shape[1]):
        annotated = scores[labels[:, c].bool(), c].sort().values
        if len(annotated):
            priors[c] = _prior(scores[:, c].sort().values, annotated)
    return priors


def _prior(scores: Tensor, annotated: Tensor, delta: float = 0.01, tau: float = 0.01) -> float:
    """The estimate for one class; both tensors ascending. delta and tau are as published."""
    all_above = 1 - torch.searchsorted(scores, annotated) / len(scores)
    own_above = 1 - torch.searchsorted(annotated, annotated) / len(annotated)
    bound = math.log(4 / delta) / 2
    slack = math.sqrt(bound / len(scores)) + math.sqrt(bound / len(annotated))
    best = ((all_above + (1 + tau) * slack) / own_above).argmin()
    return float((all_above[best] / own_above[best]).clamp(max=1))


class ClassPriors(State):
    """Crisp: mean over C of `2 prior * mean(1 - p of annotated images) + |mean(p) - prior|`.

    Means are over the batch; without an annotated image in it, a class has the second part only.
    The published loss has a logit term, too, whose formula we have not found. It is AN before
    `start`, and until a prior is above 0.
    """

    def __init__(self, labels: Tensor, settings: MethodSettings, epochs: int, seed: int) -> None:
        super().__init__(labels, settings, epochs, seed)
        self.register_buffer("predictions", torch.full(labels.shape, torch.nan))  # NaN: no step yet
        self.register_buffer("priors", torch.zeros(labels.shape[1]))

    def knows_priors(self, context: Context) -> bool:
        """Whether the loss uses the priors."""
        return context.epoch >= self.settings.start and bool(self.priors.any())

    def crisp(self, s: Tensor, z: Tensor) -> Tensor:
        """The loss with the priors."""
        p, z, priors = s.sigmoid(), z.to(s), self.priors.to(s)
        missed = ((1 - p) * z).sum(0) / z.sum(0).clamp(min=1)
        return (2 * priors * missed + (p.mean(0) - priors).abs()).mean()

    def forward(self, s: Tensor, z: Tensor, context: Context) -> Tensor:
        return self.crisp(s, z) if self.knows_priors(context) else of.assume_negative(s, z)

    def observe(self, s: Tensor, context: Context) -> None:
        self.keep(self.predictions, context, s.sigmoid())

    def end_epoch(self, done: int, presence: Tensor | None, labels: Tensor) -> None:
        predictions = ranks.merge(self.predictions)
        known = ~predictions[:, 0].isnan()
        labels = self.labels.to(known.device)[known]
        self.priors.copy_(class_priors(predictions[known], labels))


class RobustExpectedNegatives(ExpectedNegatives, ClassPriors):
    """REN (ours): EN made smooth and forgiving, and Crisp's loss, which knows class priors.

    The mean of -log p where z = 1, else n = (1 - h) (1 - (1 - p)^r) / r - h log p, weighted with 1
    and w; and the loss of Crisp.

    EN leaves out possible positives. REN gives them a small weight instead:
    w = sigmoid(-2 (logit(q) - logit(t))), with the presence q and EN's threshold t. The others
    still contain hidden positives. The generalised cross-entropy n (Zhang and Sabuncu, NeurIPS
    2018) has a small gradient where the network is sure of a class; r = 1 is the mean absolute
    error, r -> 0 is BCE. An unknown label is positive with the probability h = hidden_share *
    (k - 1) / (C - 1), at most 0.5: with r = 1, p comes to rest at h / (1 - h), not at 0.
    """

    def forward(self, s: Tensor, z: Tensor, context: Context) -> Tensor:
        loss = self._each(s, z)
        if context.presence is None:  # w = 1
            loss = loss.mean()
        else:
            threshold = self.threshold.to(s.device)  # infinity: nothing is a possible positive
            above = torch.logit(context.presence, eps=1e-3) - torch.logit(threshold, eps=1e-3)
            weight = torch.sigmoid(-2 * above).where(~z.bool() & threshold.isfinite(), 1.0)
            loss = (weight * loss).sum() / weight.sum()
        if self.knows_priors(context):
            loss = loss + self.settings.prior_weight * self.crisp(s, z)
        return loss

    def _each(self, s: Tensor, z: Tensor) -> Tensor:
        """(B, C): -log p or n."""
        own, surprise = self.settings, -F.logsigmoid(s)
        negative = -torch.expm1(own.robustness * F.logsigmoid(-s)) / own.robustness
        others = max(1, s.shape[1] - 1)
        hidden = min(own.hidden_share * (own.expected_positives - 1) / others, 0.5)
        if hidden:
            negative = (1 - hidden) * negative + hidden * surprise
        return torch.where(z.bool(), surprise, negative)

    def end_epoch(self, done: int, presence: Tensor | None, labels: Tensor) -> None:
        ExpectedNegatives.end_epoch(self, done, presence, labels)
        ClassPriors.end_epoch(self, done, presence, labels)
