"""The methods: each is a supervised term, with or without a consistency term.

    loss = term(s, z) + lambda(epoch) * consistency(f, running averages)

AN, CL, SCL and the idea of EN are the paper's. Ours: the distance, lambda, the start, the ramp, and
the rule that selects the expected negatives. See `losses` for the notation.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from spcl_lib.bank import HeatmapBank
from spcl_lib.losses import (
    assume_negative,
    consistency,
    expected_negative,
    expected_negative_threshold,
    spatial_consistency,
)
from spcl_lib.model import pool, presence_in
from spcl_lib.system.errors import unknown_name
from spcl_lib.system.memory import require_memory_for_averages
from spcl_lib.views import Views

_EN_BYTES = 24  # for every label, at the peak of `expected_negative_threshold`; measured


@dataclass(frozen=True)
class MethodSpec:
    """What a method is made of."""

    term: str  # "an", "en" or "full"
    consistency: str  # "", "cl" or "scl"
    description: str

    @property
    def keeps_averages(self) -> bool:
        """Whether it needs running averages of every training image."""
        return bool(self.consistency) or self.term == "en"


METHODS: dict[str, MethodSpec] = {
    "an": MethodSpec(
        "an", "", "assume negative: BCE, every unknown label is a negative (baseline)"
    ),
    "cl": MethodSpec("an", "cl", "AN + consistency of image predictions over epochs"),
    "scl": MethodSpec("an", "scl", "AN + spatial consistency with the heatmaps"),
    "en": MethodSpec("en", "", "expected negatives: likely positives are left out of the BCE"),
    "en_cl": MethodSpec("en", "cl", "EN + CL"),
    "en_scl": MethodSpec("en", "scl", "EN + SCL; expected negatives read through the view"),
    "full": MethodSpec("full", "", "BCE with all labels: the upper bound"),
}


def title_of(method: str) -> str:
    """A method's name for people: "en_scl" is EN + SCL."""
    return "Full" if method == "full" else method.upper().replace("_", " + ")


@dataclass(frozen=True)
class MethodSettings:
    """Settings of the methods, all ours; the defaults were chosen on validation data.

    Attributes:
        weight: lambda, weight of the consistency term after the ramp.
        start: epochs of plain AN before consistency and EN begin: early predictions are noise.
        ramp: epochs over which lambda grows from 0, linearly.
        distance: d, one of "bce", "l1", "l2".
        momentum: mu of the running averages.
        bank_size: W, cells along each side of a heatmap.
        bank_dtype: "uint8", "float16" or "float32". From a momentum of 0.95 on, uint8's noise is
            above 1/255: take another; see HeatmapBank.
        expected_positives: k, positives per image that EN expects; the annotated one counts.
    """

    weight: float = 1.0
    start: int = 2
    ramp: float = 2.0
    distance: str = "bce"
    momentum: float = 0.8
    bank_size: int = 16
    bank_dtype: str = "uint8"
    expected_positives: float = 2.0


def require_memory(name: str, num_images: int, num_classes: int, settings: MethodSettings) -> None:
    """Refuses a method whose running averages do not fit into memory; arguments as of Method.

    A checkpoint holds the averages a second time, and EN ranks all labels of all images at once.

    Raises:
        UserError: they do not fit, or the name is unknown.
    """
    if name not in METHODS:
        raise unknown_name("method", name, METHODS)
    spec = METHODS[name]
    if spec.keeps_averages:
        size = settings.bank_size if spec.consistency == "scl" else 1
        per_label = _EN_BYTES if spec.term == "en" else 0
        dtype = getattr(torch, settings.bank_dtype)
        require_memory_for_averages(
            num_images, num_classes, size, dtype, per_label=per_label, copies=2
        )


class Method:
    """One method at work: its loss, and its running averages over the training images.

    Args:
        name: a key of METHODS.
        num_images: N, training images.
        num_classes: C.
        settings: see MethodSettings.
        seed: seed of the bank's rounding.

    Raises:
        UserError: the name is unknown, or the running averages do not fit into memory.
    """

    def __init__(
        self,
        name: str,
        num_images: int,
        num_classes: int,
        settings: MethodSettings | None = None,
        seed: int = 0,
    ) -> None:
        self.settings = settings or MethodSettings()
        require_memory(name, num_images, num_classes, self.settings)
        self.name, self.spec = name, METHODS[name]
        self.bank: HeatmapBank | None = None
        if self.spec.keeps_averages:
            size = self.settings.bank_size if self.spatial else 1
            dtype = getattr(torch, self.settings.bank_dtype)
            self.bank = HeatmapBank(
                num_images, num_classes, size, self.settings.momentum, dtype, seed=seed
            )
        self.threshold = torch.full((num_classes,), math.inf)  # EN: from it on, a class is possible

    @property
    def spatial(self) -> bool:
        """Whether the running averages are heatmaps (SCL) or one value per class (CL, EN)."""
        return self.spec.consistency == "scl"

    def begin_epoch(self, epoch: int, labels: Tensor) -> None:
        """Selects EN's threshold for this epoch from the running averages.

        Args:
            epoch: epochs done.
            labels: z (N, C) of the whole training set.
        """
        if self.spec.term == "en" and epoch >= self.settings.start:
            presence = self._presence_of_all()
            self.threshold = expected_negative_threshold(
                presence, labels, self.settings.expected_positives
            )

    def loss(
        self, maps: Tensor, labels: Tensor, indices: Tensor, views: Views, epoch: float
    ) -> Tensor:
        """The loss of a batch.

        Args:
            maps: f (B, C, G, G) score-map logits.
            labels: z (B, C); for the method "full", y.
            indices: (B,) int64 image numbers.
            views: B views that the images were shown through.
            epoch: epochs done, with the fraction of the current one.
        """
        logits = pool(maps)
        if epoch < self.settings.start or self.bank is None:
            return assume_negative(logits, labels)
        target, seen = self._read(indices, views, maps.shape[-1])
        if self.spec.term == "en":
            possible = presence_in(target, seen) >= self.threshold.to(logits.device)
            total = expected_negative(logits, labels, possible)
        else:
            total = assume_negative(logits, labels)
        weight = self._weight(epoch)
        if self.spec.consistency == "cl":  # an image that is new agrees with itself: no pull to 0
            average = torch.where(seen > 0, target, torch.sigmoid(logits.detach())[..., None, None])
            average = average[:, :, 0, 0]
            total = total + weight * consistency(logits, average, self.settings.distance)
        if self.spec.consistency == "scl":
            total = total + weight * spatial_consistency(maps, target, seen, self.settings.distance)
        return total

    @torch.no_grad()
    def update(self, maps: Tensor, indices: Tensor, views: Views, epoch: float) -> None:
        """Updates the running averages after a step, from the maps that the step predicted.

        The averages begin one epoch before they are used. What an untrained layer says of an image
        would otherwise stay in its average for many epochs.
        """
        if self.bank is None or epoch < self.settings.start - 1:
            return
        if self.spatial:
            self.bank.update(indices, views, torch.sigmoid(maps.float()))
        else:
            whole = Views.whole(len(indices), maps.device)
            self.bank.update(indices, whole, torch.sigmoid(pool(maps.float()))[:, :, None, None])

    def state_dict(self) -> dict[str, object]:
        """Everything per image that changes during training."""
        bank = None if self.bank is None else self.bank.state_dict()
        return {"bank": bank, "threshold": self.threshold.clone()}

    def load_state_dict(self, state: dict[str, object]) -> None:
        """Restores what `state_dict` gave."""
        self.threshold.copy_(state["threshold"])
        if self.bank is not None:
            self.bank.load_state_dict(state["bank"])

    def _weight(self, epoch: float) -> float:
        progress = (epoch - self.settings.start) / max(self.settings.ramp, 1e-6)
        return self.settings.weight * min(1.0, progress)

    def _read(self, indices: Tensor, views: Views, grid: int) -> tuple[Tensor, Tensor]:
        if self.spatial:
            return self.bank.read(indices, views, grid)
        return self.bank.read(indices, Views.whole(len(indices), views.boxes.device), 1)

    def _presence_of_all(self) -> Tensor:
        """(N, C) presence of every class in every whole image, by its running averages."""
        size = self.bank.size
        few = 2**26 // (self.bank.num_classes * size**2)  # 1,000 classes take much memory an image
        chunks = torch.arange(self.bank.num_images).split(min(1024, max(1, few)))
        return torch.cat(
            [presence_in(*self.bank.read(c, Views.whole(len(c)), size)) for c in chunks]
        )
