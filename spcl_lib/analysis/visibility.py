"""Counts how much of every object a random crop still shows, on known regions (masks or boxes)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from spcl_lib.config import RunConfig
from spcl_lib.data.image_set import ImageSet
from spcl_lib.system.randomness import keyed_generator
from spcl_lib.train import sample_views
from spcl_lib.views import Views

# Ours: the limit above which a class counts as in the view, and the groups of visibility.
LEAST = 0.1  # least visible fraction of a class in the view; a person would not name less than this
LIMITS = (0.0, LEAST, 0.5)  # show how much the findings depend on LEAST; 0 means any pixel
VISIBILITY = ("cut out", "under 10 %", "10 to 50 %", "above 50 %")


def visible_fraction(regions: Tensor, views: Views) -> Tensor:
    """Share of every class's pixels whose centre the view shows.

    Args:
        regions: (B, C, S, S) bool, True where an object of the class is.
        views: B views.

    Returns:
        (B, C) float32; NaN where the class has no pixel in the image.

    Example:
        >>> regions = torch.tensor([[[[True, True], [False, True]]]])  # three pixels of one class
        >>> left_half = Views(torch.tensor([[0.0, 0.0, 0.5, 1.0]]), torch.tensor([False]))
        >>> visible_fraction(regions, left_half)
        tensor([[0.3333]])
    """
    if regions.ndim != 4 or len(regions) != len(views):
        raise ValueError(f"regions must be ({len(views)}, C, S, S); got {tuple(regions.shape)}")
    return _fraction(_sums(regions), views)


def visible_fractions(data: ImageSet, views: Sequence[Views], step: int = 32) -> Tensor:
    """`visible_fraction` of many views of all images.

    Args:
        data: N images with known regions.
        views: V times one view of each image.
        step: images at a time, which limits the memory.

    Returns:
        (V, N, C) float32.
    """
    parts = []
    for indices in torch.arange(len(data)).split(step):
        sums = _sums(data.regions(indices))
        parts.append(torch.stack([_fraction(sums, v[indices]) for v in views]))
    return torch.cat(parts, 1)


def _sums(regions: Tensor) -> Tensor:
    """(B, C, S + 1, S + 1) int32, pixels above and left; with it, a box needs four look-ups."""
    counts = regions.to(torch.int32).cumsum(2, dtype=torch.int32).cumsum(3, dtype=torch.int32)
    return F.pad(counts, (1, 0, 1, 0))


def _fraction(sums: Tensor, views: Views) -> Tensor:
    side = sums.shape[-1] - 1
    centres = (torch.arange(side) + 0.5) / side
    x0, y0, x1, y1 = views.boxes.cpu()[:, :, None].unbind(1)  # (B, 1) each
    left, right = (centres < x0).sum(1), (centres <= x1).sum(1)  # (B,), as in Views.visible
    top, bottom = (centres < y0).sum(1), (centres <= y1).sum(1)
    b = torch.arange(len(sums))
    shown = sums[b, :, bottom, right] - sums[b, :, top, right]
    shown = shown - sums[b, :, bottom, left] + sums[b, :, top, left]  # (B, C)
    return shown / sums[:, :, -1, -1]  # 0 / 0 is NaN


def in_view(fraction: Tensor, least: float = LEAST) -> Tensor:
    """Whether a class is in the view: the view shows a part of it, and at least this fraction."""
    return (fraction > 0) & (fraction >= least)  # False for NaN: the class is not in the image


def visibility(fraction: Tensor) -> Tensor:
    """Number of the group in VISIBILITY; -1 for a class that is not in the image (NaN)."""
    group = (fraction > 0).long() + (fraction >= 0.1) + (fraction > 0.5)
    return group.masked_fill(fraction.isnan(), -1)


def viewed_crops(count: int, config: RunConfig, *key: object) -> Views:
    """`count` views, sampled as in the training; the same key gives the same views."""
    return sample_views(count, config, keyed_generator("recovery", *key))


def label_visibility(fraction: Tensor, observed: Tensor) -> dict[str, float]:
    """How much of the labelled objects the views show, in percent of the views.

    Args:
        fraction: (..., N, C) visible fractions.
        observed: (N, C) bool, single labels.

    Returns:
        A share for every name in VISIBILITY, and the share "wrong" of views without the labelled
        class. Labels whose object has no known region are left out.
    """
    left = fraction[observed.expand_as(fraction)]
    left = left[~left.isnan()]
    group = torch.bincount(visibility(left), minlength=len(VISIBILITY)).double()
    shares = (100 * group / max(len(left), 1)).tolist()
    wrong = 100 * float((~in_view(left)).double().mean())
    return dict(zip(VISIBILITY, shares, strict=True)) | {"wrong": wrong}
