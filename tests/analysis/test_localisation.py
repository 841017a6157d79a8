"""Pointing game and IoU on made-up maps are checked against counts of cells and pixels."""

import math

import pytest
import torch

from spcl_lib import Views
from spcl_lib.analysis.localisation import THRESHOLDS, localise, overlaps, pointing
from spcl_lib.analysis.visibility import in_view, visible_fraction
from spcl_lib.data.image_set import ImageSet


@pytest.mark.parametrize("grid", [3, 4, 7])
@pytest.mark.parametrize("tolerance", [0.0, 0.03, 0.15])
def test_pointing_against_a_search_of_all_pixels(grid, tolerance):
    rng = torch.Generator().manual_seed(grid)
    maps = torch.randint(0, 4, (20, grid, grid), generator=rng).float()  # with ties
    objects = torch.rand(20, 12, 12, generator=rng) < 0.05
    objects[0] = False
    hit, by_chance = pointing(maps, objects, tolerance)
    for m in range(20):
        cells = {}
        for y in range(grid):
            for x in range(grid):
                point = (y + 0.5) / grid, (x + 0.5) / grid
                near = [
                    math.dist(point, ((py + 0.5) / 12, (px + 0.5) / 12)) - 0.5**0.5 / 12
                    <= tolerance + 1e-6
                    for py, px in objects[m].nonzero().tolist()
                ]
                cells[y, x] = any(near)
        ties = [yx for yx in cells if maps[m][yx] == maps[m].max()]
        assert hit[m] == pytest.approx(sum(cells[yx] for yx in ties) / len(ties))
        assert by_chance[m] == pytest.approx(sum(cells.values()) / grid**2)


def test_overlaps_against_sets_of_pixels():
    rng = torch.Generator().manual_seed(0)
    maps, objects = torch.rand(15, 6, 6, generator=rng), torch.rand(15, 6, 6, generator=rng) < 0.3
    found = overlaps(maps, objects)
    for m in range(15):
        inside = {tuple(p) for p in objects[m].nonzero().tolist()}
        for t, threshold in enumerate(THRESHOLDS):
            said = {tuple(p) for p in (maps[m] / maps[m].max() >= threshold).nonzero().tolist()}
            assert found[m, t] == pytest.approx(len(said & inside) / len(said | inside))


@pytest.fixture
def data():
    """Four images of 8 x 8: class 0 left and 1 right; the same; class 1; class 0 in a corner."""
    class_map = torch.zeros(4, 8, 8, dtype=torch.uint8)
    class_map[:2, :, :4], class_map[:2, :, 4:] = 1, 2
    class_map[2, :4], class_map[3, :4, :4] = 2, 1
    labels = torch.tensor([[1, 1, 0], [1, 1, 0], [0, 1, 0], [1, 0, 0]]).bool()
    images = torch.zeros(4, 3, 8, 8, dtype=torch.uint8)
    return ImageSet(images, labels, ("a", "b", "c"), tuple("0123"), class_map=class_map)


@pytest.mark.parametrize("stored", [torch.uint8, torch.float32])
def test_every_present_class_of_odd_images_is_looked_for(data, stored):
    maps = data.regions(torch.arange(4)).to(stored) * 200
    found = localise(maps, data)["all"]
    part = 100 * (0.5 + 0.5 + 0.25) / 3
    expected = {"pointing": 100, "pointing_chance": part, "iou": 100, "iou_whole": part}
    assert found == pytest.approx(expected)
    swapped = localise(maps.roll(1, 1), data)["all"]  # the maps of other classes
    assert swapped["pointing"] < 100 and swapped["iou"] < 100


def test_labelled_and_unlabelled_classes_are_told_apart(data):
    maps = data.regions(torch.arange(4)).float()
    maps[:, 1] = maps[:, 1].roll(4, -1)  # class 1 is sought on the wrong side
    observed = torch.tensor([[1, 0, 0], [1, 0, 0], [0, 1, 0], [1, 0, 0]]).bool()
    found = localise(maps, data, observed)
    assert found["labelled"]["iou"] == 100 and found["labelled"]["pointing"] == 100
    assert found["unlabelled"]["iou"] == 0 and found["unlabelled"]["pointing"] == 0


def test_the_threshold_is_chosen_on_other_images_than_it_is_judged_on(data):
    """Even images are found at any threshold below 1, odd ones at high thresholds only."""
    maps = data.regions(torch.arange(4)).float()
    maps[1::2] = maps[1::2].clamp(min=0.5)
    low = localise(maps, data)["all"]["iou"]
    maps[::2] = maps[::2].clamp(min=0.5)
    assert low == pytest.approx(100 * (0.5 + 0.5 + 0.25) / 3)  # a low threshold: everywhere
    assert localise(maps, data)["all"]["iou"] == 100


# --- what a view shows ----------------------------------------------------------------------------


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


@pytest.mark.parametrize("scale", [(0.002, 0.01), (0.1, 1.0), (1.0, 1.0)])
def test_random_views_against_a_count_of_pixels(scale):
    rng = torch.Generator().manual_seed(0)
    regions = torch.rand(30, 3, 16, 16, generator=rng) < 0.3
    regions[0, 0] = False  # a class that is not in the image
    views = Views.sample(30, scale, (0.5, 2), 0.5, rng)
    found = visible_fraction(regions, views)
    torch.testing.assert_close(found, counted(regions, views), equal_nan=True)


def test_in_view_at_its_limits():
    fraction = torch.tensor([math.nan, 0.0, 1e-4, 0.0999, 0.1, 0.5, 0.5001, 1.0])
    assert in_view(fraction).tolist() == [False] * 4 + [True] * 4
    assert in_view(fraction, 0.0).tolist() == [False] * 2 + [True] * 6  # any pixel
    assert in_view(fraction, 0.5).tolist() == [False] * 5 + [True] * 3
