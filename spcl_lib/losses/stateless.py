"""The losses without state: functions of logits s (B, C), labels z (B, C) and the Context.

p = sigmoid(s). z has one 1 per image; 0 means unknown. Each loss is a mean over B * C, or over B
where the classes compete; some papers take sums. `registry` names the papers.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from spcl_lib.losses.state import Context

_bce = F.binary_cross_entropy_with_logits


def assume_negative(s: Tensor, z: Tensor, context: Context | None = None) -> Tensor:
    """AN, the paper's baseline: BCE(s, z), every unknown label is a negative. With y it is Full."""
    return _bce(s, z.to(s))


def masked_negatives(s: Tensor, z: Tensor, left_out: Tensor) -> Tensor:
    """AN without the unknown labels in `left_out` (B, C) bool; the others keep their weight."""
    return _bce(s, z.to(s), reduction="none").masked_fill(left_out & ~z.bool(), 0).mean()


def ignore_unobserved(s: Tensor, z: Tensor, context: Context) -> Tensor:
    """IUN: AN without the hidden positives, which have z = -1."""
    return masked_negatives(s, z > 0, z < 0)


def label_smoothing(s: Tensor, z: Tensor, context: Context) -> Tensor:
    """AN-LS: BCE(s, t), t = 1 - smoothing where z = 1, smoothing elsewhere."""
    smoothing = context.settings.smoothing
    return _bce(s, z.to(s) * (1 - 2 * smoothing) + smoothing)


def weak_negatives(s: Tensor, z: Tensor, context: Context) -> Tensor:
    """WAN: AN with weight 1 / (C - 1) for unknown labels."""
    return _bce(s, z.to(s), torch.where(z.bool(), 1.0, 1 / max(1, s.shape[1] - 1)))


def annotated_only(s: Tensor, z: Tensor, context: Context) -> Tensor:
    """-log p of the annotated class, mean over B, for poolings in which the classes compete.

    With the pooling "softmax" it is the cross-entropy that anybody would write for one label.
    """
    return -(F.logsigmoid(s) * z).sum(1).mean()


def smoothed_annotated_only(s: Tensor, z: Tensor, context: Context) -> Tensor:
    """The same, with the share `smoothing` of the target divided equally among the classes."""
    everything = -F.logsigmoid(s).mean()
    smoothing = context.settings.smoothing
    return (1 - smoothing) * annotated_only(s, z, context) + smoothing * everything


def count_penalty(s: Tensor, k: float) -> Tensor:
    """EPR's second part: ((mean over B of sum over C of p - k) / C)^2."""
    return ((s.sigmoid().sum(1).mean() - k) / s.shape[1]).square()


def expected_positive_regularisation(s: Tensor, z: Tensor, context: Context) -> Tensor:
    """EPR: -log p where z = 1, + how far the number of positives is from k."""
    return -(F.logsigmoid(s) * z).mean() + count_penalty(s, context.settings.expected_positives)


def entropy_maximisation(s: Tensor, z: Tensor, context: Context) -> Tensor:
    """EM: -log p where z = 1, -alpha * H(p) elsewhere."""
    return entropy_terms(s, z, context.settings.entropy_weight).mean()


def entropy_terms(s: Tensor, z: Tensor, alpha: float) -> Tensor:
    """(B, C): EM's loss of every label."""
    p = s.sigmoid()
    entropy = -(p * F.logsigmoid(s) + (1 - p) * F.logsigmoid(-s))
    return torch.where(z.bool(), -F.logsigmoid(s), -alpha * entropy)


def largest_losses(loss: Tensor, labels: Tensor, epochs: float, delta: float) -> Tensor:
    """(B, C) bool: the largest losses of unknown labels, delta % of B * C per epoch, rounded up."""
    unknown = loss.detach().masked_fill(labels.bool(), -math.inf).flatten()
    count = math.ceil(loss.numel() * int(epochs) * delta / 100)
    count = min(count, int((~labels.bool()).sum()))
    chosen = torch.zeros_like(unknown, dtype=torch.bool)
    chosen[unknown.topk(count).indices] = True
    return chosen.view_as(loss)


def reject_large(s: Tensor, z: Tensor, context: Context) -> Tensor:
    """LL-R: AN without the largest losses."""
    loss = _bce(s, z.to(s), reduction="none")
    largest = largest_losses(loss, z, context.epoch, context.settings.rejected)
    return loss.masked_fill(largest, 0).mean()


def correct_large(s: Tensor, z: Tensor, context: Context) -> Tensor:
    """LL-Ct: AN, but the largest losses become -log p in their batch."""
    loss = _bce(s, z.to(s), reduction="none")
    largest = largest_losses(loss, z, context.epoch, context.settings.rejected)
    return torch.where(largest, -F.logsigmoid(s), loss).mean()


def hill(s: Tensor, z: Tensor, context: Context) -> Tensor:
    """Hill: -(1 - q)^2 log q where z = 1, q = sigmoid(s - 1); (1.5 - p) p^2 elsewhere."""
    p, lowered = s.sigmoid(), s - 1
    positive = -((1 - lowered.sigmoid()) ** 2) * F.logsigmoid(lowered)
    return torch.where(z.bool(), positive, (1.5 - p) * p.square()).mean()


def splc(s: Tensor, z: Tensor, context: Context) -> Tensor:
    """SPLC: focal loss (gamma 2) with a margin of 1; after an epoch p > 0.6 counts as positive."""
    lowered = torch.where(z.bool(), s - 1, s)
    p = lowered.sigmoid()
    positive = z.bool() | (p > 0.6) if context.epoch >= 1 else z.bool()
    loss = -F.logsigmoid(torch.where(positive, lowered, -lowered))
    return (torch.where(positive, 1 - p, p).square() * loss).mean()


def asymmetric(s: Tensor, z: Tensor, context: Context) -> Tensor:
    """ASL: -log p where z = 1; -stop(q^4) log(1 - q), q = max(p - 0.05, 0), elsewhere."""
    q = (s.sigmoid() - 0.05).clamp(min=0)
    # The published training stops this gradient; the paper's formula has it.
    return torch.where(z.bool(), -F.logsigmoid(s), -(q.detach() ** 4) * (1 - q).log()).mean()


def generalised_robust(s: Tensor, z: Tensor, context: Context) -> Tensor:
    """GR: -log p where z = 1; elsewhere v (h (1 - p^q) / q + (1 - h) p).

    h = sigmoid(slope * p + offset) is the probability that the label is positive, and its weight is
    v = exp(-(p - centre)^2 / (2 width^2)). Neither has a gradient. The four numbers move linearly.
    """
    return robust_terms(s, z, context)[0].mean()


def robust_terms(s: Tensor, z: Tensor, context: Context) -> tuple[Tensor, Tensor]:
    """GR's loss of every label, and v; both (B, C). The numbers here are the published ones."""
    progress, q, own = min(1.0, context.epoch / context.epochs), 0.01, context.settings
    slope, offset = own.robust_slope * progress, -2.0 + (own.robust_offset + 2.0) * progress
    centre, width = 0.5 + 0.3 * progress, 2.0 - 1.5 * progress
    p = s.sigmoid()
    fixed = p.detach()
    h = (slope * fixed + offset).sigmoid()
    v = torch.exp(-(fixed - centre).square() / (2 * width**2))
    positive = -torch.expm1(q * F.logsigmoid(s)) / q  # p^q without a power of 0
    return torch.where(z.bool(), -F.logsigmoid(s), v * (h * positive + (1 - h) * p)), v
