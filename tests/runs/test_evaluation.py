"""`evaluate` measures a run on a user's labelled images, and chooses a threshold that helps."""

import json
import shutil

import pytest
import torch
from small_folder import assert_mistake, make_folder, save_noise, train_on, write_csv

from spcl_lib import Predictor
from spcl_lib.evaluate import precision_recall
from spcl_lib.runs.evaluation import Evaluation, best_threshold
from spcl_lib.runs.predictor import LabelRule


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A finished run, a folder of other images, and a CSV file of their labels beside it."""
    base = tmp_path_factory.mktemp("trained")
    new = make_folder(base / "new", any=24)
    labels = ("cat", "cat|dog", "eel", "", "dog|eel", "cat|dog|eel")
    rows = [f"any/any {i}.png,{labels[i % 6]}" for i in range(24)]
    write_csv(base / "full.csv", "path,labels", *rows)
    run = train_on(make_folder(base / "photos", cat=12, dog=12, eel=12), base)
    return run, new, base / "full.csv"


@pytest.fixture
def evaluate(spcl, trained):
    def call(*more, labels=trained[2]):
        run, new, _ = trained
        return spcl("evaluate", "--run", run, "--images", new, "--labels", labels, *more)

    return call


def f1(scores, labels, threshold):
    chosen = scores >= threshold
    return 2 * int((chosen & labels).sum()) / int(chosen.sum() + labels.sum())


def test_the_numbers_are_those_of_the_scores_and_the_threshold_fits_predict(
    evaluate, spcl, trained, tmp_path
):
    outcome = evaluate("--out", tmp_path / "found", "--threshold", 0.5)
    assert outcome.status == 0, outcome.err
    found = json.loads((tmp_path / "found" / "evaluation.json").read_text())
    lines = [line.split(",") for line in trained[2].read_text().splitlines()[1:]]
    truth = torch.tensor([[n in row[1].split("|") for n in ("cat", "dog", "eel")] for row in lines])
    scores = Predictor.load(trained[0])([trained[1] / row[0] for row in lines])
    expected = precision_recall(scores >= 0.5, truth)
    (row,) = (row for row in found["rules"] if row["labels"] == "scores from 0.500")
    assert {k: row[k] for k in expected} == pytest.approx(expected)
    assert found["images"] == 24 and found["known_labels"] == "full"
    assert f"mAP {found['mAP']:.2f} %" in outcome.out
    for row, own, chosen in zip(found["classes"], truth.T, scores.T, strict=True):
        assert row["F1"] == pytest.approx(100 * f1(chosen, own, 0.5))
        assert row["AP"] == pytest.approx(found["AP"][row["class"]])
    best = best_threshold(scores, truth)
    assert found["threshold"] == pytest.approx(best)
    assert outcome.out.splitlines()[-2] == f"chosen on all these images: --threshold {best:.4f}"


def test_a_class_that_all_images_get_is_named(evaluate):
    """A run called all 1,500 photographs "person", and nobody was told."""
    assert "warning: given to nearly all images: cat, dog, eel" in evaluate("--threshold", 0).out
    assert "warning: given to no image: cat, dog, eel" in evaluate("--threshold", 1).out


def test_another_pooling_is_measured_with_a_threshold_of_its_own(evaluate):
    assert "so that an image has 1.5 labels" in evaluate("--pooling", "lse:2").out
    assert "so that an image has 1.5 labels" not in evaluate("--threshold", 0.5).out


def test_single_labels_give_no_f1(evaluate, trained, tmp_path):
    rows = [f"any/any {i}.png,{('cat', 'dog', 'eel')[i % 3]}" for i in range(24)]
    write_csv(tmp_path / "single.csv", "path,label", *rows)
    outcome = evaluate("--out", tmp_path, labels=tmp_path / "single.csv")
    assert outcome.status == 0 and "one known label each" in outcome.out
    assert "the true mAP is higher" in outcome.out and "OF1" not in outcome.out
    limit = json.loads((tmp_path / "evaluation.json").read_text())["threshold"]
    scores = Predictor.load(trained[0])(sorted((trained[1] / "any").iterdir()))
    assert int((scores >= limit).sum()) == round(1.5 * 24)


def test_a_list_without_labels_is_named(evaluate, tmp_path):
    file = tmp_path / "wrong.csv"
    write_csv(file, "path,labels", "any/any 1.png,")
    assert_mistake(evaluate(labels=file), file, "gives no image a label")


def test_without_images_the_runs_own_held_out_ones_are_measured_wherever_they_are(
    spcl, trained, tmp_path
):
    """`evaluate` took no --data-root, which its own message told people to give."""
    arguments = ("evaluate", "--run", trained[0], "--out", tmp_path)
    outcome = spcl(*arguments)
    assert outcome.status == 0, outcome.err
    metrics = json.loads((trained[0] / "metrics.json").read_text())
    found = json.loads((tmp_path / "evaluation.json").read_text())
    assert found["images"] == metrics["report_images"] and found["known_labels"] == "single"
    assert found["AP"] == pytest.approx(metrics["AP"])
    assert_mistake(spcl(*arguments, "--images", trained[1]), "give --images and --labels")
    photos = trained[2].parent / "photos"
    moved = shutil.move(photos, tmp_path / "moved")
    try:
        assert_mistake(spcl(*arguments), "--data-root")
        outcome = spcl(*arguments, "--data-root", moved)
        assert outcome.status == 0, outcome.err
        extra = save_noise(moved / "cat" / "new.png")
        for command in ("evaluate", "audit"):
            outcome = spcl(command, *arguments[1:], "--data-root", moved)
            assert_mistake(outcome, "are not those of this run")
        extra.unlink()
    finally:
        shutil.move(moved, photos)


def test_the_best_threshold_has_the_highest_f1_of_all_that_can_be_tried():
    generator = torch.Generator().manual_seed(0)
    labels = torch.rand((40, 3), generator=generator) < 0.3
    scores = (torch.rand((40, 3), generator=generator) + 0.5 * labels).mul(8).round() / 12  # ties
    tried = sorted(set(scores.flatten().tolist()))
    tried = [(a + b) / 2 for a, b in zip(tried, tried[1:], strict=False)] + [tried[0] - 0.1]
    best = max(f1(scores, labels, t) for t in tried)
    assert f1(scores, labels, best_threshold(scores, labels)) == pytest.approx(best)


def test_a_threshold_is_measured_on_other_images_than_it_is_chosen_on():
    scores, labels = torch.tensor([[0.9, 0.1], [0.3, 0.2]]), torch.tensor([[1, 0], [1, 0]]).bool()
    # the halves choose 0.5 and 0.25; 0.5 finds no label of the other half
    _, row = Evaluation(scores, labels, ("a", "b"), False, {}).rule_rows(LabelRule(0.0), 1.5)
    assert (row["OP"], row["OR"]) == (100, 50)


def test_ignored_labels_move_no_threshold_and_no_row():
    scores = torch.tensor([[0.9, 0.8, 0.8], [0.3, 0.8, 0.1]])
    labels, ignored = scores.eq(0.9) | scores.eq(0.3), scores.eq(0.8)
    found = Evaluation(scores, labels, ("a", "b", "c"), False, {}, ignored)
    assert found.threshold(1.5) == pytest.approx(0.2)
    assert [row["precision"] for row in found.class_rows(LabelRule(0.5))] == [100, None, None]
