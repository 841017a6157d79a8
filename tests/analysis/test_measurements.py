"""Finished runs are measured, and what has been kept is one tidy table."""

import math

import pandas as pd
import pytest
import torch

from spcl_lib import HeatmapBank, Views
from spcl_lib.analysis.measurements import kept, presence_in_views, score, visible_heat
from spcl_lib.pooling import MEAN_POOLING
from spcl_lib.runs.run import run
from spcl_lib.runs.settings import make_config
from spcl_lib.system import paths


@pytest.fixture
def configs(results, tiny):
    """Finished runs of AN, CL and SCL with crops from 10 %, and of AN with smaller ones."""
    cases = [("an", 0.1), ("cl", 0.1), ("scl", 0.1), ("an", 0.05)]
    found = [make_config("scenes", m, 0, "smoke", tiny | {"scale_min": s}) for m, s in cases]
    for config in found:
        run(config)
    return found


def test_all_is_measured_once_for_crops_from_10_percent(configs, make, tmp_path, monkeypatch):
    found = make.measure(configs)
    assert list(found.columns) == list(make.COLUMNS) and set(found.seed) == {0}
    assert not found.duplicated(list(make.COLUMNS[:-1])).any() and not found.value.isna().any()
    assert set(found[found.measure == "mAP"].scale) == {0.1, 0.05}
    wrong = found[found.measure == "wrong"].set_index("scale").value
    assert list(wrong.index) == list(make.SCALES) and wrong[1.0] == 0 < wrong[0.05]
    ranked = found[found.measure == "AUROC"]
    assert set(zip(ranked.method, ranked.source, ranked["read"], strict=True)) == {
        ("an", "label", "whole"), ("cl", "average", "whole"), ("scl", "heatmap", "whole"),
        ("scl", "heatmap", "view"), *(("scl", "heatmap", f"e={e}") for e in ("0.25", "0.5", "1")),
    }  # fmt: skip
    with (tmp_path / "crop-recovery-scenes-smoke.csv").open("w") as file:
        file.write("# how it was made\n")
        found.to_csv(file, index=False)
    monkeypatch.setattr(paths, "reference", lambda: tmp_path)
    pd.testing.assert_frame_equal(kept(), found, check_dtype=False)


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
    """Two images of 8 x 8 with class 0 in the left half and class 1 in the right."""
    regions = torch.zeros(2, 2, 8, 8, dtype=torch.bool)
    regions[:, 0, :, :4] = True
    regions[:, 1, :, 4:] = True
    return regions


def test_heatmaps_are_read_through_the_view_and_averages_whole(halves):
    indices, views = torch.tensor([0, 1, 1]), views_of(LEFT, RIGHT, WHOLE)
    bank = perfect_bank(halves)
    expected = MEAN_POOLING.presence(*bank.read(indices, views, 4))
    assert torch.equal(presence_in_views(bank, indices, views, 4, MEAN_POOLING), expected)
    assert expected[0, 0] > 0.8 and expected[0, 1] < 0.1  # the left half shows class 0 only
    flat = HeatmapBank.of(
        torch.tensor([[10, 20], [30, 40]], dtype=torch.uint8)[..., None, None],
        torch.ones(2, 1, 1, dtype=torch.bool),
    )
    found = presence_in_views(flat, indices, views, 4, MEAN_POOLING) * 255
    torch.testing.assert_close(found, torch.tensor([[10.0, 20], [30, 40], [30, 40]]))


def test_the_visible_share_of_the_heat_by_hand(halves):
    bank, indices = perfect_bank(halves), torch.tensor([0, 0, 0])
    found = visible_heat(bank, indices, views_of(WHOLE, LEFT, RIGHT))
    high = HIGH**2 / (HIGH**2 + LOW**2)
    torch.testing.assert_close(found, torch.tensor([[1, 1], [high, 1 - high], [1 - high, high]]))
    cold = HeatmapBank.of(torch.zeros(1, 2, 8, 8, dtype=torch.uint8), torch.ones(1, 8, 8).bool())
    assert (visible_heat(cold, indices[:1], views_of(LEFT)) == 0).all()


def test_a_score_is_a_mean_over_the_classes_that_have_both_answers():
    target = torch.tensor([[0.9, 0.1], [0.2, 0.3], [0.5, 0.6]])
    truth = torch.tensor([[True, True], [False, True], [True, True]])
    every = torch.ones_like(truth)
    assert score(target, truth, every) == 100  # class 1 does not count
    asked = every & torch.tensor([[True, True], [True, True], [False, True]])
    assert score(-target, truth, asked) == 0
    assert math.isnan(score(target, truth, ~every))
