"""Views agree with torchvision's sampling, and with the slow reference's crop and its inverse."""

import numpy as np
import pytest
import slow_reference as slow
import torch
from torchvision.ops import roi_align
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
@pytest.mark.parametrize(("height", "width", "size"), [(9, 9, 4), (6, 11, 7), (1, 1, 3), (5, 5, 1)])
def test_crop_is_the_slow_reference(kind, height, width, size):
    views = boxes_of(kind, 6)
    images = torch.rand(6, 2, height, width, generator=torch.Generator().manual_seed(1))
    cropped = views.crop(images, size)
    assert cropped.shape == (6, 2, size, size)
    for i in range(6):
        for k in range(2):
            expected = slow.crop(images[i, k].numpy(), views.boxes[i], views.flipped[i], size)
            np.testing.assert_allclose(cropped[i, k], expected, atol=2e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("grid", "size"), [(4, 9), (7, 16), (3, 28), (5, 1), (1, 6)])
def test_uncrop_and_visible_cells_are_the_slow_reference(kind, grid, size):
    views = boxes_of(kind, 6, seed=2)
    maps = torch.rand(6, 2, grid, grid, generator=torch.Generator().manual_seed(1))
    full, visible = views.uncrop(maps, size)
    assert full.shape == (6, 2, size, size) and visible.shape == (6, 1, size, size)
    assert torch.equal(visible, views.visible(size))
    for i in range(6):
        for k in range(2):
            expected = slow.uncrop(maps[i, k].numpy(), views.boxes[i], views.flipped[i], size)
            shown = ~np.isnan(expected)
            np.testing.assert_array_equal(visible[i, 0], shown)
            np.testing.assert_allclose(full[i, k].numpy()[shown], expected[shown], atol=2e-4)


def test_tiny_views_can_fall_between_all_centres_and_then_show_no_cell():
    views = Views(torch.tensor([[0.26, 0.26, 0.36, 0.36]]), torch.tensor([False]))
    assert not views.visible(4).any()  # centres at 0.125, 0.375, ...
    assert views.visible(5).sum() == 1  # 0.3 is one


def test_a_centre_on_the_edge_of_the_box_is_visible():
    views = Views(torch.tensor([[0.375, 0.0, 0.625, 1.0]]), torch.tensor([False]))
    assert views.visible(4)[0, 0].tolist() == [[False, True, True, False]] * 4


@pytest.mark.parametrize("kind", KINDS)
def test_crop_is_roi_align(kind):
    views = boxes_of(kind, 8)
    images = torch.rand(8, 3, 32, 20, generator=torch.Generator().manual_seed(3))
    pixels = views.boxes * torch.tensor([20.0, 32, 20, 32])
    rois = torch.cat((torch.arange(8.0)[:, None], pixels), 1)
    expected = roi_align(images, rois, 6, sampling_ratio=1, aligned=True)
    expected[views.flipped] = expected[views.flipped].flip(-1)
    torch.testing.assert_close(views.crop(images, 6), expected, atol=2e-5, rtol=0)


def test_whole_views_change_nothing():
    images = torch.rand(3, 2, 7, 7)
    torch.testing.assert_close(Views.whole(3).crop(images, 7), images, atol=1e-6, rtol=0)
    back, visible = Views.whole(3).uncrop(images, 7)
    torch.testing.assert_close(back, images, atol=1e-6, rtol=0)
    assert visible.all()


def test_a_flipped_whole_view_mirrors_left_to_right():
    images = torch.rand(1, 2, 5, 5)
    views = Views(Views.whole(1).boxes, torch.tensor([True]))
    torch.testing.assert_close(views.crop(images, 5), images.flip(3), atol=1e-6, rtol=0)


def test_a_view_cuts_out_the_pixels_of_its_box():
    images = torch.arange(64.0).view(1, 1, 8, 8)
    views = Views(torch.tensor([[0.25, 0.5, 0.75, 1.0]]), torch.tensor([False]))
    assert torch.equal(views.crop(images, 4), images[:, :, 4:8, 2:6])


def test_uint8_images_are_read_as_their_values():
    images = torch.randint(0, 256, (4, 3, 16, 16), dtype=torch.uint8)
    views = boxes_of("random", 4)
    cropped = views.crop(images, 8)
    assert cropped.dtype == torch.float32
    assert torch.equal(cropped, views.crop(images.float(), 8))


def test_views_can_be_selected():
    views = boxes_of("random", 6)
    some = views[torch.tensor([4, 1])]
    assert len(some) == 2
    assert torch.equal(some.boxes, views.boxes[[4, 1]])
    assert torch.equal(some.flipped, views.flipped[[4, 1]])


# --- sampling -------------------------------------------------------------------------------------


def torchvision_sizes(scale, ratio, count):
    """(count, 2) widths and heights, as fractions, of torchvision's crops of a square image."""
    image = torch.empty(1, 2000, 2000)
    torch.manual_seed(0)
    boxes = [RandomResizedCrop.get_params(image, scale, ratio) for _ in range(count)]
    return np.array([(w, h) for _, _, h, w in boxes]) / 2000


def farthest_apart(a, b):
    """Kolmogorov-Smirnov distance of two samples."""
    every = np.sort(np.concatenate((a, b)))
    below = [np.searchsorted(np.sort(x), every, "right") / len(x) for x in (a, b)]
    return np.abs(below[0] - below[1]).max()


@pytest.mark.parametrize(
    ("scale", "ratio"),
    [((0.25, 1.0), (3 / 4, 4 / 3)), ((0.08, 0.5), (0.5, 2.0)), ((0.6, 1.0), (0.5, 3.0))],
)
def test_areas_and_ratios_are_distributed_as_torchvisions(scale, ratio):
    theirs = torchvision_sizes(scale, ratio, 2000)
    views = Views.sample(8000, scale, ratio, generator=torch.Generator().manual_seed(0))
    ours = (views.boxes[:, 2:] - views.boxes[:, :2]).double().numpy()
    limit = 1.63 * np.sqrt(1 / 2000 + 1 / 8000)  # passed by chance in 1 of 100 samples
    assert farthest_apart(theirs.prod(1), ours.prod(1)) < limit
    assert farthest_apart(theirs[:, 0] / theirs[:, 1], ours[:, 0] / ours[:, 1]) < limit


def test_positions_are_uniform_over_where_the_box_fits():
    boxes = Views.sample(8000, generator=torch.Generator().manual_seed(0)).boxes
    free = 1 - (boxes[:, 2:] - boxes[:, :2])
    place = (boxes[:, :2] / free)[(free > 0.05).all(1)].numpy()
    uniform = np.linspace(0, 1, 8000)
    for axis in (0, 1):
        assert farthest_apart(place[:, axis], uniform) < 1.63 * np.sqrt(1 / len(place) + 1 / 8000)


@pytest.mark.parametrize("ratio", [(2.0, 3.0), (0.2, 0.5), (0.9, 1.5)])
def test_where_no_crop_fits_the_fallback_is_torchvisions_central_crop(ratio):
    image, scale = torch.empty(1, 1000, 1000), (1.0, 1.0)
    top, left, height, width = RandomResizedCrop.get_params(image, scale, ratio)
    expected = torch.tensor([left, top, left + width, top + height]) / 1000
    views = Views.sample(16, scale, ratio, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(views.boxes, expected.repeat(16, 1), atol=1e-3, rtol=0)


@pytest.mark.parametrize(("flip", "low", "high"), [(0.0, 0, 0), (1.0, 1, 1), (0.3, 0.27, 0.33)])
def test_the_share_of_flips_is_the_probability(flip, low, high):
    views = Views.sample(4000, flip=flip, generator=torch.Generator().manual_seed(0))
    assert low <= views.flipped.float().mean() <= high


def test_the_generator_alone_decides():
    one, again, other = (
        Views.sample(32, generator=torch.Generator().manual_seed(seed)) for seed in (5, 5, 6)
    )
    assert torch.equal(one.boxes, again.boxes) and torch.equal(one.flipped, again.flipped)
    assert not torch.equal(one.boxes, other.boxes)


# --- mistakes -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("boxes", "flipped"),
    [
        ([[0.2, 0.2, 0.2, 0.6]], [False]),  # no width
        ([[0.2, 0.7, 0.5, 0.6]], [False]),  # upside down
        ([[-0.1, 0.2, 0.5, 0.6]], [False]),
        ([[0.1, 0.2, 0.5, 1.1]], [False]),
        ([[0.1, 0.2, float("nan"), 0.9]], [False]),
        ([[0, 0, 1, 1]], [False]),  # integers
        ([[0.1, 0.2, 0.5]], [False]),
        ([[0.1, 0.2, 0.5, 0.6]], [False, True]),
        ([[0.1, 0.2, 0.5, 0.6]], [0]),
    ],
)
def test_impossible_views_are_refused(boxes, flipped):
    with pytest.raises(ValueError, match="box|flipped"):
        Views(torch.tensor(boxes), torch.tensor(flipped))


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("scale", (0.0, 1.0)), ("scale", (0.5, 0.4)), ("scale", (0.5, 1.5)),
        ("ratio", (0.0, 1.0)), ("ratio", (2.0, 1.0)), ("flip", 1.5), ("flip", -0.1),
    ],
)  # fmt: skip
def test_impossible_ranges_are_refused(argument, value):
    with pytest.raises(ValueError, match=argument):
        Views.sample(2, **{argument: value})


def test_a_batch_of_another_size_is_refused():
    with pytest.raises(ValueError, match=r"\(2, K, H, W\)"):
        Views.whole(2).crop(torch.rand(3, 1, 4, 4), 2)


# --- RandomView; test_readme_loop.py compares its crops with those of Views -----------------------


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


def test_a_random_view_that_always_flips_mirrors_the_crop():
    image = torch.rand(3, 32, 32)
    whole = {"scale": (1.0, 1.0), "ratio": (1.0, 1.0)}
    crop, box, flipped = RandomView(32, **whole, flip=1.0)(image)
    assert flipped is True and box.tolist() == [0, 0, 1, 1]
    torch.testing.assert_close(crop, image.flip(2))


@pytest.mark.parametrize("size", [0, 2.5, "big"])
def test_a_random_view_without_a_size_is_refused(size):
    with pytest.raises(ValueError, match="size must be a whole number"):
        RandomView(size)
