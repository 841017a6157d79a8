"""ImageSet, the form of every data set: images, full labels and, where known, the objects."""

import contextlib
import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from spcl_lib.data.images import Images, LazyImages

HELD_OUT = 0.4  # share of a real training split that is used for choices
PARTS = 3  # held-out parts, which together have all images
_SAMPLED = 50_000  # with more files, only their sizes identify the content
# How EXIF's orientations 1..8 turn stored pixels into the picture: the axes are exchanged, then
# the picture is mirrored from left to right, then from top to bottom.
_TURNS = (
    (False, False, False), (False, True, False), (False, True, True), (False, False, True),
    (True, False, False), (True, True, False), (True, True, True), (True, False, True),
)  # fmt: skip


def hold_out(count: int, part: int = 0) -> tuple[Tensor, Tensor]:
    """Splits 0..count-1 into 60 % for training and 40 % held out for choices; ascending int64."""
    generator = torch.Generator().manual_seed(1200)
    order = torch.randperm(count, generator=generator).roll(-(part * count // PARTS))
    held = round(HELD_OUT * count)
    return order[held:].sort().values, order[:held].sort().values


@dataclass(frozen=True)
class Objects:
    """The M annotated objects of N images, in the pixels as they are stored."""

    image: Tensor  # (M,) int64; number of each object's image, ascending
    label: Tensor  # (M,) int64; number of its class
    box: Tensor  # (M, 4) float32; x0, y0, x1, y1 as fractions of the image
    # M masks as pycocotools writes them, or none; as pixels, COCO's would be too large.
    runs: tuple[dict[str, Any], ...] = ()
    turns: Tensor | None = None  # (N,) int64; EXIF's orientations, which turn the images

    def subset(self, indices: Tensor) -> Self:
        """The objects of the images at `indices` (B,), which get the numbers 0..B-1."""
        indices = indices.contiguous()
        first = torch.searchsorted(self.image, indices).tolist()
        end = torch.searchsorted(self.image, indices, right=True).tolist()
        pairs = [(b, m) for b, own in enumerate(map(range, first, end)) for m in own]
        place, kept = torch.tensor(pairs, dtype=torch.int64).view(-1, 2).T.contiguous()
        runs = tuple(self.runs[m] for m in kept.tolist()) if self.runs else ()
        turns = None if self.turns is None else self.turns[indices]
        return Objects(place, self.label[kept], self.box[kept], runs, turns)

    def regions(self, indices: Tensor, num_classes: int, side: int) -> Tensor:
        """The objects' pixels in images of side S; see `ImageSet.regions`."""
        chosen = self.subset(indices)
        found = torch.zeros((len(indices), num_classes, side, side), dtype=torch.bool)
        for m, (image, label) in enumerate(zip(chosen.image, chosen.label, strict=True)):
            found[image, label] |= chosen._covered(m, side)
        for region, turn in zip(found, [] if chosen.turns is None else chosen.turns, strict=False):
            swap, left, top = _TURNS[turn - 1]
            turned = region.transpose(1, 2) if swap else region
            region.copy_(turned.flip([2] * left + [1] * top))
        return found

    def _covered(self, m: int, side: int) -> Tensor:
        """Whether an object covers the centre of each pixel: (S, S) bool."""
        centres = (torch.arange(side) + 0.5) / side
        if not self.runs:
            x0, y0, x1, y1 = self.box[m]
            return ((centres >= y0) & (centres < y1))[:, None] & (centres >= x0) & (centres < x1)
        from pycocotools import mask  # not every installation has it

        pixels = torch.from_numpy(mask.decode(self.runs[m])).bool()
        y, x = ((centres * length).long() for length in pixels.shape)
        return pixels[y][:, x]


@dataclass(frozen=True)
class ImageSet:
    """One split of a data set."""

    images: Images  # (N, 3, S, S) uint8, whole, resized to squares; (N, 0) before the decoding
    labels: Tensor  # (N, C) bool; the full labels of the C classes
    classes: tuple[str, ...]
    ids: tuple[str, ...]  # N names, for messages and predictions
    class_map: Tensor | None = None  # (N, S, S) uint8; number + 1 of a pixel's class, 0 = none
    objects: Objects | None = None  # None if they are not known or not needed
    ignored: Tensor | None = None  # (N, C) bool; labels that do not count, False in `labels`
    files: tuple[Path, ...] | None = None  # N image files; None for drawn images
    notes: tuple[str, ...] = ()  # messages about the selection, such as "3 images left out"

    def __len__(self) -> int:
        return len(self.images)

    def subset(self, indices: Tensor) -> Self:
        """The images at `indices` (M,) int64, in that order."""

        def pick(part: Any) -> Any:
            if isinstance(part, tuple):
                return tuple(part[i] for i in indices.tolist())
            if isinstance(part, Objects | LazyImages):
                return part.subset(indices)
            return None if part is None else part[indices]

        shared = "classes", "notes"
        per_image = {name: part for name, part in vars(self).items() if name not in shared}
        return replace(self, **{name: pick(part) for name, part in per_image.items()})

    def first(self, count: int) -> Self:
        """The first `count` images; all if there are fewer."""
        return self if count >= len(self) else self.subset(torch.arange(count))

    def regions(self, indices: Tensor) -> Tensor:
        """Whether an object of each class covers the centre of each pixel: (B, C, S, S) bool."""
        if self.class_map is not None:
            values = torch.arange(1, len(self.classes) + 1, dtype=torch.uint8)
            return self.class_map[indices][:, None] == values[:, None, None]
        if self.objects is None:
            raise ValueError("this data set has neither masks nor boxes of its objects")
        return self.objects.regions(indices, len(self.classes), self.images.shape[-1])

    def content(self) -> str:
        """Eight characters that change with any image file or label, but not with the folder.

        They depend on the size of each file and, for up to 50,000 files, on 4 kB from its middle.
        """
        digest = hashlib.sha256()
        for part in (self.labels, self.ignored):
            digest.update(b"" if part is None else part.contiguous().numpy())
        digest.update(json.dumps([self.classes, self.ids]).encode("utf-8", "surrogatepass"))
        files = self.files or ()
        for file in files:  # the decoding reports what cannot be read
            with contextlib.suppress(OSError), open(file, "rb") as handle:
                size = handle.seek(0, os.SEEK_END)
                digest.update(str(size).encode())
                if len(files) <= _SAMPLED:
                    handle.seek(max(0, (size - 4096) // 2))
                    digest.update(handle.read(4096))
        return digest.hexdigest()[:8]


def list_image_files(files: Sequence[Path], **known: Any) -> ImageSet:
    """A data set of N files before the decoding; `known` are other arguments of `ImageSet`."""
    return ImageSet(torch.empty((len(files), 0), dtype=torch.uint8), files=tuple(files), **known)
