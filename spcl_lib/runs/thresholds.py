"""Which scores of an image are its labels: those from a threshold, the highest, or both.

A network that was trained on one label per image gives low probabilities, so few labels reach 0.5.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from spcl_lib.config import RunConfig
from spcl_lib.evaluate import predict_maps
from spcl_lib.model import Images
from spcl_lib.pooling import pooling_of
from spcl_lib.system.errors import UserError
from spcl_lib.system.randomness import keyed_generator

_BATCH = 64
_THRESHOLD_IMAGES = 2000  # enough images to choose one number
_NEARLY_ALL = 0.95  # share of the images
_LEAST_IMAGES = 20  # of fewer images, a class may well be in all or in none


@dataclass(frozen=True)
class LabelRule:
    """Says which scores are labels.

    Attributes:
        threshold: lowest score of a label; None for no limit.
        top: at most so many labels per image, the highest scores; None for no limit.

    Example:
        >>> LabelRule(0.25).choose(torch.tensor([[0.2, 0.3]]))
        tensor([[False,  True]])
    """

    threshold: float | None
    top: int | None = None

    def __post_init__(self) -> None:
        if self.threshold is not None and not 0 <= self.threshold <= 1:
            raise UserError(f"a threshold must be in 0..1; got {self.threshold}")
        if self.top is not None and self.top < 1:
            raise UserError(f"the number of labels must be at least 1; got {self.top}")

    def choose(self, scores: Tensor) -> Tensor:
        """(B, C) bool for scores (B, C): True where the class is a label of the image."""
        chosen = scores >= (self.threshold or 0)
        if self.top is not None and self.top < scores.shape[1]:
            highest = torch.zeros_like(chosen)
            chosen &= highest.scatter_(1, scores.topk(self.top, 1).indices, True)
        return chosen

    def names(self, scores: Tensor, classes: Sequence[str]) -> list[list[str]]:
        """The labels of every image, in the order of the classes; with `top`, the highest first."""
        ranked = scores if self.top is not None else torch.zeros_like(scores)
        order = ranked.argsort(dim=1, descending=True, stable=True)  # (B, C)
        chosen = self.choose(scores).gather(1, order)
        return [
            [classes[c] for c in numbers[own].tolist()]
            for numbers, own in zip(order, chosen, strict=True)
        ]

    def __str__(self) -> str:
        scores = "scores" if self.top is None else f"the {self.top} highest scores"
        return scores + ("" if self.threshold is None else f" from {self.threshold:.3f}")


def one_sided(chosen: Tensor, classes: Sequence[str]) -> list[str]:
    """Warnings: the classes that nearly all of some images get by `chosen` (N, C), or none."""
    if len(chosen) < _LEAST_IMAGES:
        return []
    share = chosen.double().mean(0)
    found = {"nearly all images": share >= _NEARLY_ALL, "no image": share == 0}
    return [
        f"warning: given to {where}: {', '.join(classes[c] for c in which.nonzero()[:10])}"
        for where, which in found.items()
        if which.any()
    ]


# --- how to choose one ----------------------------------------------------------------------------


def choose_threshold(model: nn.Module, images: Images, config: RunConfig) -> float:
    """The score that `expected_positives` labels of a training image reach, on average (ours).

    On the README's runs (seed 0), this threshold raises OF1 of EN + SCL from 49 to 76 (scenes) and
    68 to 70 (VOC 2007). OF1 of AN rises from 17 to 67 and 61 to 68. It uses no labels.

    Args:
        model: trained network.
        images: (N, 3, S, S) uint8 training images, or their features; of many, some are used.
        config: configuration of the run.
    """
    order = torch.randperm(len(images), generator=keyed_generator("threshold", config.seed))
    parts = order[:_THRESHOLD_IMAGES].sort().values.split(_BATCH)
    maps = [predict_maps(model, images[part], config.eval_side, "off") for part in parts]
    scores = pooling_of(model)(torch.cat(maps)).sigmoid()  # (M, C)
    return expected_threshold(scores, config.settings.expected_positives)


def expected_threshold(scores: Tensor, expected_positives: float) -> float:
    """The score that so many labels per image reach, on average over scores (N, C)."""
    count = round(len(scores) * expected_positives)
    return float(scores.flatten().topk(min(max(count, 1), scores.numel())).values[-1])


def best_threshold(scores: Tensor, labels: Tensor) -> float:
    """The threshold with the highest OF1 on held-out images (N, C), halfway between two scores.

    One number serves all classes: with one per class, chosen on held-out images, OF1 was lower on
    VOC 2007 and coco18, and higher on scenes.
    """
    ranked, order = scores.flatten().sort(descending=True)
    right = labels.flatten()[order].double().cumsum(0)
    f1 = 2 * right / (torch.arange(1, len(ranked) + 1) + labels.sum())
    f1[:-1][ranked[:-1] == ranked[1:]] = 0  # a threshold cannot separate equal scores
    best = int(f1.argmax())
    return float((ranked[best] + ranked[min(best + 1, len(ranked) - 1)]) / 2)
