"""The draws keep one positive per image, from their own seed, with the stated probabilities."""

import random

import numpy as np
import pytest
import torch

from spcl_lib import UserError
from spcl_lib.config import RunConfig
from spcl_lib.data.draws import draw_labels, single_label_draw
from spcl_lib.data.image_set import ImageSet, Objects

DRAWS = RunConfig.__dataclass_fields__["draw"].metadata["choices"]


def some_labels(n=400, c=6):
    labels = torch.rand(n, c, generator=torch.Generator().manual_seed(0)) < 0.4
    labels[torch.arange(n), torch.arange(n) % c] = True
    return labels


def image_set(labels, boxes=None, ids=None):
    """Full labels and boxes of images that nothing looks at."""
    n, c = labels.shape
    images = torch.zeros((n, 3, 2, 2), dtype=torch.uint8)
    ids = ids or tuple(f"{i:04d}" for i in range(n))
    return ImageSet(images, labels, tuple(f"class {i}" for i in range(c)), ids, objects=boxes)


def one_box_per_label(labels):
    """A box somewhere for every positive label."""
    image, label = labels.nonzero(as_tuple=True)
    corner = torch.rand(len(image), 4, generator=torch.Generator().manual_seed(1))
    low = corner[:, :2] * 0.9
    return Objects(image, label, torch.cat((low, low + 0.01 + corner[:, 2:] * (0.99 - low)), 1))


@pytest.mark.parametrize("draw", DRAWS)
def test_one_label_an_image_is_kept_one_of_its_own_and_its_seed_alone_decides(draw):
    labels = some_labels()
    data = image_set(labels, one_box_per_label(labels))
    drawn = []
    for elsewhere in (1, 2):
        torch.manual_seed(elsewhere), np.random.seed(elsewhere), random.seed(elsewhere)
        drawn.append(draw_labels(data, draw, 7))
    assert (drawn[0].sum(1) == 1).all() and not (drawn[0] & ~labels).any()
    assert torch.equal(*drawn)
    assert not torch.equal(drawn[0], draw_labels(data, draw, 8))


def test_each_label_of_an_image_is_as_likely():
    labels = torch.tensor([[1, 0, 1, 1, 0]] * 6000, dtype=torch.bool)
    share = draw_labels(image_set(labels), "uniform", 0).float().mean(0)
    # four standard deviations of a share of 1/3 among 6,000
    torch.testing.assert_close(share, torch.tensor([1, 0, 1, 1, 0]) / 3, atol=0.025, rtol=0)


def test_the_uniform_draw_stays_what_finished_runs_saw():
    labels = torch.rand(12, 6, generator=torch.Generator().manual_seed(5)) < 0.5
    labels[:, 0] = True
    expected = [1, 0, 0, 4, 1, 1, 5, 0, 1, 3, 0, 5]
    assert single_label_draw(labels, 3).int().argmax(1).tolist() == expected
    assert torch.equal(draw_labels(image_set(labels), "uniform", 3), single_label_draw(labels, 3))


# A slow draw in plain Python, with NumPy's shuffle written out, gave these.
@pytest.mark.parametrize(
    ("seed", "expected"),
    [(0, [0, 0, 0, 5, 1, 3, 2, 4, 3, 0, 2, 5]), (3, [5, 0, 0, 4, 1, 2, 5, 4, 3, 0, 4, 0])],
)
def test_the_draw_of_cole_et_al_equals_a_slow_one(seed, expected):
    labels = torch.rand(12, 6, generator=torch.Generator().manual_seed(5)) < 0.5
    labels[:, 0] = labels[3] = True  # in image 3, no negative to shuffle
    labels[7] = torch.arange(6) == 4  # one positive
    ids = [f"2008_{i:06d}" for i in range(12)]
    drawn = draw_labels(image_set(labels, ids=ids), "cole", seed)
    assert drawn.int().argmax(1).tolist() == expected
    turned = image_set(labels.flip(0), ids=ids[::-1])  # the ids decide, not the order they come in
    assert torch.equal(draw_labels(turned, "cole", seed).flip(0), drawn)


# One image: class 0 has two boxes, 1 one in the centre, 2 none, 3 a box but is not positive.
BOXES = torch.tensor([[0, 0, 0.2, 0.5], [0.5, 0, 1, 0.2], [0.1, 0.2, 0.9, 0.7], [0, 0, 1, 1]])
LABELS = torch.tensor([[1, 1, 1, 0, 0]], dtype=torch.bool)
STATED = {
    # areas 0.1 + 0.1 and 0.4; the class without a box weighs their mean, 0.3
    "size": [0.2, 0.4, 0.3, 0, 0],
    # centres (0.1, 0.25) and (0.75, 0.1) are sqrt(0.2225) away, (0.5, 0.45) is 0.05 away
    "location": [2 / 0.2225**0.5, 20, (2 / 0.2225**0.5 + 20) / 2, 0, 0],
}


def biased(n):
    """`n` images, each with the objects above."""
    image = torch.arange(n).repeat_interleave(4)
    boxes = Objects(image, torch.tensor([0, 0, 1, 3]).repeat(n), BOXES.repeat(n, 1))
    return image_set(LABELS.repeat(n, 1), boxes)


@pytest.mark.parametrize("draw", STATED)
def test_labels_are_drawn_in_proportion_to_their_weights(draw):
    weights = torch.tensor(STATED[draw])
    share = draw_labels(biased(6000), draw, 0).float().mean(0)
    # four standard deviations of a share of 1/2, the widest there is, among 6,000
    torch.testing.assert_close(share, weights / weights.sum(), atol=0.026, rtol=0)


def test_a_data_set_without_boxes_says_which_draws_it_can_do():
    with pytest.raises(UserError, match="'size' needs the boxes.*draw=uniform"):
        draw_labels(image_set(some_labels()), "size", 0)
