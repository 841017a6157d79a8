"""Crop recovery is scored on made-up banks for which the right answer is known."""

import math

import pytest
import torch

from spcl_lib import HeatmapBank, Views
from spcl_lib.analysis import recovery
from spcl_lib.pooling import MEAN_POOLING

LEFT, RIGHT, WHOLE = (0.0, 0.0, 0.5, 1.0), (0.5, 0.0, 1.0, 1.0), (0.0, 0.0, 1.0, 1.0)
HIGH, LOW = 230, 13  # stored probabilities, about 0.9 and 0.05


def views_of(*boxes):
    return Views(torch.tensor(boxes), torch.zeros(len(boxes), dtype=torch.bool))


def perfect_bank(regions):
    """A bank whose heatmaps are high exactly where the regions (N, C, W, W) are."""
    heatmaps = torch.where(regions, HIGH, LOW).to(torch.uint8)
    return HeatmapBank.of(heatmaps, torch.ones(len(regions), *regions.shape[2:], dtype=torch.bool))


@pytest.fixture
def halves():
    """Two images of 8 x 8 with class 0 in the left half and class 1 in the right; labels 0, 1."""
    regions = torch.zeros(2, 2, 8, 8, dtype=torch.bool)
    regions[:, 0, :, :4] = True
    regions[:, 1, :, 4:] = True
    return regions, torch.eye(2, dtype=torch.bool)


def test_heatmaps_are_read_through_the_view_and_averages_whole(halves):
    regions, _ = halves
    indices, views = torch.tensor([0, 1, 1]), views_of(LEFT, RIGHT, WHOLE)
    bank = perfect_bank(regions)
    expected = MEAN_POOLING.presence(*bank.read(indices, views, 4))
    assert torch.equal(recovery.presence_in_views(bank, indices, views, 4), expected)
    assert expected[0, 0] > 0.8 and expected[0, 1] < 0.1  # the left half shows class 0 only
    flat = HeatmapBank.of(
        torch.tensor([[10, 20], [30, 40]], dtype=torch.uint8)[..., None, None],
        torch.ones(2, 1, 1, dtype=torch.bool),
    )
    found = recovery.presence_in_views(flat, indices, views, 4) * 255
    torch.testing.assert_close(found, torch.tensor([[10.0, 20], [30, 40], [30, 40]]))


def test_many_views_are_read_in_parts():
    rng = torch.Generator().manual_seed(0)
    bank = perfect_bank(torch.rand(50, 3, 6, 6, generator=rng) < 0.5)
    indices = torch.randint(50, (2500,), generator=rng)
    views = Views.sample(2500, (0.1, 1.0), generator=rng)
    expected = MEAN_POOLING.presence(*bank.read(indices, views, 4))
    torch.testing.assert_close(recovery.presence_in_views(bank, indices, views, 4), expected)


def test_the_visible_share_of_the_heat_by_hand(halves):
    regions, _ = halves
    bank, indices = perfect_bank(regions), torch.tensor([0, 0, 0])
    found = recovery.visible_heat(bank, indices, views_of(WHOLE, LEFT, RIGHT))
    high = HIGH**2 / (HIGH**2 + LOW**2)
    torch.testing.assert_close(found, torch.tensor([[1, 1], [high, 1 - high], [1 - high, high]]))
    cold = HeatmapBank.of(torch.zeros(1, 2, 8, 8, dtype=torch.uint8), torch.ones(1, 8, 8).bool())
    assert (recovery.visible_heat(cold, indices[:1], views_of(LEFT)) == 0).all()


def test_a_score_is_a_mean_over_the_classes_that_have_both_answers():
    target = torch.tensor([[0.9, 0.1], [0.2, 0.3], [0.5, 0.6]])
    truth = torch.tensor([[True, True], [False, True], [True, True]])
    every = torch.ones_like(truth)
    assert recovery.score(target, truth, every)["AUROC"] == 100  # class 1 does not count
    asked = every & torch.tensor([[True, True], [True, True], [False, True]])
    assert recovery.score(-target, truth, asked)["AUROC"] == 0
    assert math.isnan(recovery.score(target, truth, ~every)["AUROC"])
