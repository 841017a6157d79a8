"""Metrics agree with their definitions, and with scikit-learn if it is installed."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from spcl_lib import mean_average_precision
from spcl_lib.data.image_set import ImageSet
from spcl_lib.data.images import LazyImages
from spcl_lib.evaluate import (
    average_precisions,
    evaluate,
    evaluate_scores,
    precision_recall,
    predict_maps,
    top1_accuracy,
)


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


@pytest.mark.parametrize("levels", [None, 20, 5, 2, 1])
def test_ap_is_its_definition_with_and_without_ties(levels):
    for seed in range(5):
        scores, labels = random_case(seed, levels=levels)
        pairs = zip(scores.T.tolist(), labels.T.tolist(), strict=True)
        expected = [slow_ap(s, y) for s, y in pairs]
        np.testing.assert_allclose(average_precisions(scores, labels), expected, rtol=1e-9)
        assert mean_average_precision(scores, labels) == pytest.approx(np.mean(expected))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("kind", ["all apart", "ties", "tiny and negative", "one image", "many"])
def test_the_compiled_ap_is_that_of_pytorch(kind, dtype, monkeypatch):
    count, classes = {"one image": (1, 3), "many": (3000, 21)}.get(kind, (60, 17))
    scores, labels = random_case(1, count, classes, levels=4 if kind == "ties" else None)
    scores = scores.to(dtype)
    if kind == "tiny and negative":
        scores = (scores - 0.5) * 1e-3
        scores[::7], scores[1::7] = 0.0, -0.0  # equal, though their bits are not
    labels[:, 2] = False
    ignored = torch.rand(scores.shape, generator=torch.Generator().manual_seed(0)) < 0.2
    given = [None, ignored, torch.ones_like(ignored)]
    fast = [average_precisions(scores, labels, i) for i in given]
    part = average_precisions(scores[:, 1:2], labels[:, 1:2], ignored[:, 1:2])  # not contiguous
    torch.testing.assert_close(part, fast[1][1:2], rtol=1e-12, atol=0, equal_nan=True)
    monkeypatch.setattr("spcl_lib.evaluate.load_compiled", lambda source: None)
    slow = [average_precisions(scores, labels, i) for i in given]
    for mine, theirs in zip(fast, slow, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=0, equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("levels", [None, 5, 1])
def test_map_is_scikit_learns_where_every_class_has_a_positive(levels, dtype):
    metrics = pytest.importorskip("sklearn.metrics", reason="not needed to run, only to compare")
    for seed in range(5):
        scores, labels = random_case(seed, levels=levels)
        scores = scores.to(dtype)
        expected = 100 * metrics.average_precision_score(labels, scores, average="macro")
        assert mean_average_precision(scores, labels) == pytest.approx(expected, rel=1e-9)


def test_ap_by_hand():
    # Ranked: hit, miss, hit, miss, hit: precision 1, 2/3 and 3/5 at recalls 1/3, 2/3, 1.
    scores = torch.tensor([[0.9], [0.8], [0.7], [0.6], [0.5]])
    labels = torch.tensor([[1], [0], [1], [0], [1]])
    assert mean_average_precision(scores, labels) == pytest.approx(100 * (1 + 2 / 3 + 3 / 5) / 3)
    # With 0.8 and 0.7 tied they count together: precision 2/3 for the second hit either way.
    scores[1] = 0.7
    assert mean_average_precision(scores, labels) == pytest.approx(100 * (1 + 2 / 3 + 3 / 5) / 3)
    # With 0.9 to 0.7 tied, the first two hits have precision 2/3; sorting would give 1 to one.
    scores[0] = 0.7
    assert mean_average_precision(scores, labels) == pytest.approx(100 * (4 / 3 + 3 / 5) / 3)


def test_scores_that_say_nothing_give_the_share_of_positives_in_any_order():
    """Where sorting decides, they give 100 or less than 1/3, as the rows happen to lie."""
    labels = torch.tensor([[1], [1], [0], [0], [0], [0]])
    scores = torch.full((6, 1), 0.3)
    for rows in (labels, labels.flip(0)):
        assert mean_average_precision(scores, rows) == pytest.approx(100 / 3)


@pytest.mark.parametrize("levels", [20, 3])
def test_the_order_of_the_images_does_not_matter(levels):
    scores, labels = random_case(0, levels=levels)
    for seed in range(5):
        order = torch.from_numpy(np.random.default_rng(seed).permutation(len(scores)))
        torch.testing.assert_close(
            average_precisions(scores[order], labels[order]), average_precisions(scores, labels)
        )


def test_classes_without_a_positive_are_left_out_and_counted():
    scores, labels = random_case(0)
    labels[:, [1, 4]] = False
    ap = average_precisions(scores, labels)
    assert ap.isnan().tolist() == [False, True, False, False, True, False]
    kept = [0, 2, 3, 5]
    assert mean_average_precision(scores, labels) == pytest.approx(
        mean_average_precision(scores[:, kept], labels[:, kept])
    )
    metrics = evaluate_scores(scores, labels, tuple("abcdef"))
    assert metrics["classes_without_positive"] == 2
    assert metrics["AP"]["b"] is None and metrics["AP"]["e"] is None
    assert metrics["AP"]["a"] == pytest.approx(float(ap[0]))
    assert metrics["mAP"] == pytest.approx(mean_average_precision(scores, labels))
    assert math.isnan(mean_average_precision(scores, torch.zeros_like(labels)))


@pytest.mark.parametrize("dtype", [torch.bool, torch.int64, torch.float32])
def test_labels_may_be_of_any_type_and_gradients_do_not_matter(dtype):
    scores, labels = random_case(3)
    got = mean_average_precision(scores.requires_grad_(), labels.to(dtype))
    assert got == mean_average_precision(scores.detach(), labels)


@pytest.mark.parametrize(
    ("scores", "labels", "message"),
    [
        (torch.rand(4, 3), torch.ones(4, 2), r"\(4, 3\).*\(4, 2\)"),
        (torch.rand(4), torch.ones(4), r"\(N, C\)"),
        (torch.tensor([[0.5], [float("nan")]]), torch.ones(2, 1), "finite"),
        (torch.tensor([[0.5], [float("inf")]]), torch.ones(2, 1), "finite"),
        (torch.tensor([[0.5], [float("-inf")]]), torch.ones(2, 1), "finite"),
        (torch.tensor([[0.5], [float("nan")]]).double(), torch.ones(2, 1), "finite"),
    ],
)
def test_what_has_no_ap_is_refused(scores, labels, message):
    with pytest.raises(ValueError, match=message):
        average_precisions(scores, labels)


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


def test_nothing_chosen_gives_zeros_and_no_division_by_zero():
    got = precision_recall(torch.zeros(3, 2), torch.ones(3, 2))
    assert got == dict.fromkeys(("CP", "CR", "CF1", "OP", "OR", "OF1"), 0.0)


def test_the_threshold_is_a_half_and_the_top_three_are_the_highest_three():
    scores = torch.tensor([[0.9, 0.5, 0.4, 0.1, 0.0], [0.2, 0.1, 0.3, 0.05, 0.49]])
    labels = torch.tensor([[1, 0, 1, 0, 0], [0, 0, 1, 0, 1]], dtype=torch.bool)
    metrics = evaluate_scores(scores, labels, tuple("abcde"))
    assert metrics["at_0.5"]["OP"] == pytest.approx(50)  # 0.9 right, 0.5 wrong
    assert metrics["at_0.5"]["OR"] == pytest.approx(25)
    assert metrics["top_3"]["OP"] == pytest.approx(100 * 4 / 6)  # a, b, c and a, c, e
    assert metrics["top_3"]["OR"] == pytest.approx(100)


def test_top_1_accuracy_is_over_the_images_that_have_a_label():
    scores = torch.tensor([[0.1, 0.9, 0.5], [0.7, 0.2, 0.3], [0.2, 0.2, 0.6], [0.9, 0.1, 0.0]])
    labels = torch.tensor([[0, 1, 1], [0, 1, 1], [0, 0, 0], [1, 0, 1]], dtype=torch.bool)
    assert top1_accuracy(scores, labels) == pytest.approx(100 * 2 / 3)
    metrics = evaluate_scores(scores, labels, tuple("abc"))
    assert metrics["top1_accuracy"] == top1_accuracy(scores, labels)
    assert math.isnan(top1_accuracy(scores, torch.zeros_like(labels)))


def test_two_classes_have_a_top_two():
    scores, labels = random_case(0, c=2)
    assert evaluate_scores(scores, labels, ("a", "b"))["top_3"]["OR"] == 100


# --- ignored labels -------------------------------------------------------------------------------


@pytest.mark.parametrize("levels", [None, 5, 1])
def test_ap_with_ignored_labels_is_that_without_these_images(levels):
    for seed in range(5):
        scores, labels = random_case(seed, levels=levels)
        ignored = torch.rand(labels.shape, generator=torch.Generator().manual_seed(seed)) < 0.3
        ignored[0] = False
        expected = [
            slow_ap(scores[kept, c].tolist(), labels[kept, c].tolist())
            for c, kept in enumerate(~ignored.T)
        ]
        got = average_precisions(scores, labels, ignored)
        np.testing.assert_allclose(got, expected, rtol=1e-9)
        assert mean_average_precision(scores, labels, ignored) == pytest.approx(np.mean(expected))


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


def test_an_ignored_class_keeps_its_place_among_the_top_three():
    scores = torch.tensor([[0.9, 0.8, 0.7, 0.6]])
    labels = torch.tensor([[0, 1, 0, 1]], dtype=torch.bool)
    ignored = torch.tensor([[1, 0, 0, 0]], dtype=torch.bool)
    metrics = evaluate_scores(scores, labels, tuple("abcd"), ignored)
    assert metrics["top_3"]["OP"] == 50 and metrics["top_3"]["OR"] == 50  # b and c; d is fourth


# --- prediction -----------------------------------------------------------------------------------


class Brightness(nn.Module):
    """Score maps that are the channels of the (normalised) image, at half its resolution."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.norm = nn.BatchNorm2d(3)

    def forward(self, images):
        return nn.functional.avg_pool2d(self.scale * self.norm(images), 2)


def image_set(n=300, side=8):
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (n, 3, side, side), dtype=torch.uint8, generator=generator)
    labels = torch.rand(n, 3, generator=generator) < 0.4
    return ImageSet(images, labels, ("r", "g", "b"), tuple(map(str, range(n))))


def test_maps_are_the_models_on_whole_images_and_the_mode_is_left_as_it_was():
    model, data = Brightness(), image_set()
    for training in (True, False):
        model.train(training)
        before = model.norm.running_mean.clone()
        maps = predict_maps(model, data.images, 8, amp="off")
        assert model.training is training and model.norm.training is training
        assert torch.equal(model.norm.running_mean, before)  # evaluation teaches nothing
    assert maps.shape == (300, 3, 4, 4) and not maps.requires_grad
    mean, std = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]]).view(2, 3, 1, 1)
    image = (data.images[257].float() / 255 - mean) / std  # in the last, incomplete batch
    expected = nn.functional.avg_pool2d(image[None], 2)[0] / math.sqrt(1 + 1e-5)
    torch.testing.assert_close(maps[257], expected, atol=1e-5, rtol=1e-5)


def test_whole_images_are_resized_not_cropped():
    flat = torch.zeros(2, 3, 16, 16, dtype=torch.uint8)
    flat[:, :, :, 8:] = 255
    maps = predict_maps(Brightness().eval(), flat, 8, amp="off")
    assert maps.shape[-1] == 4
    assert (maps[..., 3] > maps[..., 0] + 3).all()


def test_evaluate_leaves_out_what_the_data_set_ignores():
    model, data = Brightness().eval(), image_set()
    ignored = torch.rand(300, 3, generator=torch.Generator().manual_seed(1)) < 0.3
    expected = mean_average_precision(data.images.float().mean((2, 3)), data.labels, ignored)
    got = evaluate(model, replace(data, ignored=ignored), 8, amp="off")["mAP"]
    assert got == pytest.approx(expected, abs=1e-3)
    assert got != pytest.approx(evaluate(model, data, 8, amp="off")["mAP"], abs=1e-3)


def test_evaluate_is_the_metric_of_the_mean_scores():
    model, data = Brightness().eval(), image_set()
    brightness = data.images.float().mean((2, 3))  # each class by its own channel
    expected = mean_average_precision(brightness, data.labels)
    assert evaluate(model, data, 8, amp="off")["mAP"] == pytest.approx(expected, abs=1e-3)


def test_images_that_are_fetched_batch_by_batch_give_the_same_metrics():
    model, data = Brightness().eval(), image_set()

    class Kept(LazyImages):
        def __getitem__(self, which):
            return data.images[which]

    lazy = replace(data, images=Kept([None] * len(data), data.images.shape[-1]))
    assert evaluate(model, lazy, 8, amp="off") == evaluate(model, data, 8, amp="off")
    assert torch.equal(predict_maps(model, lazy.images, 8), predict_maps(model, data.images, 8))
