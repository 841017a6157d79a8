"""The methods: assume negative, consistency, spatial consistency, expected negatives, full labels.

Notation: f score-map logits (B, C, G, G); s = mean of f over the cells; p = sigmoid(s);
m = sigmoid(f); z observed labels, one 1 per image, 0 = unknown; T_v reads a full-image heatmap
through view v. A method adds a supervised term and, some of them, a consistency term:

    loss = supervised(s, z) + lambda(epoch) * consistency(f, running averages)

AN, CL, SCL and the idea of EN are the paper's. Ours: the distance, lambda, warm-up and ramp, and
the rule that selects the expected negatives.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from spcl_lib.bank import HeatmapBank, require_room
from spcl_lib.errors import unknown
from spcl_lib.model import pooled
from spcl_lib.views import Views

_EN_BYTES = 24  # for every label, at the peak of `expected_negative_threshold`; measured
_EPSILON = 1 / 512  # probabilities are kept this far from 0 and 1 before a logit: a step of uint8


# --- supervised terms -----------------------------------------------------------------------------


def assume_negative(logits: Tensor, labels: Tensor) -> Tensor:
    """AN (also Full, with full labels): mean over B * C of BCE(s, z), logits and labels (B, C)."""
    return F.binary_cross_entropy_with_logits(logits, labels.to(logits))


def expected_negative(logits: Tensor, labels: Tensor, possible: Tensor) -> Tensor:
    """EN: BCE over the annotated positive and the expected negatives only.

    Args:
        logits: s (B, C).
        labels: z (B, C).
        possible: (B, C) bool; unknown labels that may be positive and are left out.

    Returns:
        The sum over what is left, divided by B * C: each label weighs what it weighs in AN.
    """
    loss = F.binary_cross_entropy_with_logits(logits, labels.to(logits), reduction="none")
    return loss.masked_fill(possible & ~labels.bool(), 0).mean()


# --- consistency terms ----------------------------------------------------------------------------


def distance(logits: Tensor, target: Tensor, kind: str) -> Tensor:
    """Elementwise distance d between sigmoid(logits) and a probability, same shapes.

    "bce" is the soft binary cross-entropy less its smallest value (the target's entropy): a
    Kullback-Leibler divergence; "l1" and "l2" compare probabilities. The paper's is second-hand L1.
    """
    if kind == "bce":
        # not F.binary_cross_entropy(target, target), which CUDA's autocast refuses
        entropy = torch.special.entr(target) + torch.special.entr(1 - target)
        return F.binary_cross_entropy_with_logits(logits, target, reduction="none") - entropy
    difference = torch.sigmoid(logits) - target
    if kind == "l1":
        return difference.abs()
    if kind == "l2":
        return difference.square()
    raise unknown("distance", kind, DISTANCES)


DISTANCES = ("bce", "l1", "l2")


def consistency(logits: Tensor, average: Tensor, kind: str = "bce") -> Tensor:
    """CL: mean over B * C of d(p, P), P (B, C) the running average of p for each image."""
    return distance(logits, average, kind).mean()


def spatial_consistency(maps: Tensor, target: Tensor, seen: Tensor, kind: str = "bce") -> Tensor:
    """SCL: mean over seen cells of d(m, T_v(H)).

    Args:
        maps: f (B, C, G, G) logits.
        target: T_v(H) (B, C, G, G) in [0, 1].
        seen: (B, 1, G, G) in {0, 1}.
        kind: the distance.
    """
    total = (distance(maps, target, kind) * seen).sum()
    return total / (seen.sum() * maps.shape[1]).clamp(min=1)


# --- methods --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Spec:
    """What a method is made of."""

    supervised: str  # "an", "en" or "full"
    consistency: str  # "", "cl" or "scl"
    says: str

    @property
    def keeps_averages(self) -> bool:
        """Whether it needs running averages of every training image."""
        return bool(self.consistency) or self.supervised == "en"


METHODS: dict[str, Spec] = {
    "an": Spec("an", "", "assume negative: BCE, every unknown label is a negative (baseline)"),
    "cl": Spec("an", "cl", "AN + consistency of image predictions over epochs"),
    "scl": Spec("an", "scl", "AN + spatial consistency with the heatmaps"),
    "en": Spec("en", "", "expected negatives: likely positives are left out of the BCE"),
    "en_cl": Spec("en", "cl", "EN + CL"),
    "en_scl": Spec("en", "scl", "EN + SCL; expected negatives read through the view"),
    "full": Spec("full", "", "BCE with all labels: the upper bound"),
}


@dataclass(frozen=True)
class Settings:
    """Settings of the methods, all ours; the defaults were chosen on validation data.

    Attributes:
        weight: lambda, weight of the consistency term after the ramp.
        start: epochs of plain AN before consistency and EN set in: early predictions are noise.
        ramp: epochs over which lambda grows from 0, linearly.
        distance: d, one of "bce", "l1", "l2".
        momentum: mu of the running averages.
        bank_size: W, cells along each side of a heatmap.
        bank_dtype: "uint8", "float16" or "float32". uint8's noise is below 1/255 up to a momentum
            of 0.9 and above it from 0.95 on; see HeatmapBank.
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


def check_room(name: str, num_images: int, num_classes: int, settings: Settings) -> None:
    """Refuses a method whose running averages do not fit into memory; arguments as of Method.

    A checkpoint holds them a second time, and EN ranks all labels of all images at once.

    Raises:
        UserError: they do not fit, or the name is unknown.
    """
    if name not in METHODS:
        raise unknown("method", name, METHODS)
    spec = METHODS[name]
    if spec.keeps_averages:
        size = settings.bank_size if spec.consistency == "scl" else 1
        per_label = _EN_BYTES if spec.supervised == "en" else 0
        dtype = getattr(torch, settings.bank_dtype)
        require_room(num_images, num_classes, size, dtype, per_label=per_label, copies=2)


class Method:
    """One method at work: its loss, and its running averages over the training images.

    Args:
        name: a key of METHODS.
        num_images: N, training images.
        num_classes: C.
        settings: see Settings.
        seed: seed of the bank's rounding.

    Raises:
        UserError: the name is unknown, or the running averages do not fit into memory.
    """

    def __init__(
        self,
        name: str,
        num_images: int,
        num_classes: int,
        settings: Settings | None = None,
        seed: int = 0,
    ) -> None:
        check_room(name, num_images, num_classes, settings or Settings())
        self.name, self.spec, self.settings = name, METHODS[name], settings or Settings()
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
        if self.spec.supervised == "en" and epoch >= self.settings.start:
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
        logits = pooled(maps)
        if epoch < self.settings.start or self.bank is None:
            return assume_negative(logits, labels)
        target, seen = self._read(indices, views, maps.shape[-1])
        if self.spec.supervised == "en":
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

        They begin one epoch before they are used: what an untrained layer says of an image would
        otherwise stay in its average for many epochs.
        """
        if self.bank is None or epoch < self.settings.start - 1:
            return
        if self.spatial:
            self.bank.update(indices, views, torch.sigmoid(maps.float()))
        else:
            whole = Views.whole(len(indices), maps.device)
            self.bank.update(indices, whole, torch.sigmoid(pooled(maps.float()))[:, :, None, None])

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


def presence_in(heatmaps: Tensor, seen: Tensor | None = None) -> Tensor:
    """Presence of every class that heatmaps imply: pooled as the model pools, over logits.

    Args:
        heatmaps: (B, C, G, G) in [0, 1].
        seen: (B, 1, G, G) in {0, 1}, the cells that count; None for all.

    Returns:
        (B, C) in [0, 1]; 0 where no cell has been seen.
    """
    logits = torch.logit(heatmaps, eps=_EPSILON)
    if seen is None:
        return torch.sigmoid(pooled(logits))
    cells = seen.sum((2, 3))  # (B, 1)
    presence = torch.sigmoid((logits * seen).sum((2, 3)) / cells.clamp(min=1))
    return presence.where(cells > 0, 0)


def expected_negative_threshold(presence: Tensor, labels: Tensor, k: float) -> Tensor:
    """Presence from which an unknown label is taken as a possible positive (our rule for EN).

    A class's presence is compared with its mean over the images that are annotated with it, since
    classes differ in how sure the network is of them (Elkan and Noto, 2008). The N * (k - 1)
    unknown labels that rank highest are possible positives: k per image with the annotated one.
    Nothing can be said of a class that no image is annotated with: it stays negative.

    Args:
        presence: (N, C) running averages.
        labels: z (N, C).
        k: expected positives per image.

    Returns:
        (C,) thresholds, the least presence that makes a class possible; infinite where nothing may
        be positive.
    """
    labels = labels.bool()
    annotated = labels.sum(0)
    scale = (presence * labels).sum(0) / annotated.clamp(min=1)
    certain = labels | (annotated == 0)
    ratio = (presence / scale.clamp(min=1e-6)).masked_fill(certain, -math.inf)
    count = min(round(len(labels) * (k - 1)), int((~certain).sum()))
    if count <= 0:
        return torch.full_like(scale, math.inf)
    # A hair lower: rounding must not lose the label that sets the threshold.
    least = ratio.flatten().topk(count).values[-1] * scale * (1 - 1e-6)
    return least.masked_fill(annotated == 0, math.inf)
