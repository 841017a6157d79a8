"""LL, large loss matters: the unknown labels with the largest losses are probably positive.

Kim et al., "Large Loss Matters in Weakly Supervised Multi-Label Classification" (CVPR 2022). The
first epoch is plain AN. Later, every batch treats its K unknown labels with the largest losses
differently: LL-R ignores them, LL-Ct counts them as positive in this batch, and LL-Cp makes them
positive permanently.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from spcl_lib.system.errors import unknown_name
from spcl_lib.system.shapes import require_rows, require_size, require_tensor

KINDS = ("reject", "correct")


def large_loss(logits: Tensor, labels: Tensor, count: int, kind: str = "reject") -> Tensor:
    """AN, mean over B * C, with an exception for the `count` largest losses of unknown labels.

    Args:
        logits: s (B, C).
        labels: z (B, C).
        count: K, the labels.
        kind: the exception: "reject" sets their loss to 0, "correct" to -log p.
    """
    require_rows(logits, labels=labels)
    if kind not in KINDS:
        raise unknown_name("exception", kind, KINDS)
    loss = F.binary_cross_entropy_with_logits(logits, labels.to(logits), reduction="none")
    largest = largest_losses(loss, labels, count)
    other = torch.zeros_like(loss) if kind == "reject" else -F.logsigmoid(logits)
    return torch.where(largest, other, loss).mean()


def largest_losses(loss: Tensor, labels: Tensor, count: int) -> Tensor:
    """(B, C) bool: the `count` unknown labels with the largest losses (B, C)."""
    require_tensor("loss", loss, ("B", "C"), "float")
    require_tensor("labels", labels, loss.shape)
    require_size(count, "count", 0)
    unknown = loss.detach().masked_fill(labels.bool(), -math.inf).flatten()
    count = min(count, int((~labels.bool()).sum()))
    chosen = torch.zeros_like(unknown, dtype=torch.bool)
    chosen[unknown.topk(count).indices] = True
    return chosen.view_as(loss)


def rejected_count(size: int, epochs: float, delta: float) -> int:
    """K: delta percent of the B * C = `size` labels of a batch, times the whole epochs done."""
    return math.ceil(size * int(epochs) * delta / 100)


def correct_for_good(logits: Tensor, labels: Tensor, made: Tensor, count: int) -> Tensor:
    """LL-Cp: AN, but the `count` largest losses become positives now and in all later epochs.

    Args:
        logits: s (B, C).
        labels: z (B, C).
        made: (B, C) bool; labels that earlier batches made positive; changed in place.
        count: K, the labels.
    """
    require_rows(logits, labels=labels)
    require_tensor("made", made, logits.shape, "bool")
    positive = labels.bool() | made
    loss = F.binary_cross_entropy_with_logits(logits, positive.to(logits), reduction="none")
    largest = largest_losses(loss, positive, count)
    made |= largest
    return torch.where(largest, -F.logsigmoid(logits), loss).mean()
