"""Which scores of an image are its labels: from a threshold, from one per class, or the highest.

A network that was trained on one label per image gives low probabilities, so few labels reach 0.5.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from spcl_lib.config import RunConfig
from spcl_lib.evaluate import predict_maps
from spcl_lib.model import Images
from spcl_lib.pooling import pooling_of
from spcl_lib.system.errors import UserError
from spcl_lib.system.files import parse_json, read_list, write_json
from spcl_lib.system.randomness import keyed_generator
from spcl_lib.system.shapes import require_tensor

_BATCH = 64
_THRESHOLD_IMAGES = 2000  # enough images to choose one number
_DOUBT = 20  # a class with so many positives keeps half of its own threshold, see below
KINDS = ("one", "per-class")


@dataclass(frozen=True)
class LabelRule:
    """Says which scores are labels.

    Attributes:
        thresholds: lowest score that counts as present: a number, or (C,) with one per class; None
            for no limit.
        top: at most so many labels per image, the highest scores; None for no limit.

    Raises:
        UserError: neither is given, or `top` is below 1.

    Example:
        >>> rule = LabelRule(torch.tensor([0.5, 0.2]))
        >>> rule.choose(torch.tensor([[0.4, 0.3]]))
        tensor([[False,  True]])
    """

    thresholds: Tensor | float | None
    top: int | None = None

    def __post_init__(self) -> None:
        if self.thresholds is None and self.top is None:
            raise UserError("no threshold is known; give one, such as 0.5, or the number of labels")
        if self.top is not None and self.top < 1:
            raise UserError(f"the number of labels must be at least 1; got {self.top}")

    def choose(self, scores: Tensor) -> Tensor:
        """Gives (B, C) bool for scores (B, C): True where the class is a label of the image."""
        require_tensor("scores", scores, ("B", "C"), "float")
        chosen = torch.ones_like(scores, dtype=torch.bool)
        if self.thresholds is not None:
            chosen = scores >= self.thresholds
        if self.top is not None and self.top < scores.shape[1]:
            highest = torch.zeros_like(chosen)
            highest.scatter_(1, scores.topk(self.top, 1).indices, True)
            chosen &= highest
        return chosen

    def names(self, scores: Tensor, classes: Sequence[str]) -> list[list[str]]:
        """The labels of every image of scores (B, C), in the order of the classes.

        With `top`, the highest score comes first.
        """
        found = []
        for own, chosen in zip(scores, self.choose(scores), strict=True):
            numbers = chosen.nonzero().flatten()
            if self.top is not None:
                numbers = numbers[own[numbers].argsort(descending=True, stable=True)]
            found.append([classes[c] for c in numbers.tolist()])
        return found

    def __str__(self) -> str:
        scores = "scores" if self.top is None else f"the {self.top} highest scores"
        if self.thresholds is None:
            return scores
        limits = torch.as_tensor(self.thresholds)
        low, high = float(limits.min()), float(limits.max())
        return f"{scores} from {low:.3f}" + (f" to {high:.3f}, by class" if low < high else "")


_NEARLY_ALL = 0.95  # share of the images
_LEAST_IMAGES = 20  # of fewer images, a class may well be in all or in none


def one_sided(chosen: Tensor, classes: Sequence[str]) -> list[str]:
    """Warnings: the classes that a rule gives to nearly all images, and those that it never gives.

    Args:
        chosen: (N, C) bool, of `LabelRule.choose`.
        classes: C names.
    """
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
        images: (N, 3, S, S) uint8 training images, or their features; if there are many, a
            part of them is used.
        config: configuration of the run.
    """
    order = torch.randperm(len(images), generator=keyed_generator("threshold", config.seed))
    parts = order[:_THRESHOLD_IMAGES].sort().values.split(_BATCH)
    maps = [predict_maps(model, images[part], config.eval_side, config.amp) for part in parts]
    scores = pooling_of(model)(torch.cat(maps)).sigmoid()  # (M, C)
    return expected_threshold(scores, config.settings.expected_positives)


def expected_threshold(scores: Tensor, expected_positives: float) -> float:
    """The score that so many labels per image reach, on average over scores (N, C)."""
    count = min(round(len(scores) * expected_positives), scores.numel())
    return float(scores.flatten().topk(count).values[-1])


def best_thresholds(scores: Tensor, labels: Tensor, kind: str) -> Tensor:
    """Thresholds (C,) for images whose labels are all known; they must be held out from training.

    "one": the number with the highest OF1, for all classes. "per-class": between it and the number
    with the highest F1 of the class, halfway (as logits) for a class with 20 positives, nearer to
    its own with more.

    Measured (ours): chosen on 1,000 held-out images of VOC 2007's train, for its final images (6
    pairs of runs), OF1 and CF1 change by +0.5 and -0.1 against the run's own threshold with "one",
    by +0.1 and -0.1 with "per-class", and by -0.6 and -0.3 with the highest F1 of each class alone,
    which trusts too few positives. With 400 images of scenes, which show more objects than the runs
    expected, "one" gives +2.3 and +2.7, "per-class" +3.7 and +3.4; with 400 of coco18, "one" gives
    +0.1 and -0.9, "per-class" -0.6 and -0.1. So "one" is the default; `evaluate` measures both.

    Args:
        scores: (N, C) probabilities.
        labels: (N, C) bool, full labels.
        kind: one of KINDS.

    Raises:
        UserError: no image has a label.
    """
    if not bool(labels.any()):
        raise UserError("no image has a label, so no threshold can be chosen")
    shared = _highest_f1(scores.flatten(), labels.flatten())
    if kind == "one":
        return torch.full((scores.shape[1],), shared)
    pairs = zip(scores.T, labels.T, strict=True)
    own = [_highest_f1(*pair) if bool(pair[1].any()) else shared for pair in pairs]
    positives = labels.sum(0)
    trust = positives / (positives + _DOUBT)
    mixed = trust * torch.tensor(own).logit(1e-6) + (1 - trust) * torch.tensor(shared).logit(1e-6)
    return mixed.sigmoid()


def _highest_f1(scores: Tensor, labels: Tensor) -> float:
    """The threshold with the highest F1, halfway between two scores (N,)."""
    ranked, order = scores.sort(descending=True)
    right = labels[order].double().cumsum(0)
    f1 = 2 * right / (torch.arange(1, len(ranked) + 1) + labels.sum())
    f1[:-1][ranked[:-1] == ranked[1:]] = 0  # a threshold cannot separate equal scores
    best = int(f1.argmax())
    return float((ranked[best] + ranked[min(best + 1, len(ranked) - 1)]) / 2)


# --- files ----------------------------------------------------------------------------------------


def check_thresholds_place(file: Path) -> None:
    """Refuses a place for thresholds where something else would be lost.

    Raises:
        UserError: there is another file than one of `write_thresholds`.
    """
    if not os.path.lexists(file):
        return
    with contextlib.suppress(OSError, ValueError):
        content = read_list(file)
        if not content or "thresholds" in dict(parse_json(content)):
            return
    raise UserError(f"'{file}' exists and holds no thresholds; give another name")


def write_thresholds(
    file: Path, thresholds: Tensor, classes: Sequence[str], how: dict[str, Any]
) -> None:
    """Writes thresholds (C,) as JSON.

    Args:
        file: the file; it is replaced.
        thresholds: (C,).
        classes: C names.
        how: what the scores depend on, such as {"size": 160}, see `read_thresholds`.
    """
    numbers = dict(zip(classes, thresholds.tolist(), strict=True))
    write_json(file, {"scores": how, "thresholds": numbers})


def read_thresholds(file: Path, classes: Sequence[str], how: dict[str, Any]) -> Tensor:
    """Reads thresholds (C,) of `write_thresholds`.

    Args:
        file: the file.
        classes: C names; each must have a threshold in 0..1.
        how: what the scores depend on. Scores of another run, size or pooling need others.

    Raises:
        UserError: the file is missing or malformed, lacks a class, or is for other scores.
    """
    try:
        content = parse_json(read_list(file))
        given, numbers = dict(content["scores"]), content["thresholds"]
        found = [numbers.get(name) for name in classes]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"'{file}' holds no thresholds ({type(error).__name__}: {error}); make it with: "
            "python -m spcl_lib evaluate --save-thresholds FILE"
        ) from error
    for name, number in zip(classes, found, strict=True):
        if not isinstance(number, int | float) or not 0 <= number <= 1:
            raise UserError(f"'{file}': class '{name}' needs a threshold in 0..1; got {number}")
    if given != how:
        told, needed = (", ".join(f"{k} {v}" for k, v in d.items()) for d in (given, how))
        raise UserError(
            f"'{file}' has the thresholds for other scores ({told}; here {needed}); choose them "
            "again with: python -m spcl_lib evaluate --save-thresholds FILE"
        )
    return torch.tensor(found, dtype=torch.float32)
