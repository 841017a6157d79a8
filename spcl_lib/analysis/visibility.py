"""Counts how much of every object a random crop still shows, on known regions (masks or boxes)."""

from torch import Tensor

from spcl_lib.views import Views

LEAST = 0.1  # ours: a class counts as in the view from this visible fraction on


def visible_fraction(regions: Tensor, views: Views) -> Tensor:
    """Share (B, C) of the pixels of regions (B, C, S, S) bool whose centre the view shows.

    It is NaN for a class without a pixel.

    Example:
        >>> regions = torch.tensor([[[[True, True], [False, True]]]])  # three pixels of one class
        >>> left_half = Views(torch.tensor([[0.0, 0.0, 0.5, 1.0]]), torch.tensor([False]))
        >>> visible_fraction(regions, left_half)
        tensor([[0.3333]])
    """
    shown = regions & views.visible(regions.shape[-1]).cpu()
    return shown.sum((2, 3)) / regions.sum((2, 3))  # 0 / 0 is NaN


def in_view(fraction: Tensor, least: float = LEAST) -> Tensor:
    """Whether a class is in the view: the view shows a part of it, and at least this fraction."""
    return (fraction > 0) & (fraction >= least)  # False for NaN: the class is not in the image
