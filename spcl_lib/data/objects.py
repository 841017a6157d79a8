"""The places of a split's objects: boxes, and exact masks."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

# How EXIF's orientations 1..8 turn stored pixels into the picture: the axes are exchanged, then
# the picture is mirrored from left to right, then from top to bottom.
_TURNS = (
    (False, False, False), (False, True, False), (False, True, True), (False, False, True),
    (True, False, False), (True, True, False), (True, True, True), (True, False, True),
)  # fmt: skip


def turns_of(size: Tensor, stored: Tensor) -> Tensor:
    """The orientations by which annotated places must be turned, to lie on the pictures.

    Places belong to the pixels as they are stored, which pycocotools and torchvision read. But if
    only the turned picture has the annotated size, they belong to that picture, and stay.

    Args:
        size: (N, 2) int64; annotated height and width.
        stored: (N, 3) int64; EXIF orientation, height and width of the stored pixels.

    Returns:
        (N,) int64; 1..8, where 1 leaves the places as they are.
    """
    is_turned_size = (size == stored[:, [2, 1]]).all(1) & (size != stored[:, 1:]).any(1)
    return stored[:, 0].where(~((stored[:, 0] >= 5) & is_turned_size), 1)


@dataclass(frozen=True)
class Boxes:
    """The annotated objects of a split.

    Attributes:
        image: (M,) int64; number of each object's image, ascending.
        label: (M,) int64; number of its class.
        box: (M, 4) float32; x0, y0, x1, y1 as fractions of the image.
    """

    image: Tensor
    label: Tensor
    box: Tensor

    def subset(self, indices: Tensor) -> Boxes:
        """The objects of the images at `indices` (B,), which get the numbers 0..B-1."""
        place, kept = _members(self.image, indices)
        return Boxes(place, self.label[kept], self.box[kept])

    def turned(self, turns: Tensor) -> Boxes:
        """The objects of pictures that are turned by EXIF's orientations `turns` (N,)."""
        x, y = self.box[:, [0, 2]], self.box[:, [1, 3]]  # (M, 2) each
        swap, left, top = torch.tensor(_TURNS)[turns[self.image] - 1].T[:, :, None]
        x, y = x.where(~swap, y), y.where(~swap, x)
        x, y = (1 - x.flip(1)).where(left, x), (1 - y.flip(1)).where(top, y)
        return replace(self, box=torch.stack((x[:, 0], y[:, 0], x[:, 1], y[:, 1]), 1))

    def regions(self, indices: Tensor, num_classes: int, side: int) -> Tensor:
        """The pixels whose centre is in a box, in images of side S; see `ImageSet.regions`."""
        chosen = self.subset(indices)
        centres = (torch.arange(side) + 0.5) / side
        x0, y0, x1, y1 = chosen.box[:, :, None].unbind(1)  # (M, 1) each
        inside_x, inside_y = (centres >= x0) & (centres < x1), (centres >= y0) & (centres < y1)
        found = torch.zeros((len(indices), num_classes, side, side), dtype=torch.bool)
        for m in range(len(chosen.image)):
            where = chosen.image[m], chosen.label[m]
            found[where] |= inside_y[m, :, None] & inside_x[m, None, :]
        return found


@dataclass(frozen=True)
class Masks:
    """The exact pixels of every class in the images of a split, kept as COCO's run lengths.

    They are decoded only when they are needed: all masks of COCO take a few hundred megabytes as
    run lengths, but terabytes as pixels.

    Attributes:
        image: (K,) int64; number of each mask's image, ascending.
        label: (K,) int64; number of its class. All objects of a class in an image are one mask.
        size: (K, 2) int64; height and width in pixels of the annotated image.
        start: (K,) int64; the place in `counts` where the mask's run lengths start.
        end: (K,) int64; the place where they end; a mask may have none.
        counts: (L,) uint8; compressed run lengths as pycocotools writes them, one after another.
        turn: (K,) int64; EXIF orientation by which each mask is turned, to lie on the picture.
    """

    image: Tensor
    label: Tensor
    size: Tensor
    start: Tensor
    end: Tensor
    counts: Tensor
    turn: Tensor

    def subset(self, indices: Tensor) -> Masks:
        """The masks of the images at `indices` (B,), which get the numbers 0..B-1."""
        place, kept = _members(self.image, indices)
        return Masks(
            place, self.label[kept], self.size[kept], self.start[kept], self.end[kept],
            self.counts, self.turn[kept],
        )  # fmt: skip

    def turned(self, turns: Tensor) -> Masks:
        """The masks of pictures that are turned by EXIF's orientations `turns` (N,)."""
        return replace(self, turn=turns[self.image])

    def decode(self, number: int) -> Tensor:
        """One mask as (height, width) bool, in the size of the annotated image; turned if needed.

        It needs pycocotools.
        """
        from pycocotools import mask as tools

        counts = self.counts[self.start[number] : self.end[number]].numpy().tobytes()
        size = self.size[number].tolist()
        pixels = torch.zeros(size, dtype=torch.bool)
        if counts:
            pixels = torch.from_numpy(tools.decode({"size": size, "counts": counts})).bool()
        swap, left, top = _TURNS[self.turn[number] - 1]
        return (pixels.T if swap else pixels).flip([1] * left + [0] * top)

    def regions(self, indices: Tensor, num_classes: int, side: int) -> Tensor:
        """The masks at the pixels' centres, in images of side S; see `ImageSet.regions`."""
        place, chosen = _members(self.image, indices)
        centres = (torch.arange(side) + 0.5) / side
        found = torch.zeros((len(indices), num_classes, side, side), dtype=torch.bool)
        for b, number in zip(place.tolist(), chosen.tolist(), strict=True):
            mask = self.decode(number)
            y, x = ((centres * length).long() for length in mask.shape)
            found[b, self.label[number]] = mask[y][:, x]
        return found


def _members(image: Tensor, indices: Tensor) -> tuple[Tensor, Tensor]:
    """The entries of the images at `indices` (B,), which may repeat; `image` (M,) is ascending.

    Returns:
        The place in `indices` (ascending) and the row of each entry found.
    """
    indices = indices.contiguous()
    first = torch.searchsorted(image, indices)
    count = torch.searchsorted(image, indices, right=True) - first  # (B,)
    place = torch.arange(len(indices)).repeat_interleave(count)
    before = (count.cumsum(0) - count)[place]  # number of entries of the images before
    return place, first[place] + torch.arange(len(place)) - before
