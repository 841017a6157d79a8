"""`evaluate` measures a run on a user's labelled images, and chooses thresholds that help."""

import json

import pytest
import torch
from small_folder import FOLDER, QUICK, make_folder, write_csv

from spcl_lib import Predictor, UserError
from spcl_lib.__main__ import main
from spcl_lib.evaluate import precision_recall
from spcl_lib.runs.thresholds import (
    LabelRule,
    best_thresholds,
    expected_threshold,
    one_sided,
    read_thresholds,
    write_thresholds,
)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A finished run, a folder of other images, and a CSV file of their labels beside it."""
    base = tmp_path_factory.mktemp("trained")
    photos = make_folder(base / "photos", cat=12, dog=12, eel=12)
    new = make_folder(base / "new", any=24)
    labels = ("cat", "cat|dog", "eel", "", "dog|eel", "cat|dog|eel")
    rows = [f"any/any {i}.png,{labels[i % 6]}" for i in range(24)]
    write_csv(base / "full.csv", "path,labels", *rows)
    pairs = [text for k, v in QUICK.items() for text in ("--set", f"{k}={v}")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SPCL_RESULTS", str(base / "results"))
        patch.setenv("SPCL_CACHE", str(base / "cache"))
        assert main([*FOLDER, "--data-root", str(photos), *pairs]) == 0
    (file,) = (base / "results").rglob("metrics.json")
    return file.parent, new, base / "full.csv"


@pytest.fixture
def evaluate(spcl, trained):
    def call(*more, labels=trained[2]):
        run, new, _ = trained
        return spcl("evaluate", "--run", run, "--images", new, "--labels", labels, *more)

    return call


def assert_mistake(outcome, *said):
    assert outcome.status == 2
    last = outcome.err.replace("\r", "\n").splitlines()[-1]
    assert last.startswith("spcl: error: ")
    for text in said:
        assert str(text) in last


def truth_of(trained):
    rows = [line.split(",") for line in trained[2].read_text().splitlines()[1:]]
    names = ("cat", "dog", "eel")
    return [r[0] for r in rows], torch.tensor([[n in r[1].split("|") for n in names] for r in rows])


# --- the command ----------------------------------------------------------------------------------


def test_the_numbers_are_those_of_the_scores(evaluate, trained, tmp_path):
    outcome = evaluate("--out", tmp_path / "found", "--threshold", 0.5)
    assert outcome.status == 0, outcome.err
    found = json.loads((tmp_path / "found" / "evaluation.json").read_text())
    paths, truth = truth_of(trained)
    scores = Predictor.load(trained[0])([trained[1] / path for path in paths])
    expected = precision_recall(scores >= 0.5, truth)
    (row,) = (row for row in found["rules"] if row["labels"] == "scores from 0.500")
    assert {k: row[k] for k in expected} == pytest.approx(expected)
    assert row["per image"] == pytest.approx(float((scores >= 0.5).sum() / 24))
    assert found["images"] == 24 and found["known_labels"] == "full"
    assert [row["class"] for row in found["classes"]] == ["cat", "dog", "eel"]
    assert [row["images"] for row in found["classes"]] == truth.sum(0).tolist()
    assert f"mAP {found['mAP']:.2f} %" in outcome.out
    for row, own, chosen in zip(found["classes"], truth.T, (scores >= 0.5).T, strict=True):
        right = int((own & chosen).sum())
        assert row["F1"] == pytest.approx(200 * right / int(own.sum() + chosen.sum()))
        assert row["AP"] == pytest.approx(found["AP"][row["class"]])


def test_thresholds_go_from_evaluate_to_predict(evaluate, spcl, trained, tmp_path):
    file = tmp_path / "thresholds.json"
    outcome = evaluate("--save-thresholds", file, "--choose", "per-class")
    assert outcome.status == 0 and f"predict --thresholds {file}" in outcome.out
    limits = json.loads(file.read_text())["thresholds"]
    assert list(limits) == ["cat", "dog", "eel"] and len(set(limits.values())) == 3
    arguments = ("predict", "--run", trained[0], "--images", trained[1], "--thresholds", file)
    outcome = spcl(*arguments, "--out", tmp_path / "a.json")
    assert outcome.status == 0 and "by class" in outcome.out
    rows = json.loads((tmp_path / "a.json").read_text())
    assert any(row["labels"] for row in rows)
    for row in rows:
        for name, score in row["scores"].items():
            if abs(score - limits[name]) > 1e-4:
                assert (name in row["labels"]) == (score > limits[name])
    assert_mistake(spcl(*arguments, "--size", 32), file, "size 16", "size 32")
    assert_mistake(spcl(*arguments, "--pooling", "lse"), file, "pooling mean", "pooling lse")
    assert_mistake(spcl(*arguments, "--threshold", 0.5), "not both")


def test_another_pooling_is_measured_with_a_threshold_of_its_own(evaluate, spcl, trained, tmp_path):
    file, lse = tmp_path / "lse.json", ("--pooling", "lse:2")
    outcome = evaluate(*lse, "--save-thresholds", file)
    assert outcome.status == 0 and "so that an image has 1.5 labels" in outcome.out
    given = ("predict", "--run", trained[0], "--images", trained[1], *lse)
    assert_mistake(spcl(*given, "--out", tmp_path / "a.json"), "give --threshold")
    assert spcl(*given, "--thresholds", file, "--out", tmp_path / "a.json").status == 0
    usual = evaluate("--threshold", 0.5)
    assert "so that an image has 1.5 labels" not in usual.out


def test_thresholds_replace_no_other_file(evaluate, tmp_path):
    photo, folder = tmp_path / "photo.jpg", tmp_path / "folder"
    photo.write_text("a photo")
    (tmp_path / "deep").write_text("[" * 50_000)
    folder.mkdir()
    for place in (photo, folder, tmp_path / "deep"):
        assert_mistake(evaluate("--save-thresholds", place), f"'{place}' exists and holds no")
    assert photo.read_text() == "a photo"
    for _ in range(2):
        assert evaluate("--save-thresholds", tmp_path / "limits").status == 0


def test_single_labels_give_no_f1_and_no_threshold_per_class(evaluate, trained, tmp_path):
    rows = [f"any/any {i}.png,{('cat', 'dog', 'eel')[i % 3]}" for i in range(24)]
    write_csv(tmp_path / "single.csv", "path,label", *rows)
    file = tmp_path / "thresholds.json"
    outcome = evaluate("--save-thresholds", file, labels=tmp_path / "single.csv")
    assert outcome.status == 0 and "one known label each" in outcome.out
    assert "the true mAP is higher" in outcome.out and "OF1" not in outcome.out
    (limit,) = set(json.loads(file.read_text())["thresholds"].values())
    scores = Predictor.load(trained[0])(sorted((trained[1] / "any").iterdir()))
    assert int((scores >= limit).sum()) == round(1.5 * 24)
    outcome = evaluate(
        "--save-thresholds", file, "--choose", "per-class", labels=tmp_path / "single.csv"
    )
    assert_mistake(outcome, "no threshold per class")


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("any/any 1.png,cow", ("line 2: the run has no class 'cow'",)),
        ("any/any 1.png,cot", ("'cot'", "Did you mean 'cat'?")),
        ("any/other.png,cat", ("line 2", "other.png' is not in")),
        ("any/any 1.png,", ("gives no image a label",)),
    ],
)
def test_a_wrong_line_is_named(evaluate, tmp_path, line, said):
    write_csv(tmp_path / "wrong.csv", "path,labels", line)
    assert_mistake(evaluate(labels=tmp_path / "wrong.csv"), tmp_path / "wrong.csv", *said)


def test_other_mistakes_are_one_line(evaluate, trained, tmp_path):
    assert_mistake(evaluate(labels=tmp_path / "nowhere.csv"), "nowhere.csv' cannot be read")
    assert_mistake(evaluate("--out", trained[2]), trained[2], "needs a folder")
    (tmp_path / "odd.json").write_text('{"scores": {}}')
    assert_mistake(evaluate("--thresholds", tmp_path / "odd.json"), "odd.json' holds no thresholds")


def test_what_cannot_be_read_is_left_out_and_named(evaluate, trained, tmp_path):
    (trained[1] / "torn.png").write_text("404")
    write_csv(tmp_path / "some.csv", "path,labels", "torn.png,cat", "any/any 1.png,dog")
    outcome = evaluate(labels=tmp_path / "some.csv")
    assert outcome.status == 0 and "1 images" in outcome.out
    assert "left out 1 that cannot be read: torn.png" in outcome.err


def test_without_images_the_runs_own_held_out_ones_are_measured(spcl, trained, tmp_path):
    arguments = ("evaluate", "--run", trained[0], "--out", tmp_path)
    outcome = spcl(*arguments)
    assert outcome.status == 0, outcome.err
    metrics = json.loads((trained[0] / "metrics.json").read_text())
    found = json.loads((tmp_path / "evaluation.json").read_text())
    assert found["images"] == metrics["report_images"] and found["known_labels"] == "single"
    assert found["AP"] == pytest.approx(metrics["AP"])
    assert_mistake(spcl(*arguments, "--images", trained[1]), "give --images and --labels")


# --- rules and thresholds -------------------------------------------------------------------------


def test_a_rule_says_what_it_does():
    assert str(LabelRule(0.25)) == "scores from 0.250"
    assert str(LabelRule(torch.tensor([0.5, 0.25]))) == "scores from 0.250 to 0.500, by class"
    assert str(LabelRule(None, 3)) == "the 3 highest scores"
    assert str(LabelRule(0.25, 3)) == "the 3 highest scores from 0.250"
    with pytest.raises(UserError, match="no threshold"):
        LabelRule(None)


def slow_best(scores, labels):
    """The highest F1 of all thresholds between two scores, by trying them."""
    tried = sorted(set(scores.tolist()))
    tried = [(a + b) / 2 for a, b in zip(tried, tried[1:], strict=False)] + [tried[0] - 0.1]
    return max(f1(scores, labels, t) for t in tried)


def f1(scores, labels, threshold):
    chosen = scores >= threshold
    return 2 * int((chosen & labels).sum()) / int(chosen.sum() + labels.sum())


@pytest.mark.parametrize("seed", range(5))
def test_one_threshold_has_the_highest_f1(seed):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.rand((40, 3), generator=generator) < 0.3
    scores = (torch.rand((40, 3), generator=generator) + 0.5 * labels).mul(8).round() / 12  # ties
    limits = best_thresholds(scores, labels, "one")
    assert limits.shape == (3,) and len(limits.unique()) == 1
    expected = slow_best(scores.flatten(), labels.flatten())
    assert f1(scores, labels, float(limits[0])) == pytest.approx(expected)


def test_a_class_trusts_its_own_threshold_with_the_number_of_its_positives():
    """Two classes whose scores have other levels; the third has no positive."""
    found = []
    for repeats in (1, 100):
        labels = torch.tensor([[1, 0, 0], [1, 0, 0], [0, 1, 0], [0, 1, 0]]).bool()
        scores = torch.tensor([[0.9, 0.1, 0.1], [0.9, 0.1, 0.1], [0.6, 0.3, 0.1], [0.6, 0.3, 0.1]])
        labels, scores = labels.repeat(repeats, 1), scores.repeat(repeats, 1)
        limits = best_thresholds(scores, labels, "per-class")
        (shared,) = best_thresholds(scores, labels, "one").unique().tolist()
        found.append((limits - shared).abs())
        assert limits[2] == pytest.approx(shared, abs=1e-6)
    few, many = found
    assert 0 < few[0] < many[0]  # the shared one is right for the second class already
    assert bool((scores >= limits).eq(labels).all())


def test_thresholds_need_a_label_and_ties_are_allowed():
    with pytest.raises(UserError, match="no image has a label"):
        best_thresholds(torch.rand(4, 2), torch.zeros(4, 2, dtype=torch.bool), "one")
    same, labels = torch.full((4, 2), 0.5), torch.tensor([[True, False]] * 4)
    assert bool((same >= best_thresholds(same, labels, "one")).all())


@pytest.mark.parametrize("k", [1.0, 1.5])
def test_the_expected_number_of_labels(k):
    scores = torch.rand((50, 4), generator=torch.Generator().manual_seed(0))
    assert int((scores >= expected_threshold(scores, k)).sum()) == round(k * 50)


def test_a_file_of_thresholds_comes_back_and_lacks_no_class(tmp_path):
    file, how = tmp_path / "a.json", {"run": "x", "size": 16, "pooling": "mean"}
    limits = torch.tensor([0.25, 0.7])
    write_thresholds(file, limits, ("cat", "dog"), how)
    assert torch.equal(read_thresholds(file, ("cat", "dog"), how), limits)
    assert torch.equal(read_thresholds(file, ("dog", "cat"), how), limits.flip(0))
    with pytest.raises(UserError, match="class 'eel' needs a threshold in 0..1; got None"):
        read_thresholds(file, ("cat", "eel"), how)
    with pytest.raises(UserError, match="other scores .*run x.*run y"):
        read_thresholds(file, ("cat", "dog"), how | {"run": "y"})
    file.write_text('{"thresholds": ' + "[" * 50_000)
    with pytest.raises(UserError, match=r"a\.json' holds no thresholds \(.*too deeply"):
        read_thresholds(file, ("cat", "dog"), how)


def test_classes_that_nearly_all_images_or_none_get_are_named(spcl, results, tiny):
    chosen = torch.zeros(40, 3, dtype=torch.bool)
    chosen[:38, 0] = chosen[:20, 1] = True
    warned = one_sided(chosen, ("person", "cat", "dog"))
    assert warned == ["warning: given to nearly all images: person",
                      "warning: given to no image: dog"]  # fmt: skip
    assert one_sided(chosen[:10], ("person", "cat", "dog")) == []  # too few to tell
    outcome = spcl("run", "--method", "an", **(tiny | {"eval_images": 40}))
    (file,) = results.rglob("metrics.json")
    found = json.loads(file.read_text())["warnings"]
    assert all(line in outcome.out for line in found)
    assert "warnings" in json.loads(file.read_text())
