"""The visible part of objects is checked against a count of single pixels."""

import math

import pytest
import torch

from spcl_lib import Views
from spcl_lib.analysis.visibility import in_view, visible_fraction


def counted(regions, views):
    """The definition: pixel by pixel, is the centre in the box? The flip changes nothing."""
    out = torch.full(regions.shape[:2], math.nan)
    side = regions.shape[-1]
    for b, (x0, y0, x1, y1) in enumerate(views.boxes.tolist()):
        for c, region in enumerate(regions[b]):
            pixels = region.nonzero().tolist()
            inside = [
                x0 <= (x + 0.5) / side <= x1 and y0 <= (y + 0.5) / side <= y1 for y, x in pixels
            ]
            if pixels:
                out[b, c] = sum(inside) / len(pixels)
    return out


def random_regions(batch, classes, side, seed, density=0.3):
    rng = torch.Generator().manual_seed(seed)
    regions = torch.rand(batch, classes, side, side, generator=rng) < density
    regions[0, 0] = False  # a class that is not in the image
    return regions


def assert_same(found, expected):
    torch.testing.assert_close(found, expected, equal_nan=True)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("scale", [(0.002, 0.01), (0.1, 1.0), (1.0, 1.0)])
def test_random_views_against_a_count_of_pixels(seed, scale):
    regions = random_regions(12, 3, 16, seed)
    views = Views.sample(12, scale, (0.5, 2), 0.5, torch.Generator().manual_seed(seed))
    found = visible_fraction(regions, views)
    assert_same(found, counted(regions, views))
    assert found[0, 0].isnan()


def test_in_view_at_its_limits():
    fraction = torch.tensor([math.nan, 0.0, 1e-4, 0.0999, 0.1, 0.5, 0.5001, 1.0])
    assert in_view(fraction).tolist() == [False] * 4 + [True] * 4
    assert in_view(fraction, 0.0).tolist() == [False] * 2 + [True] * 6  # any pixel
    assert in_view(fraction, 0.5).tolist() == [False] * 5 + [True] * 3
