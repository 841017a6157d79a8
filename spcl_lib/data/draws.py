"""Which one label of a training image is kept: the draw that makes a data set single-label."""

from __future__ import annotations

import torch
from torch import Tensor

from spcl_lib.errors import UserError

DRAWS = ("uniform",)


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
