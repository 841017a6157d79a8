"""EM, entropy maximisation: unknown labels stay undecided. APL adds asymmetric pseudo-labels.

Zhou et al., "Acknowledging the Unknown for Multi-label Learning with Single Positive Labels"
(ECCV 2022).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from spcl_lib.system.shapes import require_rows, require_tensor


def entropy_maximisation(
    logits: Tensor,
    labels: Tensor,
    alpha: float = 0.2,
    pseudo: Tensor | None = None,
    beta: float = 0,
) -> Tensor:
    """EM: mean over B * C of -log p where z = 1, and -alpha * H(p) elsewhere.

    Args:
        logits: s (B, C).
        labels: z (B, C).
        alpha: weight of the entropy.
        pseudo: (B, C) pseudo-labels of APL in [0, 1], NaN where there is none.
        beta: weight of the cross-entropy with the pseudo-labels.
    """
    require_rows(logits, labels=labels)
    p = logits.sigmoid()
    entropy = -(p * F.logsigmoid(logits) + (1 - p) * F.logsigmoid(-logits))
    loss = torch.where(labels.bool(), -F.logsigmoid(logits), -alpha * entropy)
    if pseudo is not None:
        require_tensor("pseudo", pseudo, logits.shape, "float")
        known = ~pseudo.isnan() & ~labels.bool()
        cross = F.binary_cross_entropy_with_logits(logits, pseudo.nan_to_num(), reduction="none")
        loss = torch.where(known, beta * cross, loss)
    return loss.mean()


@torch.no_grad()
def add_pseudo_labels(
    pseudo: Tensor, predictions: Tensor, labels: Tensor, epochs_left: int
) -> None:
    """APL: after an epoch, the lowest predictions of every class become soft negative labels.

    A class has U unknown labels at the start. Each call selects, among those without a
    pseudo-label, the int(0.9 * U / T) labels with the lowest predictions. Their predictions become
    their pseudo-labels. So 90 % of the U labels have one after T epochs.

    Args:
        pseudo: (N, C) pseudo-labels, NaN where there is none; changed in place.
        predictions: (N, C) probabilities from the last epoch.
        labels: z (N, C).
        epochs_left: T, epochs from the first pseudo-labels to the end of the training.
    """
    require_tensor("labels", labels, ("N", "C"))
    require_tensor("pseudo", pseudo, labels.shape, "float")
    require_tensor("predictions", predictions, labels.shape, "float")
    unknown = ~labels.bool()
    for c in range(labels.shape[1]):
        count = int(0.9 * int(unknown[:, c].sum()) / max(1, epochs_left))
        free = (unknown[:, c] & pseudo[:, c].isnan()).nonzero().flatten()
        lowest = free[predictions[free, c].argsort()[:count]]
        pseudo[lowest, c] = predictions[lowest, c].to(pseudo)
