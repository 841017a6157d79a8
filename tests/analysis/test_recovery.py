"""Crop recovery is measured on made-up banks for which the right answer is known."""

import math

import pytest
import torch

from spcl_lib import HeatmapBank, Views
from spcl_lib.analysis import calibration, recovery
from spcl_lib.analysis.visibility import in_view, visible_fraction
from spcl_lib.pooling import MEAN_POOLING

LEFT, RIGHT, WHOLE = (0.0, 0.0, 0.5, 1.0), (0.5, 0.0, 1.0, 1.0), (0.0, 0.0, 1.0, 1.0)
AT = {"fall": recovery.FALL}
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


# --- what is said ---------------------------------------------------------------------------------


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
    assert torch.equal(recovery.presence_in_images(flat, indices) * 255, found)


def test_many_views_are_read_in_parts():
    rng = torch.Generator().manual_seed(0)
    bank = perfect_bank(torch.rand(50, 3, 6, 6, generator=rng) < 0.5)
    indices = torch.randint(50, (2500,), generator=rng)
    views = Views.sample(2500, (0.1, 1.0), generator=rng)
    expected = MEAN_POOLING.presence(*bank.read(indices, views, 4))
    torch.testing.assert_close(recovery.presence_in_views(bank, indices, views, 4), expected)


# --- how good it is -------------------------------------------------------------------------------


def test_a_perfect_heatmap_ranks_perfectly_and_a_raw_label_does_not_rank_at_all(halves):
    regions, observed = halves
    indices = torch.tensor([0, 1, 0, 1])
    views = views_of(LEFT, LEFT, RIGHT, RIGHT)
    fraction, labels = visible_fraction(regions[indices], views), observed[indices]
    target = recovery.presence_in_views(perfect_bank(regions), indices, views, 4)
    raw = labels.float()
    for row in recovery.score_target(target, fraction, labels):
        assert row["AUROC"] == 100 and row["AP"] == 100 and row["AP_wrong"] == 100
        assert row["chance"] == 50
        assert row["ECE"] < 15
    for row in recovery.score_target(raw, fraction, labels):
        if row["group"] != "all":
            assert row["AUROC"] == 50 and row["AP"] == 50 and row["ECE"] == 50
        else:  # each class: labelled and in view, labelled and not, not labelled and in view, ...
            assert row["AUROC"] == 50


def mean_over(pairs, metric):
    return pytest.approx(sum(metric(s, t) for s, t in pairs) / len(pairs))


def test_judged_counts_what_its_parts_count():
    rng = torch.Generator().manual_seed(3)
    target, fraction = torch.rand(400, 3, generator=rng), torch.rand(400, 3, generator=rng)
    fraction[torch.rand(400, 3, generator=rng) < 0.5] = math.nan
    fraction[torch.rand(400, 3, generator=rng) < 0.2] = 0.0
    observed = torch.zeros(400, 3, dtype=torch.bool)
    observed[torch.arange(400), torch.randint(3, (400,), generator=rng)] = True
    rows = {(r["group"], r["least"]): r for r in recovery.score_target(target, fraction, observed)}
    assert len(rows) == 9
    for (name, least), row in rows.items():
        truth = in_view(fraction, least)
        asked = {"labelled": observed, "unlabelled": ~observed, "all": observed | True}[name]
        by_class = [(target[asked[:, c], c], truth[asked[:, c], c]) for c in range(3)]
        assert row["AUROC"] == mean_over(by_class, calibration.auroc)
        assert row["AP"] == mean_over(by_class, calibration.average_precision)
        assert row["chance"] == mean_over(by_class, lambda _, t: 100 * float(t.float().mean()))
        opposite = [(-s, ~t) for s, t in by_class]
        assert row["AP_wrong"] == mean_over(opposite, calibration.average_precision)
        pooled = calibration.reliability(target[asked], truth[asked])
        assert row["ECE"] == pytest.approx(pooled.error())
    (curve,) = [
        r for r in recovery.reliability_rows(target, fraction, observed) if r["group"] == "all"
    ]
    assert sum(curve["count"]) == 1200 and len(curve["score"]) == 10


def test_means_by_visibility_by_hand():
    target = torch.tensor([[0.1, 0.2], [0.3, 0.4], [0.5, 0.6], [0.7, 0.8]])
    fraction = torch.tensor([[0.0, math.nan], [0.0, 0.05], [0.3, math.nan], [1.0, 0.6]])
    observed = torch.tensor([[True, False]] * 4)
    found = recovery.target_by_visibility(target, fraction, observed)
    rows = {(r["group"], r["visibility"]): (r["target"], r["count"]) for r in found}
    assert {key: count for key, (_, count) in rows.items()} == {
        ("labelled", "cut out"): 2, ("labelled", "10 to 50 %"): 1, ("labelled", "above 50 %"): 1,
        ("unlabelled", "under 10 %"): 1, ("unlabelled", "above 50 %"): 1,
        ("unlabelled", recovery.NOT_THERE): 2,
    }  # fmt: skip
    assert rows["labelled", "cut out"][0] == pytest.approx(0.2)
    assert rows["unlabelled", recovery.NOT_THERE][0] == pytest.approx(0.4)


# --- decisions ------------------------------------------------------------------------------------


def test_a_perfect_heatmap_corrects_every_wrong_label_and_spoils_none(halves):
    regions, observed = halves
    indices, views = torch.tensor([0, 0, 1, 1]), views_of(LEFT, RIGHT, LEFT, RIGHT)
    fraction = visible_fraction(regions[indices], views)
    (found,) = recovery.count_corrections(
        perfect_bank(regions), indices, views, fraction, observed[indices], 4
    )
    assert found == {"corrected": 100, "spoiled": 0, "wrong": 2, "right": 2} | AT
    inverted = perfect_bank(~regions)
    (found,) = recovery.count_corrections(inverted, indices, views, fraction, observed[indices], 4)
    assert found == {"corrected": 0, "spoiled": 100, "wrong": 2, "right": 2} | AT


def test_averages_without_a_place_never_decide(halves):
    regions, observed = halves
    indices, views = torch.tensor([0, 0, 1, 1]), views_of(LEFT, RIGHT, LEFT, RIGHT)
    fraction = visible_fraction(regions[indices], views)
    flat = HeatmapBank.of(
        torch.full((2, 2, 1, 1), 99, dtype=torch.uint8), torch.ones(2, 1, 1, dtype=torch.bool)
    )
    (found,) = recovery.count_corrections(flat, indices, views, fraction, observed[indices], 4)
    assert found == {"corrected": 0, "spoiled": 0, "wrong": 2, "right": 2} | AT


def test_a_label_without_a_known_region_is_not_decided_on(halves):
    regions, observed = halves
    regions[1, 1] = False  # the labelled object of the second image has no region
    indices, views = torch.tensor([0, 1]), views_of(RIGHT, LEFT)
    fraction = visible_fraction(regions[indices], views)
    (found,) = recovery.count_corrections(
        perfect_bank(regions), indices, views, fraction, observed[indices], 4
    )
    assert found["wrong"] == 1 and found["right"] == 0 and math.isnan(found["spoiled"])


def test_where_nothing_has_been_seen_there_is_no_decision(halves):
    regions, observed = halves
    bank = perfect_bank(regions)
    bank.seen[:, :, 4:] = False  # the right half has never been in a crop
    indices, views = torch.tensor([0]), views_of(RIGHT)
    fraction = visible_fraction(regions[indices], views)
    (found,) = recovery.count_corrections(bank, indices, views, fraction, observed[indices], 4)
    assert found["corrected"] == 0 and found["wrong"] == 1


def test_the_rule_is_a_fall_below_a_share_of_the_whole():
    target, whole = torch.tensor([[0.0, 0.19, 0.2, 0.5]]), torch.full((1, 4), 0.4)
    assert recovery.is_absent(target, whole, 0.5).tolist() == [[False, True, False, False]]
    assert recovery.is_absent(target, whole, 1.0).tolist() == [[False, True, True, False]]
    assert recovery.FALL in recovery.FALLS


def test_a_larger_share_corrects_and_spoils_more():
    rng = torch.Generator().manual_seed(0)
    regions = torch.rand(30, 2, 8, 8, generator=rng) < 0.2
    noise = torch.rand(30, 2, 8, 8, generator=rng) < 0.4
    observed = torch.eye(2, dtype=torch.bool).repeat(15, 1)
    views = Views.sample(30, (0.1, 0.3), generator=rng)
    fraction = visible_fraction(regions, views)
    bank, every = perfect_bank(regions | noise), torch.arange(30)
    rows = recovery.count_corrections(bank, every, views, fraction, observed, 4, recovery.FALLS)
    assert [r["fall"] for r in rows] == sorted(recovery.FALLS)
    for column in ("corrected", "spoiled"):
        values = [r[column] for r in rows]
        assert values == sorted(values) and values[0] < values[-1]
