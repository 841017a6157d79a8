"""Views agree with torchvision's sampling, and with the slow reference's crop and its inverse."""

import numpy as np
import pytest
import slow_reference as slow
import torch
from torch.utils.data import DataLoader
from torchvision.transforms import RandomResizedCrop, v2

from spcl_lib import RandomView, Views

KINDS = ("random", "tiny", "border", "strip", "whole")


def boxes_of(kind, count, seed=0):
    """Views of one kind, every other one flipped."""
    rng = np.random.default_rng((KINDS.index(kind), seed))
    low, high = {"tiny": (0.004, 0.06), "strip": (0.9, 1.0)}.get(kind, (0.2, 0.9))
    sizes = rng.uniform(low, high, (count, 2))
    if kind == "strip":
        sizes[:, rng.integers(2)] = rng.uniform(0.02, 0.1, count)
    corners = rng.uniform(0, 1, (count, 2)) * (1 - sizes)
    if kind == "border":  # flush with the left or right, and with the top or bottom
        corners = rng.integers(0, 2, (count, 2)) * (1 - sizes)
    boxes = np.concatenate((corners, np.minimum(corners + sizes, 1)), 1)
    if kind == "whole":
        boxes = np.tile([0.0, 0.0, 1.0, 1.0], (count, 1))
    flipped = torch.arange(count) % 2 == 1
    return Views(torch.tensor(boxes, dtype=torch.float32), flipped)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("height", "width", "grid", "size"), [(9, 9, 4, 9), (6, 11, 3, 28), (1, 1, 5, 1)]
)
def test_crop_and_uncrop_are_the_slow_reference(kind, height, width, grid, size):
    views = boxes_of(kind, 6)
    images = torch.rand(6, 2, height, width, generator=torch.Generator().manual_seed(1))
    maps = torch.rand(6, 2, grid, grid, generator=torch.Generator().manual_seed(1))
    cropped, (full, visible) = views.crop(images, grid), views.uncrop(maps, size)
    assert cropped.shape == (6, 2, grid, grid) and full.shape == (6, 2, size, size)
    assert torch.equal(visible, views.visible(size)) and visible.shape == (6, 1, size, size)
    for i, k in np.ndindex(6, 2):
        view = views.boxes[i], views.flipped[i]
        expected = slow.crop(images[i, k].numpy(), *view, grid)
        np.testing.assert_allclose(cropped[i, k], expected, atol=2e-5)
        expected = slow.uncrop(maps[i, k].numpy(), *view, size)
        shown = ~np.isnan(expected)
        np.testing.assert_array_equal(visible[i, 0], shown)
        np.testing.assert_allclose(full[i, k].numpy()[shown], expected[shown], atol=2e-4)


def test_the_two_matrices_are_the_view_and_half_precision_and_autocast_lose_nothing():
    """T_v(H) = Y @ H @ X.mT, whatever the sides of H; no row has more than two weights."""
    views, maps = boxes_of("random", 6), torch.rand(6, 2, 9, 5)
    rows, columns = views.axes(4, 9, 5)
    expected = rows[:, None] @ maps @ columns.mT[:, None]
    torch.testing.assert_close(views.crop(maps, 4), expected)
    for matrix in (rows, columns):
        torch.testing.assert_close(matrix.sum(2), torch.ones(6, 4))
        assert (matrix > 0).sum(2).max() <= 2
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(views.crop(maps, 4), expected)
    half = views.crop(maps.half(), 4)
    assert half.dtype == torch.float16
    torch.testing.assert_close(half.float(), expected, atol=1e-3, rtol=0)


def farthest_apart(a, b):
    """Kolmogorov-Smirnov distance of two samples, over what 1 of 100 samples passes by chance."""
    every = np.sort(np.concatenate((a, b)))
    below = [np.searchsorted(np.sort(x), every, "right") / len(x) for x in (a, b)]
    return np.abs(below[0] - below[1]).max() / (1.63 * np.sqrt(1 / len(a) + 1 / len(b)))


@pytest.mark.parametrize(
    ("scale", "ratio"), [((0.25, 1.0), (3 / 4, 4 / 3)), ((0.6, 1.0), (0.5, 3.0))]
)
def test_views_are_distributed_as_torchvisions(scale, ratio):
    torch.manual_seed(0)
    image = torch.empty(1, 2000, 2000)
    boxes = [RandomResizedCrop.get_params(image, scale, ratio) for _ in range(2000)]
    theirs = np.array([(w, h) for _, _, h, w in boxes]) / 2000
    views = Views.sample(8000, scale, ratio, generator=torch.Generator().manual_seed(0))
    sizes = views.boxes[:, 2:] - views.boxes[:, :2]
    ours = sizes.double().numpy()
    assert farthest_apart(theirs.prod(1), ours.prod(1)) < 1
    assert farthest_apart(theirs[:, 0] / theirs[:, 1], ours[:, 0] / ours[:, 1]) < 1
    place = (views.boxes[:, :2] / (1 - sizes))[(sizes < 0.95).all(1)].numpy()
    for axis in (0, 1):  # uniform where the box fits
        assert farthest_apart(place[:, axis], np.linspace(0, 1, 8000)) < 1


@pytest.mark.parametrize("ratio", [(2.0, 3.0), (0.2, 0.5), (0.9, 1.5)])
def test_where_no_crop_fits_the_fallback_is_torchvisions_central_crop(ratio):
    image, scale = torch.empty(1, 1000, 1000), (1.0, 1.0)
    top, left, height, width = RandomResizedCrop.get_params(image, scale, ratio)
    expected = torch.tensor([left, top, left + width, top + height]) / 1000
    views = Views.sample(16, scale, ratio, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(views.boxes, expected.repeat(16, 1), atol=1e-3, rtol=0)


@pytest.mark.parametrize(
    "box",
    [[0.2, 0.2, 0.2, 0.6], [0.1, 0.2, float("nan"), 0.9]],  # the first has no width
)
def test_impossible_views_are_refused(box):
    with pytest.raises(ValueError, match="box"):
        Views(torch.tensor([box]), torch.tensor([False]))


def test_a_random_view_samples_as_torchvision_does():
    image = torch.rand(3, 60, 90)
    resized = v2.RandomResizedCrop(32, (0.1, 0.4), (0.5, 2.0))
    torch.manual_seed(3)
    expected = resized(image)
    torch.manual_seed(3)
    crop, box, flipped = RandomView(32, (0.1, 0.4), (0.5, 2.0), flip=0.0)(image)
    assert torch.equal(crop, expected) and flipped is False
    assert box.dtype == torch.float32 and box.shape == (4,)
    left, top, right, bottom = (box * torch.tensor([90, 60, 90, 60])).round().int().tolist()
    assert torch.equal(v2.functional.resize(image[:, top:bottom, left:right], [32, 32]), crop)


class OneImage:
    """A data set whose images differ by a constant, so that a crop tells its image."""

    def __init__(self):
        self.view = RandomView(8, (0.2, 0.4))

    def __len__(self):
        return 24

    def __getitem__(self, index):
        return self.view(torch.full((3, 32, 32), float(index))), index


def test_several_workers_draw_other_views_and_make_batches_of_them():
    torch.manual_seed(0)
    loader, shown = DataLoader(OneImage(), batch_size=4, num_workers=2), []
    for (crops, boxes, flipped), indices in loader:
        assert len(Views(boxes, flipped)) == 4 and not (boxes == boxes[0]).all()
        torch.testing.assert_close(crops.mean((1, 2, 3)), indices.float())
        shown += boxes.tolist()
    assert len(shown) == 24 and len(set(map(tuple, shown))) == 24
    again = [boxes.tolist() for (_, boxes, _), _ in loader]
    assert sum(again, []) != shown  # the next epoch has other views
