"""Predictor: a trained classifier that takes images in any form, and the rule for its labels."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from spcl_lib.config import RunConfig
from spcl_lib.data.images import squares
from spcl_lib.evaluate import predict_maps
from spcl_lib.pooling import MEAN_POOLING, Pooling
from spcl_lib.runs.network import load_network
from spcl_lib.runs.store import Run
from spcl_lib.system.errors import UserError
from spcl_lib.system.machine import choose_device
from spcl_lib.system.shapes import require_size, require_tensor

BATCH = 64
_NEARLY_ALL = 0.95  # share of the images
_LEAST_IMAGES = 20  # of fewer images, a class may well be in all or in none


@dataclass(frozen=True)
class LabelRule:
    """Says which scores are labels: those from a threshold, the highest, or both.

    A network that was trained on one label per image gives low probabilities, so few labels reach
    0.5.
    """

    threshold: float | None  # lowest score of a label
    top: int | None = None  # most labels of an image

    def __post_init__(self) -> None:
        if self.threshold is not None and not 0 <= self.threshold <= 1:
            raise UserError(f"a threshold must be in 0..1; got {self.threshold}")

    def choose(self, scores: Tensor) -> Tensor:
        """(B, C) bool for scores (B, C): True where the class is a label of the image."""
        chosen = scores >= (self.threshold or 0)
        if self.top is not None and self.top < scores.shape[1]:
            highest = torch.zeros_like(chosen)
            chosen &= highest.scatter_(1, scores.topk(self.top, 1).indices, True)
        return chosen

    def names(self, scores: Tensor, classes: Sequence[str]) -> list[list[str]]:
        """The labels of every image, in the order of the classes; with `top`, the highest first."""
        ranks = self.choose(scores) * (1.0 if self.top is None else 1 + scores)  # 0: no label
        order = ranks.argsort(dim=1, descending=True, stable=True)  # (B, C)
        pairs = zip(order.tolist(), ranks.count_nonzero(1), strict=True)
        return [[classes[c] for c in numbers[:count]] for numbers, count in pairs]

    def __str__(self) -> str:
        scores = "scores" if self.top is None else f"the {self.top} highest scores"
        return scores + ("" if self.threshold is None else f" from {self.threshold:.3f}")


class Predictor:
    """A trained classifier, ready for images; all results are on the CPU.

    Images have any form that `data.images.squares` takes: a file, a PIL image, an array (H, W, 3),
    a tensor (3, H, W) or (B, 3, H, W), a list of these, or a DataLoader. Pixels are uint8, or
    floats in 0..1 that are not normalised.

    Args:
        model: gives score maps (B, C, G, G) of images (B, 3, size, size) that are normalised as
            ImageNet's. The mean pools them, if the model has no attribute `pooling`.
        classes: C names.
        size: side of the squares that the model gets, in pixels.
        threshold: least score of a label; the attribute `rule` can say more.
        config: configuration of the run; None for a model of your own loop.
        amp: "off" is float32. In bfloat16, "auto" where the machine has it, probabilities differ by
            up to 0.06.

    Example:
        >>> predictor = Predictor.load("results/folder-cpu-1a2b3c4d/en_scl-seed0")
        >>> scores = predictor(["new/1.jpg", "new/2.jpg"])  # (2, C) in [0, 1]
        >>> predictor.labels("new/1.jpg")
        [['cat', 'dog']]
    """

    def __init__(
        self,
        model: nn.Module,
        classes: Sequence[str],
        size: int,
        threshold: float | None = None,
        config: RunConfig | None = None,
        amp: str = "off",
    ) -> None:
        require_size(size)
        self.model, self.classes, self.size = model, tuple(classes), size
        self.config, self.amp = config, amp
        self.rule = None if threshold is None else LabelRule(threshold)

    @classmethod
    def load(cls, run: str | Path, size: int | None = None, amp: str = "off") -> Self:
        """The network of a finished run (see `Run.find`), on the GPU if there is one.

        Only its metrics.json and weights.safetensors are needed. A larger size than that of the
        run's evaluation is slower and often better; the run's threshold does not fit it.
        """
        found = Run.find(run)
        config, metrics = found.config, found.finished()
        model = load_network(found.folder, config, len(metrics["classes"]))
        model.to(choose_device(), memory_format=torch.channels_last)
        size = size or config.eval_side
        return cls(model, metrics["classes"], size, metrics.get("threshold"), config, amp)

    @property
    def square_side(self) -> int:
        """Side of the squares that images become first, as in the run, before they get `size`."""
        smaller = self.config is not None and self.size <= self.config.eval_side
        return self.config.image_side if smaller else self.size

    @property
    def pooling(self) -> Pooling:
        """The pooling of the score maps: the model's, if it is one of ours, or the mean."""
        own = getattr(self.model, "pooling", None)
        return own if isinstance(own, Pooling) else MEAN_POOLING

    def score_maps(self, images: Any) -> Tensor:
        """Score-map logits f (B, C, G, G) of whole images."""
        return torch.cat(list(self._maps(images)))

    def heatmaps(self, images: Any) -> Tensor:
        """The probability of every class in every cell, (B, C, G, G)."""
        return self.pooling.heat(self.score_maps(images))

    def __call__(self, images: Any) -> Tensor:
        """Scores (B, C) in [0, 1] of whole images; B is 1 for one image."""
        return torch.cat([self.pooling(maps) for maps in self._maps(images)]).sigmoid()

    def labels(self, images: Any) -> list[list[str]]:
        """The labels of every image, as `rule` says."""
        return self.require_rule().names(self(images), self.classes)

    def require_rule(self) -> LabelRule:
        """The rule; without one, a UserError that says how to give one."""
        if self.rule is None:
            raise UserError("no threshold is known; give one: --threshold 0.5, or predictor.rule")
        return self.rule

    def _maps(self, images: Any) -> Iterator[Tensor]:
        for batch in squares(images, self.square_side, BATCH):
            with torch.backends.cudnn.flags(enabled=True, allow_tf32=self.amp != "off"):
                maps = predict_maps(self.model, batch, self.size, self.amp)
            require_tensor("the model's maps", maps, ("B", len(self.classes), "H", "W"))
            if not bool(maps.isfinite().all()):
                raise UserError("the network gives scores that are no numbers; train the run again")
            yield maps


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
