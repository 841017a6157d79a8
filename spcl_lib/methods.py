"""The methods: each has a supervised term, and some add a consistency term.

    loss = term(s, z) + lambda(epoch) * consistency(f, running averages)

AN, CL, SCL and the idea of EN are from the paper. These are ours: the distance, lambda, the start,
the ramp, and the rule that selects the expected negatives. `losses/registry.py` has the terms of
other papers. Each of these gives three methods, NAME, NAME_cl and NAME_scl; those that see all
labels give one. `losses` has the notation.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spcl_lib.bank import HeatmapBank
from spcl_lib.losses import (
    TERMS,
    Context,
    MethodSettings,
    State,
    Term,
    cell_consistency,
    consistency,
    spatial_consistency,
)
from spcl_lib.pooling import Pooling
from spcl_lib.sparse_bank import SparseHeatmapBank
from spcl_lib.system import ranks
from spcl_lib.system.errors import unknown_name
from spcl_lib.system.shapes import require_tensor
from spcl_lib.views import Views

__all__ = ["METHODS", "PAPER_METHODS", "Method", "MethodSettings", "MethodSpec", "title_of"]


@dataclass(frozen=True)
class MethodSpec:
    """The parts of a method."""

    term: str  # a key of TERMS
    consistency: str  # "", "cl" or "scl"

    @property
    def keeps_averages(self) -> bool:
        """Whether it needs running averages of every training image."""
        return bool(self.consistency) or TERMS[self.term].reads_averages

    @property
    def sees_all_labels(self) -> bool:
        """Whether it sees all labels of the training images, for comparison only."""
        return TERMS[self.term].sees is not None

    def pooling(self, chosen: Pooling) -> Pooling:
        """The pooling of its network: the chosen one, unless its term needs another than "mean"."""
        own = TERMS[self.term].pooling
        return Pooling(own) if own and chosen.kind == "mean" else chosen


# The methods of the paper and its upper bound; the reproduction has a row for each.
PAPER_METHODS = ("an", "cl", "scl", "en", "en_cl", "en_scl", "full")


def _all_methods() -> dict[str, MethodSpec]:
    methods = {"an": MethodSpec("an", ""), "cl": MethodSpec("an", "cl"),
               "scl": MethodSpec("an", "scl")}  # fmt: skip
    for name, term in TERMS.items():
        methods.setdefault(name, MethodSpec(name, ""))
        if term.sees is None and name != "an":
            methods |= {f"{name}_{c}": MethodSpec(name, c) for c in ("cl", "scl")}
    return {name: methods[name] for name in (*PAPER_METHODS, *methods)}


METHODS: dict[str, MethodSpec] = _all_methods()


def title_of(method: str) -> str:
    """The name of a method as people read it: EN + SCL for "en_scl"."""
    if method not in METHODS:
        return method.upper().replace("_", " + ")
    spec = METHODS[method]
    parts = [] if method in ("cl", "scl") else [TERMS[spec.term].title]
    return " + ".join([*parts, *([spec.consistency.upper()] if spec.consistency else [])])


def visible_labels(method: str, full: Tensor, single: Tensor) -> Tensor:
    """The labels (N, C) that a method gets: the single ones, or what its term sees.

    Args:
        method: a key of METHODS.
        full: y (N, C) bool, all labels.
        single: z (N, C) bool.
    """
    sees = TERMS[METHODS[method].term].sees
    return single if sees is None else sees(full, single)


def bytes_of_averages(
    name: str, num_images: int, num_classes: int, settings: MethodSettings
) -> int:
    """Bytes of memory that the running averages of a method take; arguments as in `Method`.

    Raises:
        UserError: the name is unknown.
    """
    if name not in METHODS:
        raise unknown_name("method", name, METHODS)
    spec, per_image = METHODS[name], 0
    if spec.consistency == "scl":
        kept = min(settings.bank_classes or num_classes, num_classes)
        value = getattr(torch, settings.bank_dtype).itemsize
        per_image = kept * value * settings.bank_size**2
    elif spec.keeps_averages:
        per_image = 4 * num_classes
    if TERMS[spec.term].reads_averages:
        per_image += 24 * num_classes  # the measured peak of `expected_negative_threshold`
    return num_images * per_image


class Method(nn.Module):
    """One method in a training: its loss, and its running averages for the training images.

    It is a module: as a part of a model, it is saved and restored with the model's state dict. The
    optimiser takes `[*model.parameters(), *method.parameters()]`.

    Args:
        name: a key of METHODS.
        num_images: N, training images.
        num_classes: C, the classes.
        settings: see MethodSettings.
        seed: seed of the bank's rounding, and of the term's state.
        labels: z (N, C) of the whole training set; terms with state and `bank_classes` need them.
        epochs: length of the whole training; some terms depend on it.
        pooling: pooling of the network; by default the term's, which is the mean for most.
        device: where the running averages are; see HeatmapBank.

    Raises:
        UserError: the name is unknown, or the running averages do not fit.
        ValueError: the term needs the labels, or their shape is not (N, C).

    Several processes: each image belongs to one rank for good (see `ranks.RankSampler`), each
    rank's loss is that of its own batch, and all call `end_epoch` together.

    Example:
        >>> labels = torch.eye(3)[[0, 1, 2, 0]]  # of 4 images
        >>> method = Method("ren_scl", 4, 3, MethodSettings(start=0), labels=labels)
        >>> indices, views = torch.tensor([2, 0]), Views.sample(2)
        >>> maps = torch.zeros(2, 3, 7, 7)  # of a network that has seen views.crop(images, size)
        >>> loss = method.loss(maps, labels[indices], indices, views, epoch=0)
        >>> method.update(maps, indices, views, epoch=0)
        >>> method.end_epoch(0)
    """

    def __init__(
        self,
        name: str,
        num_images: int,
        num_classes: int,
        settings: MethodSettings | None = None,
        seed: int = 0,
        labels: Tensor | None = None,
        epochs: int = 1,
        pooling: Pooling | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__()
        self.name, self.epochs, self.settings = name, epochs, settings or MethodSettings()
        if name not in METHODS:
            raise unknown_name("method", name, METHODS)
        self.spec, self.num_classes = METHODS[name], num_classes
        self.pooling = pooling or self.spec.pooling(Pooling())
        self.ended = self.steps = 0  # epochs that `end_epoch` has ended, calls of `update`
        self.grid = 1  # cells along a side of the last maps
        if labels is not None:
            require_tensor("labels", labels, (num_images, num_classes))
        elif self._row.has_state or (self.spatial and self.settings.bank_classes):
            raise ValueError(f"method '{name}' needs to know the labels: give labels, z (N, C)")
        self.term = self._row.loss
        if self._row.has_state:
            self.term = self._row.loss(labels, self.settings, epochs, seed)
        self.bank = self._make_bank(num_images, labels, device, seed)
        if self._row.reads_averages and self.spatial:  # the view in which an image was seen last
            whole = Views.whole(num_images)
            self.register_buffer("boxes", whole.boxes)
            self.register_buffer("flipped", whole.flipped)

    @property
    def _row(self) -> Term:
        return TERMS[self.spec.term]

    @property
    def spatial(self) -> bool:
        """Whether the running averages are heatmaps (SCL) or one value per class (CL, EN, GPR)."""
        return self.spec.consistency == "scl"

    def _make_bank(
        self, num_images: int, labels: Tensor | None, device: torch.device | str, seed: int
    ) -> HeatmapBank | None:
        shape, momentum = (num_images, self.num_classes), self.settings.momentum
        if not self.spec.keeps_averages:
            return None
        if not self.spatial:  # one value per class: uint8 would be too coarse for many classes
            return HeatmapBank(*shape, 1, momentum, torch.float32, device, seed)
        size, dtype = self.settings.bank_size, getattr(torch, self.settings.bank_dtype)
        if not self.settings.bank_classes:
            return HeatmapBank(*shape, size, momentum, dtype, device, seed)
        kept = min(self.settings.bank_classes, self.num_classes)
        return SparseHeatmapBank(
            *shape, kept, labels.to(torch.uint8).argmax(1),
            size=size, momentum=momentum, dtype=dtype, device=device, seed=seed,
        )  # fmt: skip

    def loss(
        self, maps: Tensor, labels: Tensor, indices: Tensor, views: Views, epoch: float
    ) -> Tensor:
        """The loss of a batch; it changes no state.

        Args:
            maps: f (B, C, G, G) score-map logits.
            labels: z (B, C), or what the term sees; see `visible_labels`.
            indices: (B,) int64 image numbers.
            views: B views through which the network saw the images.
            epoch: epochs done, from 0; the fraction of the current one may be added.

        Raises:
            ValueError: a shape or type is another one.
            RuntimeError: `update` or `end_epoch` was not called.
        """
        maps = self._check(maps, indices, views)
        require_tensor("labels", labels, maps.shape[:2])
        self._require_calls(epoch)
        logits = self.pooling(maps)
        active = self.bank is not None and epoch >= self.settings.start
        target, seen = self._read(indices, views, maps.shape[-1]) if active else (None, None)
        presence = None
        if active and self._row.reads_averages and self.ended:
            presence = self.pooling.presence(target, seen)
        total = self.term(logits, labels, self._context(indices, epoch, presence))
        if not (active and self.spec.consistency):
            return total
        return total + self._weight(epoch) * self._agreement(maps, logits, target, seen)

    def _agreement(self, maps: Tensor, logits: Tensor, target: Tensor, seen: Tensor) -> Tensor:
        """The consistency term; target and seen as `HeatmapBank.read` gives them."""
        competes, kind = self.pooling.competes, self.settings.distance
        if self.spatial and competes:
            return cell_consistency(maps / self.pooling.temperature, target, seen)
        if self.spatial:
            return spatial_consistency(maps, target, seen, kind)
        # A new image is compared with its own prediction, not with 0.
        own = torch.sigmoid(logits.detach())[..., None, None]
        average = torch.where(seen > 0, target, own)
        if competes:
            return cell_consistency(F.logsigmoid(logits)[..., None, None], average, seen)
        return consistency(logits, average[:, :, 0, 0], kind)

    @torch.no_grad()
    def update(self, maps: Tensor, indices: Tensor, views: Views, epoch: float) -> None:
        """Updates the state after a step, with the maps that the step predicted.

        The averages begin one epoch before the loss uses them. An earlier begin would keep the
        predictions of an untrained layer in the averages for many epochs.
        """
        maps = self._check(maps, indices, views).detach()
        ranks.require_own(indices)
        logits = self.pooling(maps)
        self.steps += 1
        if isinstance(self.term, State):
            self.term.observe(logits, self._context(indices, epoch))
        if self.bank is None or epoch < self.settings.start - 1:
            return
        if not self.spatial:
            whole = Views.whole(len(indices), maps.device)
            self.bank.update(indices, whole, logits.sigmoid()[:, :, None, None])
            return
        self.bank.update(indices, views, self.pooling.heat(maps))
        if self._row.reads_averages:
            here = indices.to(self.boxes.device)
            self.boxes[here] = views.boxes.to(self.boxes)
            self.flipped[here] = views.flipped.to(here.device)
            self.grid = maps.shape[-1]

    @torch.no_grad()
    def end_epoch(self, epoch: int) -> None:
        """Ends an epoch: chooses the threshold of EN, class priors, pseudo-labels.

        Args:
            epoch: number of the epoch that ended, from 0.
        """
        self.ended = epoch + 1
        if not isinstance(self.term, State):
            return
        presence, labels = None, self.term.labels
        if self._row.reads_averages and self.ended >= self.settings.start:
            presence, known = (ranks.merge(part) for part in self._presence())
            presence, labels = presence[known], labels.to(known.device)[known]
        self.term.end_epoch(self.ended, presence if len(labels) else None, labels)

    def _presence(self) -> tuple[Tensor, Tensor]:
        """(N, C) presence of every class in the last view of every image, and (N,) who has one.

        The loss compares the presence in views with the threshold. So the threshold is chosen on
        the presence in views, too.
        """
        few = 1 + 2**18 // (self.num_classes * self.bank.size**2)  # they stay in the CPU's cache
        presence, known = [], []
        for chunk in torch.arange(self.bank.num_images).split(few):
            views = Views(self.boxes[chunk], self.flipped[chunk]) if self.spatial else None
            target, seen = self._read(chunk, views or Views.whole(len(chunk)), self.grid)
            presence.append(self.pooling.presence(target, seen))
            known.append(seen.flatten(1).amax(1) > 0)
        return torch.cat(presence), torch.cat(known)

    def get_extra_state(self) -> dict[str, Any]:
        """The counters, for `state_dict`."""
        return {"ended": self.ended, "steps": self.steps, "grid": self.grid}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Restores the counters."""
        self.ended, self.steps, self.grid = state["ended"], state["steps"], state["grid"]

    def _check(self, maps: Tensor, indices: Tensor, views: Views) -> Tensor:
        """The maps in float32 or float64."""
        require_tensor("maps", maps, ("B", self.num_classes, "H", "W"), "float")
        require_tensor("indices", indices, (len(maps),), "int64")
        if len(views) != len(maps):
            raise ValueError(f"views must be {len(maps)}, one per image; got {len(views)}")
        return maps if maps.dtype == torch.float64 else maps.float()

    def _require_calls(self, epoch: float) -> None:
        """Without these calls the method would silently be another one."""
        if int(epoch) == 0 or (self.bank is None and not self._row.has_state):
            return
        if self.steps == 0:
            raise RuntimeError(f"epoch {int(epoch)} begins, and method.update was never called; "
                               "call it after every step; epochs count from 0")  # fmt: skip
        if self._row.has_state and self.ended < int(epoch):
            raise RuntimeError(f"epoch {int(epoch)} begins, and method.end_epoch({self.ended}) was "
                               "not called; call it after every epoch, from 0")  # fmt: skip

    def _context(self, indices: Tensor, epoch: float, presence: Tensor | None = None) -> Context:
        return Context(indices, epoch, self.epochs, self.settings, presence)

    def _weight(self, epoch: float) -> float:
        """Lambda of an epoch: its linear ramp in the middle of this epoch."""
        middle = int(epoch) + 0.5 - self.settings.start
        return self.settings.weight * min(1.0, middle / max(self.settings.ramp, 1e-6))

    def _read(self, indices: Tensor, views: Views, grid: int) -> tuple[Tensor, Tensor]:
        if self.spatial:
            return self.bank.read(indices, views, grid)
        return self.bank.read(indices, Views.whole(len(indices), views.boxes.device), 1)
