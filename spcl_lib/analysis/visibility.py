"""Counts how much of every object a random crop still shows, on known regions (masks or boxes)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from spcl_lib.config import RunConfig
from spcl_lib.data.image_set import ImageSet
from spcl_lib.system.randomness import keyed_generator
from spcl_lib.train import sample_views
from spcl_lib.views import Views

LEAST = 0.1  # ours: a class counts as in the view from this visible fraction on
LIMITS = (0.0, LEAST, 0.5)  # show how much the findings depend on LEAST; 0 means any pixel


def visible_fraction(regions: Tensor, views: Views) -> Tensor:
    """Share (B, C) of every class's pixels whose centre the view shows; NaN without a pixel.

    Args:
        regions: (B, C, S, S) bool, True where an object of the class is.
        views: B views.

    Example:
        >>> regions = torch.tensor([[[[True, True], [False, True]]]])  # three pixels of one class
        >>> left_half = Views(torch.tensor([[0.0, 0.0, 0.5, 1.0]]), torch.tensor([False]))
        >>> visible_fraction(regions, left_half)
        tensor([[0.3333]])
    """
    shown = regions & views.visible(regions.shape[-1]).cpu()
    return shown.sum((2, 3)) / regions.sum((2, 3))  # 0 / 0 is NaN


def visible_fractions(data: ImageSet, views: Sequence[Views], step: int = 32) -> Tensor:
    """`visible_fraction` (V, N, C) of V times one view of each of N images, some at a time."""
    parts = []
    for indices in torch.arange(len(data)).split(step):
        regions = data.regions(indices)
        parts.append(torch.stack([visible_fraction(regions, v[indices]) for v in views]))
    return torch.cat(parts, 1)


def in_view(fraction: Tensor, least: float = LEAST) -> Tensor:
    """Whether a class is in the view: the view shows a part of it, and at least this fraction."""
    return (fraction > 0) & (fraction >= least)  # False for NaN: the class is not in the image


def viewed_crops(count: int, config: RunConfig, *key: object) -> Views:
    """`count` views, sampled as in the training; the same key gives the same views."""
    return sample_views(count, config, keyed_generator("recovery", *key))


def wrong_labels(fraction: Tensor, observed: Tensor) -> float:
    """Share of the views, in percent, that do not show the labelled class.

    It comes from visible fractions (..., N, C) and single labels (N, C). Labels without a known
    region (NaN) do not count.
    """
    left = fraction[observed.expand_as(fraction)]
    return 100 * float((~in_view(left[~left.isnan()])).double().mean())
