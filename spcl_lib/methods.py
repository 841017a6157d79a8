"""The methods: each has a supervised term, and some add a consistency term.

    loss = term(s, z) + lambda(epoch) * consistency(f, running averages)

AN, CL, SCL and the idea of EN are from the paper. These are ours: the distance, lambda, the start,
the ramp, and the rule that selects the expected negatives. `terms.py` has the terms of other
papers. Each of these gives three methods, NAME, NAME_cl and NAME_scl; Full and IUN give one.
`losses` has the notation.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from spcl_lib.bank import HeatmapBank, KeptState
from spcl_lib.losses import (
    class_priors,
    consistency,
    expected_negative_threshold,
    spatial_consistency,
)
from spcl_lib.pooling import MEAN_POOLING, Pooling
from spcl_lib.sparse_bank import SparseHeatmapBank
from spcl_lib.system import paths, ranks
from spcl_lib.system.errors import UserError, unknown_name
from spcl_lib.system.memory import require_memory_for_averages
from spcl_lib.system.shapes import require_tensor
from spcl_lib.terms import TERMS, MethodSettings, Step, Term
from spcl_lib.views import Views

__all__ = ["METHODS", "PAPER_METHODS", "Method", "MethodSettings", "MethodSpec", "title_of"]

_EN_BYTES = 24  # per label, the measured peak of `expected_negative_threshold`


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

    @property
    def description(self) -> str:
        """The method in words."""
        more = {"": "", "cl": " + consistency of image predictions over epochs",
                "scl": " + spatial consistency with the heatmaps"}  # fmt: skip
        return TERMS[self.term].description + more[self.consistency]


# The methods of the paper and its upper bound; the reproduction has a row for each.
PAPER_METHODS = ("an", "cl", "scl", "en", "en_cl", "en_scl", "full")


def _all_methods() -> dict[str, MethodSpec]:
    methods = {"an": MethodSpec("an", ""), "cl": MethodSpec("an", "cl"),
               "scl": MethodSpec("an", "scl")}  # fmt: skip
    for term in TERMS.keys() - {"an"}:
        methods[term] = MethodSpec(term, "")
        if TERMS[term].sees is None:
            methods |= {f"{term}_{c}": MethodSpec(term, c) for c in ("cl", "scl")}
    order = [*PAPER_METHODS, *(f"{t}{c}" for t in TERMS for c in ("", "_cl", "_scl"))]
    return {name: methods[name] for name in dict.fromkeys(order) if name in methods}


METHODS: dict[str, MethodSpec] = _all_methods()


def title_of(method: str) -> str:
    """The name of a method as people read it: EN + SCL for "en_scl"."""
    if method not in METHODS:
        return method.upper().replace("_", " + ")
    spec = METHODS[method]
    parts = [] if method in ("cl", "scl") else [TERMS[spec.term].title or spec.term.upper()]
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


def place_of_averages(
    name: str,
    num_images: int,
    num_classes: int,
    settings: MethodSettings,
    file: str | Path | None = None,
) -> Path | None:
    """The place of a method's running averages: None for memory, else `file`.

    They go into the file if they do not fit into memory, or if they are larger than
    `paths.memory_for_averages` allows. EN and GPR rank all labels of all images at once; this needs
    memory in any case.

    Args:
        name: a key of METHODS; the next three arguments are as in Method.
        num_images: N, the images.
        num_classes: C, the classes.
        settings: see MethodSettings.
        file: where they may go; its disk must hold three more copies, for the checkpoints and the
            results. None: they must fit into memory.

    Raises:
        UserError: the averages do not fit, or the name is unknown.
    """
    if name not in METHODS:
        raise unknown_name("method", name, METHODS)
    spec = METHODS[name]
    if not spec.keeps_averages:
        return None
    size = settings.bank_size if spec.consistency == "scl" else 1
    per_label = _EN_BYTES if TERMS[spec.term].reads_averages else 0
    if spec.consistency == "scl" and settings.bank_classes:
        kept = min(settings.bank_classes, num_classes)
        per_label = -(-per_label * num_classes // kept) + size**2 // 8 + 5
        num_classes = kept
    need = num_images, num_classes, size, getattr(torch, settings.bank_dtype)
    copies = 1 if ranks.count() == 1 else 2  # rank 0 collects them for a checkpoint
    try:
        require_memory_for_averages(
            *need, per_label=per_label, copies=copies, limit=paths.memory_for_averages()
        )
        return None
    except UserError:
        if file is None:
            raise
    require_memory_for_averages(*need, path=file, per_label=per_label, copies=4)
    return Path(file)


class Method(KeptState):
    """One method in a training: its loss, and its running averages for the training images.

    It is a module: as a part of a model, it is saved and restored with the model's state dict.
    With several ranks, each has a method for its own images, and "all" images below are those.

    Args:
        name: a key of METHODS.
        num_images: N, training images.
        num_classes: C, the classes.
        settings: see MethodSettings.
        seed: seed of the bank's rounding, and of the term's state.
        labels: z (N, C) of the whole training set; terms with state and `bank_classes` need them.
        epochs: length of the whole training; some terms depend on it.
        pooling: pooling of the network.
        file: where the running averages may go if they do not fit into memory.

    Raises:
        UserError: the name is unknown, or the running averages do not fit.
        ValueError: the term needs the labels, or their shape is not (N, C).

    Example:
        >>> labels = torch.eye(3)[[0, 1, 2, 0]]  # of 4 images
        >>> method = Method("ren_scl", 4, 3, MethodSettings(start=0), labels=labels)
        >>> method.begin_epoch(0, labels)
        >>> indices, views = torch.tensor([2, 0]), Views.sample(2)
        >>> maps = torch.zeros(2, 3, 7, 7)  # of a network that has seen views.crop(images, size)
        >>> loss = method.loss(maps, labels[indices], indices, views, epoch=0)
        >>> method.update(maps, indices, views, epoch=0)
        >>> method.end_epoch(1, labels)
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
        pooling: Pooling = MEAN_POOLING,
        file: str | Path | None = None,
    ) -> None:
        super().__init__()
        self.settings, self.epochs, self.pooling = settings or MethodSettings(), epochs, pooling
        total = num_images * ranks.count()
        path = place_of_averages(name, total, num_classes, self.settings, file)
        self.name, self.spec = name, METHODS[name]
        self.num_images, self.num_classes = num_images, num_classes
        if labels is not None:
            self._check_all(labels)
        self.bank: HeatmapBank | None = None
        if self.spec.keeps_averages:
            size = self.settings.bank_size if self.spatial else 1
            dtype = getattr(torch, self.settings.bank_dtype)
            rest = size, self.settings.momentum, dtype, path, seed
            if self.spatial and self.settings.bank_classes:
                if labels is None:
                    raise ValueError(
                        "bank_classes needs the annotated classes: give labels, z (N, C)"
                    )
                kept = min(self.settings.bank_classes, num_classes)
                annotated = labels.to(torch.uint8).argmax(1)
                self.bank = SparseHeatmapBank(num_images, num_classes, kept, annotated, *rest)
            else:
                self.bank = HeatmapBank(num_images, num_classes, *rest)
        self.tables: dict[str, Tensor] = {}
        if self.term.reads_averages:  # a class with at least this presence is possible
            self.tables["threshold"] = torch.full((num_classes,), math.inf)
        if self.term.make_tables is not None:
            if labels is None:
                raise ValueError(f"method '{name}' keeps state: give labels, z (N, C)")
            self.tables |= self.term.make_tables(labels, self.settings, seed)
        for learned in self.term.learned:
            self.tables[learned].requires_grad_()

    @property
    def term(self) -> Term:
        """The supervised term."""
        return TERMS[self.spec.term]

    @property
    def spatial(self) -> bool:
        """Whether the running averages are heatmaps (SCL) or one value per class (CL, EN, GPR)."""
        return self.spec.consistency == "scl"

    def parameters(self, recurse: bool = True) -> list[Tensor]:
        """Tensors that the optimiser changes together with the network's weights."""
        return [self.tables[name] for name in self.term.learned]

    def begin_epoch(self, epoch: int, labels: Tensor) -> None:
        """Selects this epoch's threshold of EN and GPR from the running averages.

        Args:
            epoch: epochs done.
            labels: z (N, C) of the whole training set.
        """
        self._check_all(labels)
        if "threshold" in self.tables and epoch >= self.settings.start:
            presence, labels = ranks.collect(self._presence_of_all()), ranks.collect(labels)
            self.tables["threshold"] = ranks.from_first(lambda: self._threshold(presence, labels))

    def end_epoch(self, epoch: int, labels: Tensor) -> None:
        """Changes the term's state after an epoch; arguments as in `begin_epoch`."""
        self._check_all(labels)
        if self.term.end_epoch is None:
            return
        whole = {k: ranks.gather(v) if v.dim() == 2 else v for k, v in self.tables.items()}
        self.term.end_epoch(whole, ranks.gather(labels), epoch, self.epochs, self.settings)
        for name, table in whole.items():
            if table is not self.tables[name]:
                self.tables[name].copy_(ranks.part(table))

    def loss(
        self, maps: Tensor, labels: Tensor, indices: Tensor, views: Views, epoch: float
    ) -> Tensor:
        """The loss of a batch; with several ranks, that of the whole batch, on each of them.

        Args:
            maps: f (B, C, G, G) score-map logits.
            labels: z (B, C), or what the term sees; see `visible_labels`.
            indices: (B,) int64 image numbers.
            views: B views through which the network saw the images.
            epoch: epochs done, with the fraction of the current one.

        Raises:
            ValueError: a shape or type is another one.
        """
        self._check(maps, indices, views)
        require_tensor("labels", labels, maps.shape[:2])
        own, settings = self.pooling(maps), self.settings
        logits, labels = ranks.gather(own), ranks.gather(labels)
        active = self.bank is not None and epoch >= settings.start
        target, seen = self._read(indices, views, maps.shape[-1]) if active else (None, None)
        reads = active and self.term.reads_averages
        presence = ranks.gather(self.pooling.presence(target, seen)) if reads else None
        step = Step(indices, epoch, self.epochs, settings, self.tables, presence)
        total = self.term.loss(logits, labels, step)
        if not (active and self.spec.consistency):
            return total
        if self.spatial:
            agreement = spatial_consistency(maps, target, seen, settings.distance)
            agreement = ranks.mean(agreement, seen.amax(1).sum())  # it is a mean over these cells
        else:  # a new image is compared with its own prediction, not with 0
            own = torch.sigmoid(own.detach())[..., None, None]
            average = torch.where(seen > 0, target, own)[:, :, 0, 0]
            agreement = consistency(logits, ranks.gather(average), settings.distance)
        return total + self._weight(epoch) * agreement

    @torch.no_grad()
    def update(self, maps: Tensor, indices: Tensor, views: Views, epoch: float) -> None:
        """Updates the running averages after a step, with the maps that the step predicted.

        The averages begin one epoch before the loss uses them. An earlier begin would keep the
        predictions of an untrained layer in the averages for many epochs.
        """
        self._check(maps, indices, views)
        maps = maps.float()
        if "predictions" in self.tables:
            self.tables["predictions"][indices.cpu()] = self.pooling(maps).sigmoid().cpu()
        if self.bank is None or epoch < self.settings.start - 1:
            return
        if self.spatial:
            self.bank.update(indices, views, torch.sigmoid(maps))
        else:
            whole = Views.whole(len(indices), maps.device)
            self.bank.update(indices, whole, self.pooling(maps).sigmoid()[:, :, None, None])

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:  # noqa: D102 (as in KeptState)
        if isinstance(state, Mapping) and isinstance(state.get("bank"), Mapping):  # as it once was
            state = {**state, **{f"bank.{name}": v for name, v in state["bank"].items()}}
        super().load_state_dict(state)

    def _state(self) -> dict[str, Tensor]:
        return {name: table.detach() for name, table in self.tables.items()}

    @torch.no_grad()
    def _restore(self, state: Mapping[str, Tensor]) -> None:
        for name, table in self.tables.items():
            require_tensor(name, state[name], table.shape, str(table.dtype).split(".")[1])
        for name, table in self.tables.items():
            table.copy_(state[name])

    def _check(self, maps: Tensor, indices: Tensor, views: Views) -> None:
        require_tensor("maps", maps, ("B", self.num_classes, "H", "W"), "float")
        require_tensor("indices", indices, (len(maps),), "int64")
        if len(views) != len(maps):
            raise ValueError(f"views must be {len(maps)}, one per image; got {len(views)}")

    def _check_all(self, labels: Tensor) -> None:
        require_tensor("labels", labels, (self.num_images, self.num_classes))

    def _weight(self, epoch: float) -> float:
        progress = (epoch - self.settings.start) / max(self.settings.ramp, 1e-6)
        return self.settings.weight * min(1.0, progress)

    def _read(self, indices: Tensor, views: Views, grid: int) -> tuple[Tensor, Tensor]:
        if self.spatial:
            return self.bank.read(indices, views, grid)
        return self.bank.read(indices, Views.whole(len(indices), views.boxes.device), 1)

    def _threshold(self, presence: Tensor, labels: Tensor) -> Tensor:
        k = self.settings.expected_positives
        if self.settings.expected_count == "estimated":
            k = max(1.0, class_priors(presence, labels).sum().item())
        return expected_negative_threshold(presence, labels, k)

    def _presence_of_all(self) -> Tensor:
        """(N, C) presence of every class in every whole image, from the running averages."""
        size = self.bank.size
        few = 2**26 // (self.bank.num_classes * size**2)  # 1,000 classes need much memory per image
        chunks = torch.arange(self.bank.num_images).split(min(1024, max(1, few)))
        read = (self.bank.read(c, Views.whole(len(c)), size) for c in chunks)
        return torch.cat([self.pooling.presence(*part) for part in read])
