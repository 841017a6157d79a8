"""ImageSet, its boxes and regions, and the examples in docstrings."""

import doctest

import pytest
import torch

from spcl_lib import bank, views
from spcl_lib.data import scenes
from spcl_lib.data.draws import objects_of_map
from spcl_lib.data.image_set import PARTS, ImageSet, Objects, hold_out


def test_the_held_out_parts_together_have_all_images():
    splits = [hold_out(100, part) for part in range(PARTS)]
    for stay, held in splits:
        assert (len(stay), len(held)) == (60, 40)
        assert torch.cat([stay, held]).sort().values.tolist() == list(range(100))
    assert len(torch.cat([held for _, held in splits]).unique()) == 100
    assert hold_out(100)[1].tolist() == splits[0][1].tolist()
    first = [held[:3].tolist() for _, held in splits]
    assert first == [[1, 2, 5], [0, 4, 7], [3, 6, 9]]  # kept choices rest on these very parts


def some_boxes() -> ImageSet:
    """Three images of 4 x 4 pixels, the last without an object."""
    box = torch.tensor([[0, 0, 0.5, 0.5], [0.5, 0.5, 1, 1], [0.25, 0, 0.75, 1]])
    boxes = Objects(torch.tensor([0, 0, 1]), torch.tensor([1, 1, 0]), box)
    images = torch.arange(3, dtype=torch.uint8).view(3, 1, 1, 1).expand(3, 3, 4, 4)
    labels = torch.eye(3, 2).bool()
    return ImageSet(images, labels, ("a", "b"), tuple("xyz"), objects=boxes, ignored=~labels)


def test_a_subset_keeps_everything_together_and_renumbers_the_boxes():
    whole, part = some_boxes(), some_boxes().subset(torch.tensor([2, 1, 0]))
    assert len(part) == 3 and part.images[:, 0, 0, 0].tolist() == [2, 1, 0]
    assert part.ids == ("z", "y", "x") and part.classes == whole.classes
    assert torch.equal(part.labels, whole.labels.flip(0))
    assert torch.equal(part.ignored, whole.ignored.flip(0))
    boxes = part.objects
    assert boxes.image.tolist() == [1, 2, 2] and boxes.label.tolist() == [0, 1, 1]
    assert boxes.box[0].tolist() == [0.25, 0, 0.75, 1]


def test_regions_of_boxes_are_their_pixels():
    regions = some_boxes().regions(torch.tensor([1, 0, 2]))
    column, corners = torch.zeros(4, 4, dtype=torch.bool), torch.zeros(4, 4, dtype=torch.bool)
    column[:, 1:3] = True
    corners[:2, :2] = corners[2:, 2:] = True
    assert regions.shape == (3, 2, 4, 4) and regions.sum() == 16
    assert torch.equal(regions[0, 0], column) and torch.equal(regions[1, 1], corners)


def test_regions_of_masks_are_exact():
    data = scenes.make_scenes(5, "val", 32)
    regions = data.regions(torch.tensor([4, 2]))
    for c in range(len(data.classes)):
        assert torch.equal(regions[0, c], data.class_map[4] == c + 1)


def test_the_boxes_of_a_class_map_touch_the_outermost_pixels_of_every_class():
    class_map = torch.zeros((3, 4, 4), dtype=torch.uint8)
    class_map[0, 1:3, 0] = 2
    class_map[0, 3, 2] = 2  # a second object of the class: one box holds both
    class_map[2, 0, 3] = 2
    class_map[2, 3, 1:] = 1
    boxes = objects_of_map(class_map, 3)
    assert boxes.image.tolist() == [0, 2, 2] and boxes.label.tolist() == [1, 0, 1]
    assert (boxes.box * 4).tolist() == [[0, 1, 3, 4], [1, 3, 4, 4], [3, 0, 4, 1]]


@pytest.mark.parametrize("module", [views, bank])
def test_the_examples_in_the_docstrings_are_true(module):
    failed, tried = doctest.testmod(module)
    assert tried > 0 and failed == 0
