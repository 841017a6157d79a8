"""SCL, the consistency term: a prediction must agree with its running average.

CL is SCL with one cell, the whole image. Both come from the paper. The distance is ours;
second-hand sources say that the paper uses L1.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from spcl_lib.losses.settings import DISTANCES
from spcl_lib.system.errors import unknown_name
from spcl_lib.system.shapes import require_seen, require_tensor


def distance(logits: Tensor, target: Tensor, kind: str) -> Tensor:
    """Elementwise distance d between sigmoid(logits) and a probability of the same shape.

    "bce" is the cross-entropy minus the target's entropy: the Kullback-Leibler divergence.
    """
    require_tensor("target", target, logits.shape, "float")
    if kind == "bce":
        entropy = _entropy(target) + _entropy(1 - target)
        return F.binary_cross_entropy_with_logits(logits, target, reduction="none") - entropy
    difference = torch.sigmoid(logits) - target
    if kind == "l1":
        return difference.abs()
    if kind == "l2":
        return difference.square()
    raise unknown_name("distance", kind, DISTANCES)


def _entropy(p: Tensor) -> Tensor:
    """-p log p; several times as fast on a CPU as torch.special.entr, which is not vectorised."""
    return -p * p.clamp(min=torch.finfo(p.dtype).tiny).log()


def spatial_consistency(maps: Tensor, target: Tensor, seen: Tensor, kind: str = "bce") -> Tensor:
    """SCL: mean of d(m, T_v(H)) over all seen cells of the batch, and over the classes.

    Args:
        maps: f (B, C, G, G) logits.
        target: T_v(H) (B, C, G, G) in [0, 1].
        seen: (B, 1, G, G) in {0, 1}, or (B, C, G, G) for a bank that keeps some of the classes.
            A class that is not kept counts as if it agreed.
        kind: the distance, one of DISTANCES.
    """
    require_tensor("maps", maps, ("B", "C", "H", "W"), "float")
    require_seen(seen, maps)
    total = (distance(maps, target, kind) * seen).sum()
    return total / (seen.amax(1).sum() * maps.shape[1]).clamp(min=1)


def cell_consistency(maps: Tensor, target: Tensor, seen: Tensor) -> Tensor:
    """SCL for classes that compete (ours): mean over seen cells of KL(T_v(H) || softmax(maps)).

    The caller has divided the logits `maps` by the softmax's temperature. Of a bank that keeps some
    of the classes, only their terms count, so it is no full KL.
    """
    require_tensor("maps", maps, ("B", "C", "H", "W"), "float")
    require_tensor("target", target, maps.shape, "float")
    require_seen(seen, maps)
    divergence = -target * maps.log_softmax(1) - _entropy(target)
    return (divergence * seen).sum() / seen.amax(1).sum().clamp(min=1)
