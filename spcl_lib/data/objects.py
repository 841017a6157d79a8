"""The places of a split's objects: boxes, and exact masks."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


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
    """

    image: Tensor
    label: Tensor
    size: Tensor
    start: Tensor
    end: Tensor
    counts: Tensor

    def subset(self, indices: Tensor) -> Masks:
        """The masks of the images at `indices` (B,), which get the numbers 0..B-1."""
        place, kept = _members(self.image, indices)
        return Masks(
            place, self.label[kept], self.size[kept], self.start[kept], self.end[kept], self.counts
        )

    def decode(self, number: int) -> Tensor:
        """One mask as (height, width) bool, in the size of the annotated image."""
        height, width = self.size[number].tolist()
        counts = self.counts[self.start[number] : self.end[number]]
        if not len(counts):
            return torch.zeros((height, width), dtype=torch.bool)
        runs = torch.from_numpy(run_lengths(counts.numpy()))
        inside = torch.arange(len(runs)) % 2 == 1  # runs are outside and inside by turns
        return inside.repeat_interleave(runs).view(width, height).T  # COCO goes down the columns

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


def run_lengths(counts: np.ndarray) -> np.ndarray:
    """COCO's compressed run lengths as numbers, outside first; pycocotools writes the compressed.

    A number is stored in groups of 5 bits, the lowest first. A character is 48 + group, + 32 if
    another group follows. The highest bit of the last group is the sign. From the fourth number
    on, the stored value is the difference to the number two places before.

    Args:
        counts: (L,) uint8, one character each.

    Returns:
        (R,) int64.

    Raises:
        ValueError: the last number is not complete, or there is no number.
    """
    groups = counts.astype(np.int64) - 48
    last = groups & 32 == 0
    if not len(last) or not last[-1]:
        raise ValueError("the compressed run lengths end within a number")
    first = np.concatenate([[0], last.nonzero()[0][:-1] + 1])
    position = np.arange(len(groups)) - np.repeat(first, np.diff([*first, len(groups)]))
    numbers = np.add.reduceat((groups & 31) << (5 * position), first)
    numbers -= (groups[last] & 16) << (5 * position[last] + 1)  # the sign means minus 2**bits
    numbers[1::2] = numbers[1::2].cumsum()
    numbers[2::2] = numbers[2::2].cumsum()
    return numbers


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
