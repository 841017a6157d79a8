"""The methods: each has a supervised term, and some add a consistency term.

    loss = term(s, z) + lambda(epoch) * consistency(f, running averages)

AN, CL, SCL and the idea of EN are from the paper. These are ours: the distance, lambda, the start,
the ramp, and the rule that selects the expected negatives. Each term of `losses/registry.py` gives
three methods, NAME, NAME_cl and NAME_scl; one that sees all labels gives one.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spcl_lib.bank import HeatmapBank
from spcl_lib.losses.consistency import cell_consistency, spatial_consistency
from spcl_lib.losses.registry import TERMS, Term
from spcl_lib.losses.settings import MethodSettings
from spcl_lib.losses.state import Context
from spcl_lib.pooling import Pooling
from spcl_lib.sparse_bank import SparseHeatmapBank
from spcl_lib.system import ranks
from spcl_lib.system.errors import UserError, unknown_name
from spcl_lib.system.shapes import require_tensor
from spcl_lib.views import Views


@dataclass(frozen=True)
class MethodSpec:
    """The parts of a method."""

    term: str  # a key of TERMS
    consistency: str  # "", "cl" or "scl"

    @property
    def row(self) -> Term:
        """Its supervised term."""
        return TERMS[self.term]

    def pooling(self, chosen: Pooling) -> Pooling:
        """The pooling of its network: the chosen one, unless its term needs another than "mean"."""
        own = self.row.pooling
        if not own or chosen.competes:
            return chosen
        if chosen.kind != "mean":
            raise UserError(f"{self.row.title} needs a pooling where classes compete, as {own}")
        return Pooling(own)

    def bank(
        self, shape: tuple[int, int], own: MethodSettings, annotated: Tensor | None, **options: Any
    ) -> HeatmapBank | None:
        """Its running averages of (N, C); None if it needs none. See SparseHeatmapBank."""
        if not (self.consistency or self.row.reads_averages):
            return None
        if self.consistency != "scl":  # one value per class: uint8 would be too coarse
            return HeatmapBank(*shape, 1, own.momentum, torch.float32, **options)
        options |= {"momentum": own.momentum, "dtype": getattr(torch, own.bank_dtype)}
        if not own.bank_classes:
            return HeatmapBank(*shape, own.bank_size, **options)
        kept = min(own.bank_classes, shape[1])
        return SparseHeatmapBank(*shape, kept, annotated, size=own.bank_size, **options)


# The methods of the paper and its upper bound; the reproduction has a row for each.
PAPER_METHODS = ("an", "cl", "scl", "en", "en_cl", "en_scl", "full")


def _all_methods() -> dict[str, MethodSpec]:
    methods = {"cl": MethodSpec("an", "cl"), "scl": MethodSpec("an", "scl")}
    for name, term in TERMS.items():
        methods[name] = MethodSpec(name, "")
        if term.sees is None and name != "an":
            methods |= {f"{name}_{c}": MethodSpec(name, c) for c in ("cl", "scl")}
    return {name: methods[name] for name in (*PAPER_METHODS, *methods)}


METHODS: dict[str, MethodSpec] = _all_methods()


def title_of(method: str) -> str:
    """The name of a method as people read it: EN + SCL for "en_scl"."""
    if method in ("cl", "scl") or method not in METHODS:
        return method.upper().replace("_", " + ")
    spec = METHODS[method]
    return spec.row.title + (f" + {spec.consistency.upper()}" if spec.consistency else "")


def visible_labels(method: str, full: Tensor, single: Tensor) -> Tensor:
    """The labels that a method gets of all labels y and single labels z, each (N, C) bool."""
    sees = METHODS[method].row.sees
    return single if sees is None else sees(full, single)


def bytes_of_averages(
    name: str, num_images: int, num_classes: int, settings: MethodSettings
) -> int:
    """Bytes of memory that a method's running averages take, and its state at its peak."""
    spec, nobody = METHODS[name], torch.zeros(num_images, device="meta")
    bank = spec.bank((num_images, num_classes), settings, nobody, device="meta")
    size = sum(table.nbytes for table in bank.buffers()) if bank else 0
    # The measured peak of `expected_negative_threshold`.
    return size + (24 * num_images * num_classes if spec.row.has_state else 0)


class Method(nn.Module):
    """One method in a training: its loss, and its running averages for the training images.

    As a part of a model, it is saved and restored with the model's state dict. The optimiser takes
    `[*model.parameters(), *method.parameters()]`. With several processes, see `RankSampler`.

    Args:
        name: a key of METHODS.
        num_images: N, training images.
        num_classes: C, the classes.
        settings: see MethodSettings.
        seed: of the bank's rounding, and of the term's state.
        labels: z (N, C) of the whole training set; terms with state and `bank_classes` need them.
        epochs: length of the whole training, for the losses that depend on it: GR, GPR, APL.
        pooling: that of the network; by default the term's, which is the mean for most.
        device: where the running averages are.

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
        epochs: int = 0,
        pooling: Pooling | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__()
        if name not in METHODS:
            raise unknown_name("method", name, METHODS)
        self.spec, self.num_classes, self.epochs = METHODS[name], num_classes, epochs
        self.settings, self.term = settings or MethodSettings(), self.spec.row.loss
        self.pooling = pooling or self.spec.pooling(Pooling())
        self.spatial = self.spec.consistency == "scl"  # heatmaps, not one value per class
        has_state, shape = self.spec.row.has_state, (num_images, num_classes)
        if labels is not None:
            require_tensor("labels", labels, shape)
            if self.spec.row.sees is None and not ((labels == 0) | (labels == 1)).all():
                raise ValueError("labels must be 0, for unknown, or 1")
        elif has_state or (self.spatial and self.settings.bank_classes):
            raise ValueError(f"method '{name}' needs to know the labels: give labels, z (N, C)")
        if self.spec.row.scheduled and not epochs:
            raise ValueError(f"method '{name}' needs the length of the training: give epochs")
        if has_state:
            self.term = self.term(labels, self.settings, epochs, seed)
        annotated = None if labels is None else labels.to(torch.uint8).argmax(1)
        self.bank = self.spec.bank(shape, self.settings, annotated, device=device, seed=seed)
        if self.spec.row.reads_averages:  # in the last view of an image; -1: there was none
            self.register_buffer("presence", torch.full(shape, -1.0, device=device))
        for counter in ("steps", "ended"):  # calls of `update`; epochs that `end_epoch` has ended
            self.register_buffer(counter, torch.zeros((), dtype=torch.int64))
        self.register_buffer("owner", torch.full((), -1), persistent=False)  # see ranks.require_own

    def loss(
        self, maps: Tensor, labels: Tensor, indices: Tensor, views: Views, epoch: float
    ) -> Tensor:
        """The loss of a batch; it changes no state.

        The network gave score-map logits f (B, C, G, G) of these views of the images (B,) int64.
        Labels are z (B, C), or what the term sees; see `visible_labels`. `epoch` is the number of
        epochs done, from 0; the fraction of the current one may be added.
        """
        maps = self._check(maps, indices, views)
        require_tensor("labels", labels, maps.shape[:2])
        self._require_calls(int(epoch))
        logits, presence = self.pooling(maps), None
        active = self.bank is not None and epoch >= self.settings.start
        if active:
            cells, views = self._cells(maps, logits, views)
            target, seen = self.bank.read(indices, views, cells.shape[-1])
            if self.spec.row.reads_averages and self.ended:
                presence = self.pooling.presence(target, seen)
        context = Context(indices, epoch, self.epochs, self.settings, presence)
        total = self.term(logits, labels, context)
        if active and self.spec.consistency:
            total = total + self._weight(epoch) * self._agreement(cells, target, seen)
        return total

    def _cells(self, maps: Tensor, logits: Tensor, views: Views) -> tuple[Tensor, Views]:
        """The logits to average, and their views; without heatmaps one cell, the whole image."""
        if self.spatial:
            return maps, views
        if self.pooling.competes:
            logits = self.pooling.temperature * F.logsigmoid(logits)  # its softmax is p / sum(p)
        return logits[..., None, None], Views.whole(len(views), maps.device)

    def _agreement(self, cells: Tensor, target: Tensor, seen: Tensor) -> Tensor:
        """The consistency term; target and seen as `HeatmapBank.read` gives them."""
        if self.pooling.competes:
            return cell_consistency(cells / self.pooling.temperature, target, seen)
        return spatial_consistency(cells, target, seen, self.settings.distance)

    @torch.no_grad()
    def update(self, maps: Tensor, indices: Tensor, views: Views, epoch: float) -> None:
        """Updates the state after a step, with the maps that the step predicted."""
        maps = self._check(maps, indices, views).detach()
        ranks.require_own(indices, self.owner)
        logits = self.pooling(maps)
        self.steps += 1
        if self.spec.row.has_state:
            self.term.observe(logits, Context(indices, epoch, self.epochs, self.settings))
        if self.bank is None or epoch < self.settings.start - 1:  # noise; `start` is the next epoch
            return
        cells, views = self._cells(maps, logits, views)
        self.bank.update(indices, views, self.pooling.heat(cells))
        if self.spec.row.reads_averages:
            read = self.bank.read(indices, views, cells.shape[-1])
            presence = self.pooling.presence(*read)
            self.presence[indices.to(self.presence.device)] = presence.to(self.presence)

    @torch.no_grad()
    def end_epoch(self, epoch: int) -> None:
        """Ends the epoch of this number, from 0: chooses EN's threshold, priors, pseudo-labels."""
        self.ended.fill_(epoch + 1)
        if not self.spec.row.has_state:
            return
        presence, labels = None, self.term.labels
        if self.spec.row.reads_averages:  # in views, because the loss compares that in views
            presence = ranks.merge(self.presence)
            known = presence[:, 0] >= 0
            presence, labels = presence[known], labels.to(known.device)[known]
        self.term.end_epoch(epoch + 1, presence if len(labels) else None, labels)

    def _check(self, maps: Tensor, indices: Tensor, views: Views) -> Tensor:
        """The maps in float32 or float64."""
        sides = "GG" if self.spatial else "HW"
        require_tensor("maps", maps, ("B", self.num_classes, *sides), "float")
        require_tensor("indices", indices, (len(maps),), "int64")
        if len(views) != len(maps):
            raise ValueError(f"views must be {len(maps)}, one per image; got {len(views)}")
        return maps if maps.dtype == torch.float64 else maps.float()

    def _require_calls(self, epoch: int) -> None:
        """Without these calls the method would silently be another one."""
        has_state = self.spec.row.has_state
        if epoch and not self.steps and (self.bank or has_state):
            raise RuntimeError(f"epoch {epoch}: method.update was never called after a step")
        if has_state and self.ended < epoch:
            raise RuntimeError(f"epoch {epoch}: method.end_epoch({self.ended}) was not called")

    def _weight(self, epoch: float) -> float:
        """Lambda of an epoch: its linear ramp in the middle of this epoch."""
        middle = int(epoch) + 0.5 - self.settings.start
        return self.settings.weight * min(1.0, middle / max(self.settings.ramp, 1e-6))
