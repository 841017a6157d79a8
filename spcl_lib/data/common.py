"""What every data set gives: images with their full labels and, where known, their objects."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from spcl_lib.data.cache import decoded
from spcl_lib.data.images import Images, selected

_HELD_OUT = 0.4  # share of a real training split that choices are made on
_HELD_OUT_SEED = 1200


def hold_out(count: int) -> tuple[Tensor, Tensor]:
    """Numbers of the training images that stay, and of those held out to make choices on.

    Args:
        count: training images there are.

    Returns:
        Two ascending int64 tensors, 60 % and 40 % of 0..count-1; always the same ones.
    """
    generator = torch.Generator().manual_seed(_HELD_OUT_SEED)
    order = torch.randperm(count, generator=generator)
    held = round(_HELD_OUT * count)
    return order[held:].sort().values, order[:held].sort().values


@dataclass(frozen=True)
class Boxes:
    """The annotated objects of a split.

    Attributes:
        image: (M,) int64; number of the image that each object is in, ascending.
        label: (M,) int64; number of its class.
        box: (M, 4) float32; x0, y0, x1, y1 as fractions of the image.
    """

    image: Tensor
    label: Tensor
    box: Tensor

    def subset(self, indices: Tensor, num_images: int) -> Boxes:
        """The objects of the images at `indices` (M,), numbered as in that selection."""
        place = torch.full((num_images,), -1)
        place[indices] = torch.arange(len(indices))
        image = place[self.image]
        kept = (image >= 0).nonzero().flatten()
        kept = kept[image[kept].argsort(stable=True)]
        return Boxes(image[kept], self.label[kept], self.box[kept])


@dataclass(frozen=True)
class ImageSet:
    """One split of a data set.

    Attributes:
        images: (N, 3, S, S) uint8; whole images, resized to squares. A tensor, or `LazyImages`,
            which give tensors when they are indexed.
        labels: (N, C) bool; the full labels. Training on a single label never sees them.
        classes: C names.
        ids: N names, for people and for predictions.
        class_map: (N, S, S) uint8 or None; class number + 1 that is visible at a pixel, 0 = none.
        boxes: the annotated objects, or None where a data set has none.
        files: N files that the images come from, or None where they are drawn.

    Raises:
        ValueError: images, labels and ids are not equally many.
    """

    images: Images
    labels: Tensor
    classes: tuple[str, ...]
    ids: tuple[str, ...]
    class_map: Tensor | None = None
    boxes: Boxes | None = None
    files: tuple[Path, ...] | None = None

    def __post_init__(self) -> None:
        counts = len(self.images), len(self.labels), len(self.ids)
        if len(set(counts)) > 1:  # else labels would be those of other images
            raise ValueError(f"images, labels and ids must be equally many; got {counts}")

    def __len__(self) -> int:
        return len(self.images)

    def subset(self, indices: Tensor) -> ImageSet:
        """The images at `indices` (M,) int64, in that order; see `images.selected`."""
        return replace(
            self,
            images=selected(self.images, indices),
            labels=self.labels[indices],
            ids=tuple(self.ids[i] for i in indices.tolist()),
            class_map=None if self.class_map is None else self.class_map[indices],
            boxes=None if self.boxes is None else self.boxes.subset(indices, len(self)),
            files=None if self.files is None else tuple(self.files[i] for i in indices.tolist()),
        )

    def regions(self, indices: Tensor) -> Tensor:
        """Where the objects of every class are: from exact masks, else from boxes.

        Args:
            indices: (B,) int64 image numbers.

        Returns:
            (B, C, S, S) bool; True where an object of the class covers the centre of the pixel.

        Raises:
            ValueError: the data set knows neither masks nor boxes.
        """
        if self.class_map is not None:
            values = torch.arange(1, len(self.classes) + 1, dtype=torch.uint8)
            return self.class_map[indices][:, None] == values[:, None, None]
        if self.boxes is None:
            raise ValueError("this data set has neither masks nor boxes of its objects")
        boxes, side = self.boxes.subset(indices, len(self)), self.images.shape[-1]
        centres = (torch.arange(side) + 0.5) / side
        x0, y0, x1, y1 = boxes.box[:, :, None].unbind(1)  # (M, 1) each
        inside_x, inside_y = (centres >= x0) & (centres < x1), (centres >= y0) & (centres < y1)
        found = torch.zeros((len(indices), len(self.classes), side, side), dtype=torch.bool)
        for m in range(len(boxes.image)):
            where = boxes.image[m], boxes.label[m]
            found[where] |= inside_y[m, :, None] & inside_x[m, None, :]
        return found


def boxes_of_map(class_map: Tensor, num_classes: int) -> Boxes:
    """The smallest box around the visible pixels of every class of an image.

    Objects of one class in one image share a box: a class map does not tell them apart.

    Args:
        class_map: (N, S, S) uint8; class number + 1, 0 = none.
        num_classes: C.
    """
    parts = []
    for c in range(num_classes):
        mask = class_map == c + 1  # (N, S, S)
        columns, rows = mask.any(1), mask.any(2)  # (N, S) each
        image = columns.any(1).nonzero().flatten()
        (x0, x1), (y0, y1) = _extent(columns[image]), _extent(rows[image])
        box = torch.stack((x0, y0, x1, y1), 1) / class_map.shape[-1]
        parts.append((image, torch.full_like(image, c), box))
    image, label, box = (torch.cat(p) for p in zip(*parts, strict=True))
    order = image.argsort(stable=True)
    return Boxes(image[order], label[order], box[order])


def _extent(lines: Tensor) -> tuple[Tensor, Tensor]:
    """First True of every row of (M, S), and one past the last."""
    return lines.int().argmax(1), lines.shape[1] - lines.flip(1).int().argmax(1)


def image_set(files: Sequence[Path], side: int, name: str, damaged: str, **known: Any) -> ImageSet:
    """A split whose images are files; images that are left out take all that belongs to them along.

    Args:
        files: N image files.
        side: as in `cache.decoded`.
        name: as in `cache.decoded`.
        damaged: "stop" or "skip", as in `cache.decoded`.
        known: everything else that `ImageSet` takes, for all N images: labels, classes, ids, ...

    Raises:
        UserError: see `cache.decoded`.
    """
    images, kept = decoded(files, side, name, damaged)
    none_yet = torch.empty((len(files), 0), dtype=torch.uint8)
    data = ImageSet(images=none_yet, files=tuple(files), **known)
    return replace(data if len(kept) == len(files) else data.subset(kept), images=images)
