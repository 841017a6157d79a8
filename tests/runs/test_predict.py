"""Predictions of a finished run have the numbers of its evaluation, in the requested files."""

import csv
import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from small_folder import FOLDER, QUICK, make_folder, save_noise, write_csv

import spcl_lib
from spcl_lib import Predictor, UserError, mean_average_precision
from spcl_lib.__main__ import main
from spcl_lib.runs.predict import predict_files
from spcl_lib.runs.prediction_files import columns
from spcl_lib.runs.splits import load_splits
from spcl_lib.runs.thresholds import LabelRule, choose_threshold
from spcl_lib.system import paths
from spcl_lib.viewer.overlays import overlays


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A finished run on a folder with full labels, and that folder."""
    base = tmp_path_factory.mktemp("trained")
    root = make_folder(base / "images", cat=12, dog=12, **{"große Eule": 12})
    rows = [f"{c}/{c} {i}.png,{c}|dog" for c in ("cat", "große Eule") for i in range(5)]
    full = write_csv(root / "full.csv", "path,labels", *rows, "dog/dog 1.png,dog")
    settings = QUICK | {"full_labels": full, "epochs": 3, "train_images": 0}
    pairs = [text for k, v in settings.items() for text in ("--set", f"{k}={v}")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SPCL_RESULTS", str(base / "results"))
        patch.setenv("SPCL_CACHE", str(base / "cache"))
        assert main([*FOLDER, "--data-root", str(root), *pairs]) == 0
    (file,) = (base / "results").rglob("metrics.json")
    return file.parent, root


@pytest.fixture
def predict(spcl, trained, tmp_path):
    """Calls the command with the run; gives the outcome and the rows of the file, if there is one.

    A row is a dictionary.
    """
    out = tmp_path / "out.csv"

    def call(images, *arguments, run=trained[0]):
        outcome = spcl("predict", "--run", run, "--images", images, "--out", out, *arguments)
        if not out.is_file():
            return outcome, None
        with open(out, encoding="utf-8", errors="surrogateescape", newline="") as file:
            return outcome, list(csv.DictReader(file))

    return call


def assert_mistake(outcome, *said):
    assert outcome.status == 2
    last = outcome.err.replace("\r", "\n").splitlines()[-1]
    assert last.startswith("spcl: error: ") and "Traceback" not in outcome.err
    for text in said:
        assert str(text) in last


def run_metrics(run):
    """The metrics without their checksum, so that a test can write others."""
    metrics = json.loads((run / "metrics.json").read_text())
    return {name: value for name, value in metrics.items() if name != "crc32"}


# --- the file -------------------------------------------------------------------------------------


def test_scores_are_those_of_the_evaluation(predict, trained):
    run, root = trained
    outcome, rows = predict(root)
    assert outcome.status == 0 and outcome.out.startswith(f"run: {run} (folder, an, 3 classes)")
    metrics = run_metrics(run)
    assert list(rows[0]) == ["path", "cat", "dog", "große Eule", "labels"]
    config = Predictor.load(run).config
    _, report = load_splits(config, root)
    by_path = {row["path"]: row for row in rows}
    scores = [[float(by_path[name][c]) for c in report.classes] for name in report.ids]
    score = mean_average_precision(torch.tensor(scores), report.labels)
    assert score == pytest.approx(metrics["mAP"], abs=1e-6)


def test_rows_are_sorted_and_labels_are_the_scores_from_the_threshold(predict, trained):
    run, root = trained
    outcome, rows = predict(root)
    assert len(rows) == 36 and [r["path"] for r in rows] == sorted(r["path"] for r in rows)
    threshold = run_metrics(run)["threshold"]
    assert f"36 images, labels are scores from {threshold:.3f}: " in outcome.out
    some = 0
    for row in rows:
        values = {name: row[name] for name in ("cat", "dog", "große Eule")}
        assert all(len(text) == 6 and 0 <= float(text) <= 1 for text in values.values())
        surely = {n for n, text in values.items() if float(text) > threshold + 1e-4}
        perhaps = {n for n, text in values.items() if float(text) >= threshold - 1e-4}
        labels = set(filter(None, row["labels"].split("|")))
        assert surely <= labels <= perhaps
        some += len(labels)
    assert some > 0


@pytest.mark.parametrize(("given", "labels"), [("0", "cat|dog|große Eule"), ("1", "")])
def test_the_threshold_can_be_given(predict, trained, given, labels):
    _, rows = predict(trained[1] / "dog", "--threshold", given)
    assert len(rows) == 12 and all(row["labels"] == labels for row in rows)


def test_one_image_is_enough(predict, trained):
    outcome, rows = predict(trained[1] / "dog" / "dog 3.png", "--threshold", "auto")
    assert [row["path"] for row in rows] == ["dog 3.png"] and "1 images" in outcome.out


def test_more_images_than_a_batch(predict, tmp_path, monkeypatch):
    monkeypatch.setattr("spcl_lib.runs.predict.BATCH", 4)
    make_folder(tmp_path / "new", x=11)
    save_noise(tmp_path / "new" / ".hidden.png")
    _, rows = predict(tmp_path / "new")
    assert len(rows) == 11
    monkeypatch.undo()


def test_what_cannot_be_read_is_left_out_counted_and_named(predict, tmp_path):
    new = make_folder(tmp_path / "new", x=3)
    (new / "x" / "torn é.jpg").write_bytes(b"\xff\xd8\xff\xe0 torn")
    (new / "text.png").write_text("404: not found")
    outcome, rows = predict(new)
    assert outcome.status == 0
    assert [row["path"] for row in rows] == [f"x/x {i}.png" for i in range(3)]
    assert "spcl: left out 2 that cannot be read: text.png, x/torn é.jpg" in outcome.err
    assert "3 images" in outcome.out


def test_if_none_can_be_read_it_is_a_mistake_and_what_was_there_stays(predict, tmp_path, trained):
    new = tmp_path / "new"
    new.mkdir()
    (new / "text.png").write_text("404: not found")
    outcome, rows = predict(new)
    assert rows is None
    assert_mistake(outcome, "none of the 1 images", new)
    predict(trained[1] / "cat")
    before = (tmp_path / "out.csv").read_bytes()
    assert_mistake(predict(new)[0], "none of the 1 images")
    assert (tmp_path / "out.csv").read_bytes() == before
    assert not list(tmp_path.glob(".out.csv*"))


def test_columns_of_classes_whose_name_is_taken():
    assert columns(("cat", "dog")) == ["path", "cat", "dog", "labels"]
    classes = ("path", "labels", "crane", "crane", "path (2)")
    expected = ["path", "path (2)", "labels (2)", "crane", "crane (2)", "path (2) (2)", "labels"]
    assert columns(classes) == expected


@pytest.mark.skipif(sys.platform != "linux", reason="file names must be text there")
def test_a_file_name_that_is_no_text_goes_in_as_it_is(predict, tmp_path):
    new = make_folder(tmp_path / "new", x=1)
    os.rename(new / "x" / "x 0.png", os.fsencode(new / "x") + b"/\xe9.png")
    outcome, rows = predict(new)
    assert outcome.status == 0 and os.fsencode(rows[0]["path"]) == b"x/\xe9.png"


def test_a_pipe_is_left_out_and_named(predict, tmp_path, make_pipe):
    new = make_folder(tmp_path / "new", x=2)
    make_pipe(new / "pipe.png")
    outcome, rows = predict(new)
    assert outcome.status == 0 and len(rows) == 2
    assert "left out 1 that cannot be read: pipe.png" in outcome.err
    assert_mistake(predict(new / "pipe.png")[0], "pipe.png", "no regular file")


# --- mistakes -------------------------------------------------------------------------------------


def test_mistakes_about_the_images_are_one_line(predict, tmp_path):
    assert_mistake(predict(tmp_path / "nowhere")[0], tmp_path / "nowhere", "does not exist")
    (tmp_path / "empty").mkdir()
    assert_mistake(predict(tmp_path / "empty")[0], tmp_path / "empty", "holds no image")
    new = make_folder(tmp_path / "new", x=1)
    outcome, rows = predict(new, "--heatmaps", new / "heat")
    assert_mistake(outcome, "inside", new)
    assert rows is None and not (new / "heat").exists()


@pytest.mark.parametrize("threshold", ["1.5", "-0.1", "nan", "high"])
def test_a_wrong_threshold_is_named(predict, trained, threshold):
    assert_mistake(predict(trained[1], f"--threshold={threshold}")[0], threshold, "auto or in 0..1")


@pytest.mark.parametrize("option", ["--heatmaps", "--images", "--out", "--run"])
def test_a_link_that_leads_to_itself_is_named(option, spcl, trained, tmp_path):
    link = tmp_path / "link"
    link.symlink_to(link)
    given = {"--run": trained[0], "--images": trained[1] / "dog", "--out": tmp_path / "p.csv"}
    outcome = spcl("predict", *(w for pair in (given | {option: link}).items() for w in pair))
    assert_mistake(outcome, link)


def test_a_place_that_cannot_be_written_is_named(spcl, trained, tmp_path):
    arguments = ("predict", "--run", trained[0], "--images", trained[1] / "dog")
    assert_mistake(spcl(*arguments, "--out", tmp_path), tmp_path, "is a folder")
    (tmp_path / "file").touch()
    outcome = spcl(*arguments, "--out", tmp_path / "file" / "out.csv")
    assert_mistake(outcome, tmp_path / "file", "where a folder is needed")


def test_a_run_is_needed_that_has_finished(predict, trained, tmp_path):
    images = trained[1] / "dog"
    assert_mistake(predict(images, run=tmp_path)[0], tmp_path, "is no run")
    begun = tmp_path / "begun"
    begun.mkdir()
    shutil.copy(trained[0] / "config.json", begun)
    assert_mistake(predict(images, run=begun)[0], begun, "has not finished")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda run, m: (run / "weights.safetensors").unlink(), "weights.safetensors' does not ex"),
        (lambda run, m: (run / "weights.safetensors").write_text("x"), "cannot be read"),
        (lambda run, m: m.update(classes=["cat", "dog"]), "do not fit"),
        (lambda run, m: m.pop("classes"), "another version of spcl"),
        (lambda run, m: m["config"].update(novelty=1), "another version of spcl"),
        (lambda run, m: m.clear(), "another version of spcl"),
    ],
)
def test_a_damaged_run_is_named(predict, trained, tmp_path, change, said):
    run = shutil.copytree(trained[0], tmp_path / "run")
    metrics = run_metrics(run)
    change(run, metrics)
    (run / "metrics.json").write_text(json.dumps(metrics))
    outcome, rows = predict(trained[1] / "dog", run=run)
    assert_mistake(outcome, said, run)
    assert rows is None


def test_a_run_without_a_threshold_needs_one(predict, trained, tmp_path):
    run = shutil.copytree(trained[0], tmp_path / "run")
    metrics = run_metrics(run)
    del metrics["threshold"]
    (run / "metrics.json").write_text(json.dumps(metrics))
    assert_mistake(predict(trained[1] / "dog", run=run)[0], run, "--threshold 0.5")
    assert predict(trained[1] / "dog", "--threshold", "0.5", run=run)[0].status == 0


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_no_numbers_are_named(predict, trained, tmp_path, value):
    run = shutil.copytree(trained[0], tmp_path / "run")
    state = load_file(run / "weights.safetensors")
    state["head.bias"][0] = value
    save_file(state, run / "weights.safetensors")
    outcome, rows = predict(trained[1] / "dog", run=run)
    assert_mistake(outcome, run / "weights.safetensors", "no numbers", "--force")
    assert rows is None


def test_scores_that_are_no_numbers_are_refused(trained):
    predictor = Predictor.load(trained[0])
    with torch.no_grad():
        predictor.model.head.bias[0] = torch.nan
    with pytest.raises(UserError, match="no numbers"):
        predictor(torch.zeros(1, 3, 16, 16, dtype=torch.uint8))


@pytest.mark.parametrize("place", [0.1, 0.5, 0.99])
def test_a_flipped_bit_in_the_weights_is_noticed(predict, trained, tmp_path, place):
    run = shutil.copytree(trained[0], tmp_path / "run")
    file = run / "weights.safetensors"
    content = bytearray(file.read_bytes())
    start = 8 + int.from_bytes(content[:8], "little")  # behind the header
    content[start + int(place * (len(content) - start))] ^= 1
    file.write_bytes(content)
    outcome, rows = predict(trained[1] / "dog", run=run)
    assert_mistake(outcome, file, "damaged", "checksum")
    assert rows is None


# --- what must not be lost ------------------------------------------------------------------------


LABELS = "path,labels\ncat/cat 1.png,cat|dog\n"
SPLITS = "path,split,labels\ncat/cat 1.png,train,cat|dog\n"


@pytest.mark.parametrize("content", [b"\x89PNG\r\n", b"a\0b", LABELS.encode(), SPLITS.encode()])
def test_a_file_that_holds_no_predictions_is_replaced_only_by_force(
    predict, trained, tmp_path, content
):
    out = tmp_path / "out.csv"
    out.write_bytes(content)
    outcome = predict(trained[1] / "dog")[0]
    assert_mistake(outcome, out, "holds no predictions", "--force")
    assert out.read_bytes() == content
    outcome, rows = predict(trained[1] / "dog", "--force")
    assert outcome.status == 0 and len(rows) == 12
    assert predict(trained[1] / "cat")[0].status == 0  # predictions are replaced


def test_json_that_no_parser_can_follow_is_no_prediction(predict, trained, tmp_path):
    out = tmp_path / "out.json"
    out.write_text("[\n" + "[" * 50_000)
    outcome = predict(trained[1] / "dog", "--out", out)[0]
    assert_mistake(outcome, out, "holds no predictions", "--force")


def test_an_input_image_stays(spcl, trained):
    image = trained[1] / "dog" / "dog 3.png"
    before = image.read_bytes()
    outcome = spcl("predict", "--run", trained[0], "--images", image.parent, "--out", image)
    assert_mistake(outcome, image, "holds no predictions")
    assert image.read_bytes() == before


def test_only_a_regular_file_is_written(predict, trained, tmp_path, make_pipe):
    out = tmp_path / "out.csv"
    make_pipe(out)
    for force in ((), ("--force",)):
        assert_mistake(predict(trained[1] / "dog", *force)[0], out, "no regular file")
    assert out.is_fifo()
    out.unlink()
    out.symlink_to("/dev/null")
    assert_mistake(predict(trained[1] / "dog", "--force")[0], out, "no regular file")
    assert out.is_symlink()


def test_a_link_to_predictions_stays_a_link(predict, trained, tmp_path):
    out, target = tmp_path / "out.csv", tmp_path / "elsewhere" / "old.csv"
    target.parent.mkdir()
    target.touch()  # an empty file holds nothing that can be lost
    out.symlink_to(target)
    outcome, rows = predict(trained[1] / "dog")
    assert outcome.status == 0 and len(rows) == 12
    assert out.is_symlink() and target.read_text().startswith("path,cat,dog,")


def test_what_a_killed_prediction_left_is_removed(predict, trained, tmp_path):
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    heat = tmp_path / "heat" / "x"
    heat.mkdir(parents=True)
    left = [tmp_path / f".out.csv.{ended.pid}.tmp", heat / f".a.png.png.{ended.pid}.tmp"]
    others = [
        tmp_path / f".out.csv.{os.getppid()}.tmp",  # its process still runs
        tmp_path / f".other.csv.{ended.pid}.tmp", tmp_path / ".out.csv.1x.tmp",
    ]  # fmt: skip
    for file in (*left, *others):
        file.touch()
    assert predict(trained[1] / "dog", "--heatmaps", tmp_path / "heat")[0].status == 0
    assert not any(file.exists() for file in left) and all(file.exists() for file in others)


# --- names ----------------------------------------------------------------------------------------


NAMES = ["two\nlines.png", "tab\t.png", "x" * 251 + ".png", "=cmd|calc!A0.png", "-1+2.png"]


def test_no_file_name_loses_the_predictions(predict, tmp_path):
    new, heat = tmp_path / "new", tmp_path / "heat"
    for name in NAMES:
        save_noise(new / "a.png").rename(new / name)
    (new / "broken\n.png").write_text("404")
    outcome, rows = predict(new, "--heatmaps", heat)
    assert outcome.status == 0 and r"cannot be read: broken\n.png" in outcome.err
    assert sorted((new / row["path"]).name for row in rows) == sorted(NAMES)
    assert not any(row["path"].startswith(("=", "-")) for row in rows)
    pictures = [file.name for file in heat.iterdir()]
    assert len(pictures) == len(NAMES) and {f"{NAMES[0]}.png", f"{NAMES[3]}.png"} < set(pictures)


def test_long_names_that_differ_at_their_end_get_pictures_of_their_own(predict, tmp_path):
    new, heat = tmp_path / "new", tmp_path / "heat"
    for end in ("ä", "ö"):
        save_noise(new / "a.png").rename(new / f"{'ü' * 120}{end}.png")
    assert predict(new, "--heatmaps", heat)[0].status == 0
    assert len(list(heat.iterdir())) == 2


def test_no_class_name_is_a_formula(predict, trained, tmp_path):
    run = shutil.copytree(trained[0], tmp_path / "run")
    metrics = run_metrics(run) | {"classes": ["=cmd|' /C calc'!A0", "@x", "two\nlines"]}
    (run / "metrics.json").write_text(json.dumps(metrics))
    for _ in range(2):  # they are predictions that can be replaced
        outcome, rows = predict(
            trained[1] / "dog", "--threshold", "0", "--heatmaps", tmp_path / "heat", run=run
        )
        assert outcome.status == 0
    assert list(rows[0]) == ["path", "'=cmd|' /C calc'!A0", "'@x", "two\nlines", "labels"]
    assert rows[0]["labels"] == "'=cmd|' /C calc'!A0|@x|two\nlines"


def test_a_pipe_instead_of_a_runs_file_is_named(predict, spcl, trained, tmp_path, make_pipe):
    run = shutil.copytree(trained[0], tmp_path / "run")
    (run / "metrics.json").unlink()
    make_pipe(run / "metrics.json")
    assert_mistake(predict(trained[1] / "dog", run=run)[0], "has not finished")


# --- formats and labels ---------------------------------------------------------------------------


def test_json_has_the_rows_of_the_csv_file(spcl, trained, tmp_path):
    arguments = ("predict", "--run", trained[0], "--images", trained[1] / "dog", "--out")
    assert spcl(*arguments, tmp_path / "a.csv").status == 0
    for _ in range(2):  # predictions are replaced
        assert spcl(*arguments, tmp_path / "a.json").status == 0
    found = json.loads((tmp_path / "a.json").read_text())
    with open(tmp_path / "a.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(found) == len(rows) == 12
    for one, row in zip(found, rows, strict=True):
        assert list(one) == ["path", "scores", "labels"] and one["path"] == row["path"]
        assert {k: f"{v:.4f}" for k, v in one["scores"].items()} == {
            k: row[k] for k in ("cat", "dog", "große Eule")
        }
        assert "|".join(one["labels"]) == row["labels"]
    (tmp_path / "labels.json").write_text('{"cat": 1}')
    outcome = spcl(*arguments, tmp_path / "labels.json")
    assert_mistake(outcome, tmp_path / "labels.json", "holds no predictions")
    outcome = spcl(*arguments[:-1], "--format", "json", "--out", tmp_path / "a.csv")
    assert_mistake(outcome, "holds no predictions")  # it holds others


def test_parquet_needs_its_package(spcl, trained, tmp_path, monkeypatch):
    arguments = ("predict", "--run", trained[0], "--images", trained[1] / "dog")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    outcome = spcl(*arguments, "--out", tmp_path / "a.parquet")
    assert_mistake(outcome, "needs the package 'pyarrow'", "pip install")
    assert not (tmp_path / "a.parquet").exists()


def test_parquet_has_a_column_for_every_class(spcl, trained, tmp_path):
    pytest.importorskip("pyarrow")
    import pandas as pd

    out = tmp_path / "a.parquet"
    for _ in range(2):
        outcome = spcl(
            "predict", "--run", trained[0], "--images", trained[1] / "dog", "--out", out, "--top", 2
        )
        assert outcome.status == 0, outcome.err
    frame = pd.read_parquet(out)
    assert list(frame.columns) == ["path", "cat", "dog", "große Eule", "labels"]
    assert len(frame) == 12 and all(len(labels) == 2 for labels in frame["labels"])


def test_the_highest_scores_can_be_the_labels(predict, trained):
    outcome, rows = predict(trained[1] / "dog", "--top", 2)
    assert "labels are the 2 highest scores: " in outcome.out
    for row in rows:
        scores = {name: float(row[name]) for name in ("cat", "dog", "große Eule")}
        labels = row["labels"].split("|")
        assert len(labels) == 2 and scores[labels[0]] >= scores[labels[1]] >= min(scores.values())
    middle = sorted(float(row["cat"]) for row in rows)[6]
    outcome, rows = predict(trained[1] / "dog", "--top", 3, "--threshold", middle)
    assert 0 < sum("cat" in row["labels"].split("|") for row in rows) < 12
    assert_mistake(predict(trained[1] / "dog", "--top", 0)[0], "at least 1; got 0")


def test_images_of_another_size_give_other_scores_and_a_word_about_the_threshold(predict, trained):
    _, usual = predict(trained[1] / "dog")
    outcome, same = predict(trained[1] / "dog", "--size", 16)
    assert same == usual and outcome.err.count("threshold") == 0
    outcome, rows = predict(trained[1] / "dog", "--size", 32)
    assert "images of 32 px" in outcome.out and rows != usual
    assert "the run's threshold was chosen at 16 px" in outcome.err
    assert "threshold" not in predict(trained[1] / "dog", "--size", 32, "--top", 1)[0].err
    assert_mistake(predict(trained[1] / "dog", "--size", "big")[0], "16..4096, not 'big'")


# --- which run ------------------------------------------------------------------------------------


def test_a_run_on_any_data_set_predicts(spcl, results, tiny, tmp_path):
    tiny |= {"train_images": 16, "eval_images": 16, "epochs": 1}
    scenes = ("run", "--dataset", "scenes", "--profile", "smoke", "--method", "an")
    assert spcl(*scenes, **tiny).status == 0
    new = make_folder(tmp_path / "new", x=2)
    out = tmp_path / "predictions.csv"
    outcome = spcl("predict", "--run", results, "--images", new, "--out", out)
    assert outcome.status == 0, outcome.err
    header, *rows = out.read_text().splitlines()
    assert header.startswith("path,aeroplane,anchor,") and header.endswith(",umbrella,labels")
    assert len(rows) == 2


# --- heatmaps -------------------------------------------------------------------------------------


def test_every_image_gets_a_picture_of_its_heatmaps(predict, trained, tmp_path):
    new = make_folder(tmp_path / "new", x=2)
    shutil.copy(new / "x" / "x 0.png", new / "x" / "x 0.bmp.png")
    outcome, _ = predict(new, "--heatmaps", tmp_path / "heat", "--threshold", "0")
    assert outcome.status == 0
    files = sorted(
        p.relative_to(tmp_path / "heat").as_posix() for p in (tmp_path / "heat").rglob("*.png")
    )
    assert files == ["x/x 0.bmp.png.png", "x/x 0.png.png", "x/x 1.png.png"]
    with Image.open(tmp_path / "heat" / "x" / "x 0.png.png") as wide:
        assert wide.format == "PNG"
    # Above are the image and three labels, in two rows; now the image and the highest class.
    predict(new, "--heatmaps", tmp_path / "heat", "--threshold", "1")
    with Image.open(tmp_path / "heat" / "x" / "x 0.png.png") as narrow:
        assert (wide.width - narrow.width, wide.height - narrow.height) == (360 + 10, 270 + 32)
    assert not list((tmp_path / "heat").rglob("*.tmp"))


def test_an_overlay_is_coloured_where_the_map_is_high_and_keeps_the_photograph_elsewhere():
    image = Image.new("RGB", (300, 200), (200, 90, 40))
    maps = torch.zeros(3, 4, 4)
    maps[0, 0, 3] = 1  # the top right corner
    maps[1, 0, 3] = 0.5
    titles = ["title", "a", "b", "a name that is far too long" * 9]
    picture = np.asarray(overlays(image, maps, titles))
    panels = {}
    for number in range(4):  # three columns
        left, top = 10 + 310 * (number % 3), 76 + 232 * (number // 3)
        panels[number] = picture[top : top + 200, left : left + 300].astype(int)
    assert (panels[0] == image.getpixel((0, 0))).all() and (panels[3] == panels[0]).all()
    for number in (1, 2):
        assert (panels[number][150:, :100] == panels[0][150:, :100]).all()
        steps = np.abs(np.diff(panels[number], axis=1))
        assert 0 < steps.max() <= 12, "the colour has an edge"
    sure, unsure = (panels[i][5:45, 230:295].reshape(-1, 3).mean(0) for i in (1, 2))
    assert sure[1] > 140  # 90 in the photograph, 231 in the colour of 1
    assert abs(unsure - panels[0][0, 0]).max() < abs(sure - panels[0][0, 0]).max()
    title = picture[308 - 22 : 308, 10:310]
    assert (title < 128).any() and (picture[286:, 320:940] == 255).all()  # cut off in time


def test_all_overlays_have_the_same_scale():
    image = Image.new("RGB", (90, 60), "grey")
    scales = [
        np.asarray(overlays(image, torch.full((1, 4, 4), p), ["", ""]))[10:54] for p in (0.02, 1)
    ]
    assert (scales[0] == scales[1]).all() and scales[0].std() > 0


# --- pooling --------------------------------------------------------------------------------------


def test_another_pooling_of_the_same_maps_needs_a_threshold_and_gives_other_scores(
    spcl, trained, tmp_path
):
    make_folder(tmp_path / "new", any=3)
    arguments = ("predict", "--run", trained[0], "--images", tmp_path / "new")
    refused = spcl(*arguments, "--pooling", "lse")
    assert refused.status == 2 and "give --threshold" in refused.err
    tables = []
    for more in ((), ("--pooling", "mean"), ("--pooling", "lse:2")):
        out = tmp_path / f"{len(tables)}.csv"
        assert spcl(*arguments, "--out", out, "--threshold", 0.5, *more).status == 0
        tables.append(out.read_text())
    assert tables[0] == tables[1] != tables[2]


# --- from Python ----------------------------------------------------------------------------------


@pytest.fixture
def predictor(trained):
    """A predictor whose network gets smaller squares than those that the images are stored as."""
    found = Predictor.load(trained[0])
    config = found.config.replace(image_side=24)
    return Predictor(found.model, config, found.classes, found.threshold)


def test_python_and_the_command_line_give_the_same_scores_and_labels(predictor, tmp_path):
    names = [f"{i:02}" for i in range(70)]  # more than a batch
    files = [save_noise(tmp_path / "new" / f"{name}.png") for name in names]
    predict_files(predictor, tmp_path / "new", tmp_path / "a.csv")
    with open(tmp_path / "a.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    pictures = [Image.open(file) for file in files]
    batch = torch.stack([torch.from_numpy(np.array(p)).permute(2, 0, 1) for p in pictures])
    for images in (files, pictures, batch, batch / 255):
        scores, labels = predictor(images), predictor.labels(images)
        for row, own, given in zip(rows, scores.tolist(), labels, strict=True):
            assert [row[c] for c in predictor.classes] == [f"{value:.4f}" for value in own]
            assert row["labels"] == "|".join(given)


def test_the_transform_gives_what_the_network_gets(predictor, trained):
    file = trained[1] / "dog" / "dog 3.png"
    network_input = predictor.transform(file)
    assert network_input.shape == (1, 3, 16, 16) and network_input.is_floating_point()
    with torch.no_grad():
        maps = predictor.model(network_input)
    torch.testing.assert_close(predictor.score_maps(file), maps, atol=0.02, rtol=0.02)  # bfloat16
    assert torch.equal(predictor.heatmaps(file), predictor.score_maps(file).sigmoid())


def test_labels_follow_the_rule(predictor, trained):
    files = sorted((trained[1] / "dog").iterdir())
    predictor.rule = LabelRule(torch.tensor([0.0, 1.0, 1.0]))
    assert predictor.labels(files) == [["cat"]] * 12
    predictor.rule = LabelRule(None, top=1)
    highest = predictor(files).argmax(1).tolist()
    assert predictor.labels(files) == [[predictor.classes[c]] for c in highest]
    predictor.rule = None
    with pytest.raises(UserError, match="no threshold"):
        predictor.labels(files)
    with pytest.raises(UserError, match="no threshold"):
        predict_files(predictor, trained[1], trained[1] / "never.csv")


def test_large_photographs_differ_at_most_by_how_they_are_decoded(predictor, tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    large = Image.fromarray(noise).resize((900, 600))
    large.save(tmp_path / "large.jpg", quality=95)
    scores = predictor([tmp_path / "large.jpg", Image.open(tmp_path / "large.jpg")])
    torch.testing.assert_close(scores[0], scores[1], atol=0.005, rtol=0)


def test_a_predictor_takes_images_of_any_shape(trained):
    predictor = Predictor.load(trained[0])
    images = torch.randint(0, 256, (5, 3, 16, 16), dtype=torch.uint8)
    scores = predictor(images)
    assert scores.shape == (5, 3) and bool(((scores > 0) & (scores < 1)).all())
    assert not scores.requires_grad
    torch.testing.assert_close(predictor(images[:2]), scores[:2], atol=1e-4, rtol=1e-3)
    large = images.repeat_interleave(4, 2).repeat_interleave(2, 3)  # (5, 3, 64, 32)
    torch.testing.assert_close(predictor(large), scores, atol=0.05, rtol=0)
    tall = images.repeat_interleave(3, 2)  # its width is what the network expects
    assert predictor.score_maps(tall).shape == predictor.score_maps(images).shape
    maps = predictor.score_maps(images)
    torch.testing.assert_close(torch.sigmoid(maps.mean((2, 3))), scores)
    assert predictor.classes == ("cat", "dog", "große Eule") and predictor.threshold > 0


def test_weights_that_could_run_code_are_refused(trained, tmp_path):
    run = shutil.copytree(trained[0], tmp_path / "run")
    torch.save(torch.nn.Linear(2, 2), run / "weights.safetensors")
    with pytest.raises(UserError, match="weights.safetensors' cannot be read"):
        Predictor.load(run)


def test_it_is_imported_when_it_is_asked_for():
    code = (
        "import sys, spcl_lib; assert 'spcl_lib.runs.predictor' not in sys.modules; "
        "from spcl_lib import Predictor; assert 'spcl_lib.runs.predictor' in sys.modules; "
        "assert 'matplotlib' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=paths.project())
    with pytest.raises(AttributeError, match="no attribute 'Predicter'"):
        spcl_lib.Predicter  # noqa: B018


# --- the threshold --------------------------------------------------------------------------------


@pytest.mark.parametrize("k", [1.0, 1.5, 3.0])
def test_the_threshold_gives_the_expected_number_of_labels_on_training_images(trained, k):
    predictor = Predictor.load(trained[0])
    train, _ = load_splits(predictor.config, trained[1])
    config = predictor.config.replace(expected_positives=k)
    threshold = choose_threshold(predictor.model, train.images, config)
    labels = predictor(train.images) >= threshold
    assert labels.sum() == pytest.approx(k * len(train), abs=2)
    if k == 1.5:  # the profile's
        assert threshold == pytest.approx(run_metrics(trained[0])["threshold"], abs=1e-4)


def test_the_threshold_is_chosen_on_a_part_of_many_images(trained, monkeypatch):
    predictor = Predictor.load(trained[0])
    train, _ = load_splits(predictor.config, trained[1])
    monkeypatch.setattr("spcl_lib.runs.thresholds._THRESHOLD_IMAGES", 4)
    seen = []

    class Images:
        def __len__(self):
            return len(train)

        def __getitem__(self, which):
            seen.extend(which.tolist())
            return train.images[which]

    assert 0 < choose_threshold(predictor.model, Images(), predictor.config) < 1
    assert len(set(seen)) == 4
