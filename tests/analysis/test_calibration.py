"""AUROC, AP and calibration are checked by hand, by brute force, and with scikit-learn."""

import math

import pytest
import torch

from spcl_lib.analysis import calibration


def pairs(scores, truth):
    """AUROC by its definition: every yes against every no."""
    yes, no = scores[truth].tolist(), scores[~truth].tolist()
    return 100 * sum((y > n) + 0.5 * (y == n) for y in yes for n in no) / (len(yes) * len(no))


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("levels", [1, 2, 5, 1000])
def test_auroc_is_the_share_of_pairs_in_order_with_ties_as_half(seed, levels):
    rng = torch.Generator().manual_seed(seed)
    scores = torch.randint(levels, (57,), generator=rng).float() / levels
    truth = torch.rand(57, generator=rng) < 0.3
    assert calibration.auroc(scores, truth) == pytest.approx(pairs(scores, truth))


def test_auroc_by_hand():
    truth = torch.tensor([True, True, False, False])
    assert calibration.auroc(torch.tensor([4.0, 3, 2, 1]), truth) == 100
    assert calibration.auroc(torch.tensor([1.0, 2, 3, 4]), truth) == 0
    assert calibration.auroc(torch.ones(4), truth) == 50
    assert calibration.auroc(torch.tensor([4.0, 2, 2, 1]), truth) == pytest.approx(100 * 3.5 / 4)
    assert math.isnan(calibration.auroc(torch.ones(2), torch.ones(2, dtype=torch.bool)))
    assert math.isnan(calibration.auroc(torch.ones(2), torch.zeros(2, dtype=torch.bool)))


def test_scikit_learn_agrees():
    metrics = pytest.importorskip("sklearn.metrics", reason="needs scikit-learn")
    rng = torch.Generator().manual_seed(0)
    scores = torch.randint(20, (500,), generator=rng).float() / 20
    truth = torch.rand(500, generator=rng) < scores * 0.5
    assert calibration.auroc(scores, truth) == pytest.approx(
        100 * metrics.roc_auc_score(truth, scores)
    )
    expected = 100 * metrics.average_precision_score(truth, scores)
    assert calibration.average_precision(scores, truth) == pytest.approx(expected)


def test_a_constant_score_has_the_ap_of_chance():
    truth = torch.tensor([True, False, False, True, False])
    assert calibration.average_precision(torch.full((5,), 0.3), truth) == pytest.approx(40)


def test_classes_without_both_answers_do_not_count():
    scores = torch.tensor([[0.9, 0.1, 0.5], [0.2, 0.2, 0.1], [0.9, 0.7, 0.3]])
    truth = torch.tensor([[1, 1, 1], [0, 1, 0], [0, 1, 1]]).bool()
    asked = torch.ones(3, 3, dtype=torch.bool)
    # class 0: the yes (0.9) against 0.2 and a tie: 75; class 1: no "no"; class 2: both above: 100
    assert calibration.over_classes(calibration.auroc, scores, truth, asked) == pytest.approx(87.5)
    asked[2, 0] = False  # without the tie, class 0 is in order
    assert calibration.over_classes(calibration.auroc, scores, truth, asked) == pytest.approx(100)
    assert math.isnan(calibration.over_classes(calibration.auroc, scores, truth, ~asked))


def test_reliability_by_hand():
    scores = torch.tensor([0.05, 0.15, 0.19, 0.2, 0.95, 1.0])
    truth = torch.tensor([False, False, True, True, True, True])
    found = calibration.reliability(scores, truth, bins=5)
    assert found.count.tolist() == [3, 1, 0, 0, 2]  # 0.2 begins the second bin, 1 ends the last
    assert found.score[0] == pytest.approx(0.13) and found.score[4] == pytest.approx(0.975)
    assert found.share[[0, 1, 4]].tolist() == pytest.approx([1 / 3, 1, 1])
    assert found.share[2].isnan() and found.score[3].isnan()
    by_hand = 100 * (3 * (1 / 3 - 0.13) + 1 * 0.8 + 2 * 0.025) / 6
    assert found.error() == pytest.approx(by_hand)


def test_scores_that_are_what_they_say_have_a_small_error():
    rng = torch.Generator().manual_seed(1)
    scores = torch.rand(20_000, generator=rng)
    truth = torch.rand(20_000, generator=rng) < scores
    assert calibration.reliability(scores, truth).error() < 2
    assert calibration.reliability(scores / 2, truth).error() == pytest.approx(25, abs=2)


def test_wrong_inputs_are_told():
    truth = torch.ones(3, dtype=torch.bool)
    for metric in (calibration.auroc, calibration.average_precision, calibration.reliability):
        with pytest.raises(ValueError, match="bool; got"):
            metric(torch.rand(2), truth)
        with pytest.raises(ValueError, match="bool; got"):
            metric(torch.rand(3), truth.float())
    with pytest.raises(ValueError, match="probabilities"):
        calibration.reliability(torch.tensor([0.1, 1.5, 0.2]), truth)
    assert math.isnan(calibration.reliability(torch.rand(0), truth[:0]).error())
