"""What every data set gives: images with their full labels, and the single-label draw."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from spcl_lib.errors import UserError


@dataclass(frozen=True)
class ImageSet:
    """One split of a data set.

    Attributes:
        images: (N, 3, S, S) uint8; whole images, resized to squares.
        labels: (N, C) bool; the full labels. Training on a single label never sees them.
        classes: C names.
        ids: N names, for people and for predictions.
        class_map: (N, S, S) uint8 or None; class number + 1 that is visible at a pixel, 0 = none.
    """

    images: Tensor
    labels: Tensor
    classes: tuple[str, ...]
    ids: tuple[str, ...]
    class_map: Tensor | None = None

    def __len__(self) -> int:
        return len(self.images)

    def subset(self, indices: Tensor) -> ImageSet:
        """The images at `indices` (M,) int64, in that order."""
        return replace(
            self,
            images=self.images[indices],
            labels=self.labels[indices],
            ids=tuple(self.ids[i] for i in indices.tolist()),
            class_map=None if self.class_map is None else self.class_map[indices],
        )


def single_label_draw(labels: Tensor, seed: int) -> Tensor:
    """Keeps one positive label per image, drawn uniformly (the paper's setting).

    The draw has its own seed, apart from the training seed: all methods and all training seeds
    of a data set see the same observed labels.

    Args:
        labels: (N, C) bool, the full labels.
        seed: seed of the draw.

    Returns:
        (N, C) bool with exactly one positive per row.

    Raises:
        UserError: an image has no positive label to draw from.
    """
    empty = (~labels.any(1)).nonzero().flatten()
    if len(empty):
        raise UserError(
            f"{len(empty)} of {len(labels)} training images have no positive label "
            f"(first: image number {int(empty[0])}); leave them out before the draw"
        )
    rng = torch.Generator().manual_seed(seed)
    chosen = torch.rand(labels.shape, generator=rng).masked_fill(~labels, -1).argmax(1)
    return torch.zeros_like(labels).scatter_(1, chosen[:, None], True)
