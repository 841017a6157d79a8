"""Metrics agree with their definitions; scores are the pooled maps of the network."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from spcl_lib import mean_average_precision
from spcl_lib.evaluate import (
    average_precisions,
    evaluate_scores,
    precision_recall,
    predict_maps,
    predict_scores,
    top1_accuracy,
)
from spcl_lib.pooling import Pooling


def slow_ap(scores, labels):
    """AP = sum over thresholds, highest first, of (recall gained) * precision; by counting."""
    positives, total, recall_before = sum(labels), 0.0, 0.0
    for threshold in sorted(set(scores), reverse=True):
        chosen = [label for s, label in zip(scores, labels, strict=True) if s >= threshold]
        recall, precision = sum(chosen) / positives, sum(chosen) / len(chosen)
        total += (recall - recall_before) * precision
        recall_before = recall
    return 100 * total


def random_case(seed, n=40, c=6, levels=None):
    """Scores (rounded to `levels` values, which gives ties) and labels with every class present."""
    rng = np.random.default_rng(seed)
    scores = rng.random((n, c))
    if levels:
        scores = np.floor(scores * levels) / levels
    labels = rng.random((n, c)) < 0.3
    labels[0] = True
    return torch.from_numpy(scores), torch.from_numpy(labels)


@pytest.mark.parametrize("share", [0.0, 0.3])
@pytest.mark.parametrize("levels", [None, 20, 5, 2, 1])
def test_ap_is_its_definition_with_ties_and_without_the_ignored_labels(levels, share):
    for seed in range(5):
        scores, labels = random_case(seed, levels=levels)
        ignored = torch.rand(labels.shape, generator=torch.Generator().manual_seed(seed)) < share
        ignored[0] = False
        expected = [
            slow_ap(scores[kept, c].tolist(), labels[kept, c].tolist())
            for c, kept in enumerate(~ignored.T)
        ]
        given = (scores, labels, ignored) if share else (scores, labels)
        np.testing.assert_allclose(average_precisions(*given), expected, rtol=1e-9)
        assert mean_average_precision(*given) == pytest.approx(np.mean(expected))
    whole = (20 * scores).round().to(torch.int64)
    assert mean_average_precision(whole, labels) == mean_average_precision(whole / 20, labels)


def test_classes_without_a_positive_are_left_out_and_counted():
    scores, labels = random_case(0)
    labels[:, [1, 4]] = False
    ap = average_precisions(scores, labels)
    assert ap.isnan().tolist() == [False, True, False, False, True, False]
    kept = [0, 2, 3, 5]
    of_kept = mean_average_precision(scores[:, kept], labels[:, kept])
    assert mean_average_precision(scores, labels) == pytest.approx(of_kept)
    metrics = evaluate_scores(scores, labels, tuple("abcdef"))
    assert metrics["classes_without_positive"] == 2
    right = labels.gather(1, scores.topk(3, 1).indices).sum()
    assert metrics["top_3"]["OP"] == pytest.approx(100 * int(right) / (3 * len(scores)))
    assert metrics["AP"]["b"] is None and metrics["AP"]["e"] is None
    assert math.isnan(mean_average_precision(scores, torch.zeros_like(labels)))


METRICS = {
    "average_precisions": average_precisions,
    "mean_average_precision": mean_average_precision,
    "top1_accuracy": top1_accuracy,
    "evaluate_scores": lambda s, z, i=None: evaluate_scores(s, z, tuple("abc")[: s.shape[1]], i),
}


@pytest.mark.parametrize("name", METRICS)
def test_scores_that_are_not_finite_and_labels_that_are_neither_0_nor_1_are_refused(name):
    with pytest.raises(ValueError, match="scores must be finite"):
        METRICS[name](torch.tensor([[0.5, 0.1], [math.nan, 0.2]]), torch.eye(2))
    with pytest.raises(ValueError, match="labels must be 0 or 1"):  # -1 is no "absent"
        METRICS[name](torch.rand(2, 2), 2 * torch.eye(2) - 1)


def test_metrics_of_nothing_are_nan():
    nothing, labels = torch.zeros(0, 3), torch.zeros(0, 3)
    assert average_precisions(nothing, labels).isnan().tolist() == [True] * 3
    assert math.isnan(mean_average_precision(nothing, labels))
    assert math.isnan(top1_accuracy(nothing, labels))
    metrics = evaluate_scores(nothing, labels, tuple("abc"))
    assert math.isnan(metrics["mAP"]) and metrics["AP"] == dict.fromkeys("abc")
    assert metrics["classes_without_positive"] == 3


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_minus_zero_is_zero(dtype):
    scores = torch.tensor([[0.75, -0.0], [0.5, 0.0], [0.25, -1.0]], dtype=dtype)
    labels = torch.tensor([[1, 0], [0, 1], [1, 0]])
    expected = [100 * (1 + 2 / 3) / 2, 50.0]
    assert average_precisions(scores, labels).tolist() == pytest.approx(expected)


def test_precision_and_recall_by_hand():
    labels = torch.tensor([[1, 0, 0, 0], [1, 1, 0, 0], [0, 1, 0, 0], [1, 0, 1, 0]])
    chosen = torch.tensor([[1, 1, 0, 0], [1, 0, 0, 1], [0, 1, 0, 0], [0, 0, 0, 1]])
    # Per class: a 2 right of 2 chosen, of 3; b 1 of 2, of 2; c never chosen, of 1; d has none.
    cp, cr = (1 + 1 / 2 + 0) / 3, (2 / 3 + 1 / 2 + 0) / 3
    op, recall = 3 / 6, 3 / 6
    expected = {
        "CP": cp, "CR": cr, "CF1": 2 * cp * cr / (cp + cr), "OP": op, "OR": recall, "OF1": 0.5,
    }  # fmt: skip
    got = precision_recall(chosen, labels)
    assert got == {name: pytest.approx(100 * value) for name, value in expected.items()}


def test_top_1_accuracy_is_over_the_images_that_have_a_label():
    scores = torch.tensor([[0.1, 0.9, 0.5], [0.7, 0.2, 0.3], [0.2, 0.2, 0.6], [0.9, 0.1, 0.0]])
    labels = torch.tensor([[0, 1, 1], [0, 1, 1], [0, 0, 0], [1, 0, 1]], dtype=torch.bool)
    assert top1_accuracy(scores, labels) == pytest.approx(100 * 2 / 3)
    assert math.isnan(top1_accuracy(scores, torch.zeros_like(labels)))


def test_ignored_labels_by_hand():
    scores = torch.tensor([[0.9, 0.6, 0.1], [0.8, 0.7, 0.2], [0.7, 0.1, 0.3], [0.6, 0.2, 0.6]])
    labels = torch.tensor([[1, 0, 0], [0, 1, 0], [1, 0, 0], [0, 0, 1]], dtype=torch.bool)
    ignored = torch.zeros_like(labels)
    ignored[1, 0] = ignored[0, 1] = ignored[3, 2] = True  # the last one is the class's only label
    metrics = evaluate_scores(scores, labels, tuple("abc"), ignored)
    # a: hit, (ignored), hit, miss; without the ignored one AP is 1, with it (1 + 2/3) / 2.
    assert metrics["AP"] == {"a": 100, "b": 100, "c": None}
    assert metrics["mAP"] == 100 and metrics["classes_without_positive"] == 1
    # Chosen at 0.5 and counted: a 2 right of 3; b 1 of 1; c none. All 3 positives are found.
    half = {"CP": (2 / 3 + 1) / 2, "CR": 1, "OP": 3 / 4, "OR": 1, "OF1": 6 / 7}
    assert {k: metrics["at_0.5"][k] for k in half} == {
        k: pytest.approx(100 * v) for k, v in half.items()
    }
    assert metrics["top1_accuracy"] == pytest.approx(100)  # images 0 and 2; 1 and 3 are left out
    # Of three classes all are among the highest three: 9 of the 12 places count.
    assert metrics["top_3"]["OP"] == pytest.approx(100 * 3 / 9)


class Brightness(nn.Module):
    """Score maps that are the channels of the (normalised) image, at half its resolution."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.norm = nn.BatchNorm2d(3)

    def forward(self, images):
        return nn.functional.avg_pool2d(self.scale * self.norm(images), 2)


def random_images(n=300, side=8):
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (n, 3, side, side), dtype=torch.uint8, generator=generator)


def test_maps_are_the_models_on_whole_images_and_the_mode_is_left_as_it_was():
    model, images = Brightness(), random_images()
    for training in (True, False):
        model.train(training)
        model.norm.train(not training)  # as a frozen part may be
        before = model.norm.running_mean.clone()
        maps = predict_maps(model, images, 8, amp="off")
        assert model.training is training and model.norm.training is not training
        assert torch.equal(model.norm.running_mean, before)  # evaluation teaches nothing
    assert maps.shape == (300, 3, 4, 4) and not maps.requires_grad
    mean, std = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]]).view(2, 3, 1, 1)
    image = (images[257].float() / 255 - mean) / std  # in the last, incomplete batch
    expected = nn.functional.avg_pool2d(image[None], 2)[0] / math.sqrt(1 + 1e-5)
    torch.testing.assert_close(maps[257], expected, atol=1e-5, rtol=1e-5)
    poolings = [Pooling(), Pooling("lse")]
    found = predict_scores(model, images, 8, poolings, "off")
    for scores, pooling in zip(found, poolings, strict=True):
        torch.testing.assert_close(scores, pooling(maps).sigmoid())
