"""Predictions of a finished run have the numbers of its evaluation, in the requested files."""

import csv
import json
import os
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from small_folder import (
    assert_mistake,
    make_folder,
    odd_photographs,
    save_noise,
    train_on,
    write_csv,
)
from torch import nn

from spcl_lib import Predictor, UserError, mean_average_precision
from spcl_lib.data.images import read_image
from spcl_lib.evaluate import prepare
from spcl_lib.runs.predict import predict_files
from spcl_lib.runs.splits import load_splits
from spcl_lib.viewer.overlays import overlays, shrink

CLASSES = ("cat", "dog", "große Eule")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A finished run on a folder with full labels, and that folder."""
    base = tmp_path_factory.mktemp("trained")
    root = make_folder(base / "images", cat=12, dog=12, **{"große Eule": 12})
    rows = [f"{c}/{c} {i}.png,{c}|dog" for c in ("cat", "große Eule") for i in range(5)]
    full = write_csv(root / "full.csv", "path,labels", *rows, "dog/dog 1.png,dog")
    return train_on(root, base, full_labels=full, epochs=3, train_images=0), root


@pytest.fixture
def predict(spcl, trained, tmp_path):
    """Calls the command; gives the outcome and the rows of the file, if there is one."""
    out = tmp_path / "out.csv"

    def call(images, *arguments, run=trained[0]):
        images = images if isinstance(images, list) else [images]
        outcome = spcl("predict", "--run", run, "--images", *images, "--out", out, *arguments)
        if not out.is_file():
            return outcome, None
        with open(out, encoding="utf-8", errors="surrogateescape", newline="") as file:
            return outcome, list(csv.DictReader(file))

    return call


def change_metrics(run, **values):
    """Another content of a run's metrics.json, without its checksum; None removes a value."""
    metrics = json.loads((run / "metrics.json").read_text()) | values | {"crc32": None}
    kept = {name: value for name, value in metrics.items() if value is not None}
    (run / "metrics.json").write_text(json.dumps(kept))


# --- the file -------------------------------------------------------------------------------------


def test_scores_are_those_of_the_evaluation_and_labels_those_from_the_threshold(predict, trained):
    run, root = trained
    outcome, rows = predict(root)
    assert outcome.status == 0 and outcome.out.startswith(f"run: {run} (folder, an, 3 classes)")
    assert list(rows[0]) == ["path", *CLASSES, "labels"]
    assert len(rows) == 36 and [r["path"] for r in rows] == sorted(r["path"] for r in rows)
    metrics = json.loads((run / "metrics.json").read_text())
    _, report = load_splits(Predictor.load(run).config, root)
    by_path = {row["path"]: row for row in rows}
    scores = [[float(by_path[name][c]) for c in report.classes] for name in report.ids]
    score = mean_average_precision(torch.tensor(scores), report.labels)
    assert score == pytest.approx(metrics["mAP"], abs=1e-6)
    threshold = metrics["threshold"]
    train = load_splits(Predictor.load(run).config, root)[0]
    chosen = Predictor.load(run)([root / name for name in train.ids]) >= threshold - 1e-6
    assert int(chosen.sum()) == round(1.5 * len(train))
    assert f"36 images, labels are scores from {threshold:.3f}: " in outcome.out
    for row in rows:
        surely = {c for c in CLASSES if float(row[c]) > threshold + 1e-4}
        perhaps = {c for c in CLASSES if float(row[c]) >= threshold - 1e-4}
        assert surely <= set(filter(None, row["labels"].split("|"))) <= perhaps


def test_the_threshold_and_the_number_of_labels_can_be_given(predict, trained):
    for given, labels in (("0", "|".join(CLASSES)), ("1", "")):
        _, rows = predict(trained[1] / "dog", "--threshold", given)
        assert [row["labels"] for row in rows] == [labels] * 12
    outcome, rows = predict(trained[1] / "dog", "--top", 2)
    assert "labels are the 2 highest scores: " in outcome.out
    both = predict(trained[1] / "dog", "--top", 2, "--threshold", 1)[1]
    assert {row["labels"] for row in both} == {""}
    for row in rows:
        first, second = (float(row[name]) for name in row["labels"].split("|"))
        assert first >= second >= min(float(row[c]) for c in CLASSES)
    assert_mistake(predict(trained[1], "--threshold=nan")[0], "must be in 0..1; got nan")


def test_several_images_and_folders_in_all_endings_get_a_row_each(predict, trained, tmp_path):
    """`predict a.jpg b.jfif c.ppm` wrote one row."""
    names = odd_photographs(tmp_path / "odd")
    assert len(predict(tmp_path / "odd")[1]) == len(names) == 9
    given = [tmp_path / "odd" / name for name in ("turned.jpg", "plain.jfif", "plain.ppm")]
    assert [row["path"] for row in predict(given)[1]] == [file.name for file in given]
    save_noise(tmp_path / "more" / "a.png")
    _, rows = predict([*given, tmp_path / "more"])
    assert [row["path"] for row in rows] == [*(f"odd/{f.name}" for f in given), "more/a.png"]


def test_what_cannot_be_read_is_left_out_and_named_with_the_reason(predict, tmp_path):
    new = make_folder(tmp_path / "new", x=3)
    (new / "x" / "torn é.jpg").write_bytes(b"\xff\xd8\xff\xe0 torn")
    (new / "text.png").write_text("404: not found")
    (new / "phone.heic").write_bytes(b"\0\0\0\x18ftypheic")
    outcome, rows = predict(new)
    assert outcome.status == 0 and [r["path"] for r in rows] == [f"x/x {i}.png" for i in range(3)]
    assert "left out 2: text.png cannot be read" in outcome.err
    assert "x/torn é.jpg" in outcome.err and "3 images" in outcome.out
    assert ".heic" in outcome.out and "pip install pillow-heif" in outcome.out
    before = (tmp_path / "out.csv").read_bytes()
    assert_mistake(predict(new / "text.png")[0], "none of the 1 images", "it is no image")
    assert_mistake(predict(new / "phone.heic")[0], "pip install pillow-heif")
    assert (tmp_path / "out.csv").read_bytes() == before and not list(tmp_path.glob(".out*.tmp"))


def test_json_has_the_rows_of_the_csv_file(predict, trained, tmp_path):
    _, rows = predict(trained[1] / "dog")
    for _ in range(2):  # predictions are replaced
        assert predict(trained[1] / "dog", "--out", tmp_path / "a.json")[0].status == 0
    found = json.loads((tmp_path / "a.json").read_text())
    for one, row in zip(found, rows, strict=True):
        assert list(one) == ["path", "scores", "labels"] and one["path"] == row["path"]
        assert {k: f"{v:.4f}" for k, v in one["scores"].items()} == {c: row[c] for c in CLASSES}
        assert "|".join(one["labels"]) == row["labels"]


NAMES = ["two\nlines.png", "x" * 251 + ".png", "=cmd|calc!A0.png", os.fsdecode(b"\xe9.png")]


def test_no_name_loses_the_predictions_or_is_a_formula(predict, trained, tmp_path):
    new, heat = tmp_path / "new", tmp_path / "heat"
    for name in NAMES:
        save_noise(new / "a.png").rename(new / name)
    run = shutil.copytree(trained[0], tmp_path / "run")
    change_metrics(run, classes=["=cmd|' /C calc'!A0", "labels", "two\nlines"])
    for _ in range(2):  # they are predictions that can be replaced
        outcome, rows = predict(new, "--heatmaps", heat, "--threshold", 0, run=run)
        assert outcome.status == 0
    classes = ["'=cmd|' /C calc'!A0", "labels (class)", "two\nlines"]
    assert list(rows[0]) == ["path", *classes, "labels"]
    assert sorted((new / row["path"]).name for row in rows) == sorted(NAMES)
    assert not any(row["path"].startswith("=") for row in rows)
    assert len(list(heat.iterdir())) == len(NAMES)


# --- mistakes -------------------------------------------------------------------------------------


@pytest.mark.parametrize("content", [b"\x89PNG\r\n", b"path,labels\ncat/cat 1.png,cat|dog\n"])
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
    assert predict(trained[1] / "cat")[0].status == 0


def test_mistakes_about_places_are_one_line(predict, trained, tmp_path):
    assert_mistake(predict(tmp_path / "nowhere")[0], tmp_path / "nowhere", "does not exist")
    new = make_folder(tmp_path / "new", x=1)
    outcome, rows = predict(new, "--heatmaps", new / "heat")
    assert_mistake(outcome, "inside", new)
    assert rows is None and not (new / "heat").exists()
    assert_mistake(predict(new, "--out", tmp_path)[0], tmp_path, "no regular file")


def test_weights_and_scores_that_are_no_numbers_are_refused(predict, trained, tmp_path):
    run = shutil.copytree(trained[0], tmp_path / "run")
    state = load_file(run / "weights.safetensors")
    state["head.bias"][0] = np.nan
    save_file(state, run / "weights.safetensors")
    assert_mistake(predict(trained[1], run=run)[0], "no numbers")


# --- size, pooling and precision ------------------------------------------------------------------


def test_size_and_pooling_change_scores_and_say_what_becomes_of_the_threshold(predict, trained):
    _, usual = predict(trained[1] / "dog")
    outcome, same = predict(trained[1] / "dog", "--size", 16, "--pooling", "mean", "--threshold", 0)
    assert [r["cat"] for r in same] == [r["cat"] for r in usual] and "threshold" not in outcome.err
    outcome, rows = predict(trained[1] / "dog", "--size", 32)
    assert "images of 32 px" in outcome.out and rows != usual
    assert "the run's threshold was chosen at 16 px" in outcome.err
    assert_mistake(predict(trained[1], "--pooling", "lse:2")[0], "no threshold is known")
    _, other = predict(trained[1] / "dog", "--pooling", "lse:2", "--threshold", 0)
    assert [r["cat"] for r in other] != [r["cat"] for r in usual]


def test_predictions_are_in_float32_unless_speed_is_asked_for(predict, trained):
    """They were in bfloat16 on machines that have it, and the exported file differed by 0.06."""
    predictor, quick = (Predictor.load(trained[0], amp=amp) for amp in ("off", "bfloat16"))
    images = torch.randint(0, 256, (4, 3, 16, 16), dtype=torch.uint8)
    with torch.no_grad():
        maps = predictor.model(prepare(images, 16))
    torch.testing.assert_close(predictor.score_maps(images), maps, atol=1e-5, rtol=1e-5)
    assert (quick.score_maps(images) - maps).abs().max() > 1e-4
    assert predict(trained[1] / "dog", "--fast")[0].status == 0


def test_an_overlay_is_coloured_where_the_map_is_high_and_elsewhere_the_photograph(tmp_path):
    image = Image.new("RGB", (300, 200), (200, 90, 40))
    maps = torch.zeros(1, 4, 4)
    maps[0, 0, 3] = 1  # the top right corner
    picture = np.asarray(overlays(image, maps, ["title", "a name that is far too long" * 9]))
    plain, heat = (picture[76:276, left : left + 300].astype(int) for left in (10, 320))
    assert (plain == image.getpixel((0, 0))).all() and (heat[150:, :100] == plain[150:, :100]).all()
    assert 0 < np.abs(np.diff(heat, axis=1)).max() <= 12, "the colour has an edge"
    assert heat[5:45, 230:295, 1].mean() > 140  # 90 in the photograph, 231 in the colour of 1
    Image.new("RGB", (5000, 1)).save(tmp_path / "thin.png")
    assert shrink(tmp_path / "thin.png", 50).size == (50, 1)


# --- from Python ----------------------------------------------------------------------------------


def test_python_and_the_command_line_give_the_same_scores_and_labels(trained, tmp_path):
    found = Predictor.load(trained[0])
    config = found.config.replace(image_side=24)  # first larger squares than the network's
    predictor = Predictor(found.model, found.classes, found.size, found.rule.threshold, config)
    files = [save_noise(tmp_path / "new" / f"{i:02}.png") for i in range(70)]  # two batches
    predict_files(predictor, tmp_path / "new", tmp_path / "a.csv")
    with open(tmp_path / "a.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    pictures = [Image.open(file) for file in files]
    batch = torch.stack([torch.from_numpy(np.array(p)).permute(2, 0, 1) for p in pictures])
    for images in (files, pictures, batch, batch / 255):
        scores, labels = predictor(images), predictor.labels(images)
        for row, own, given in zip(rows, scores.tolist(), labels, strict=True):
            assert [row[c] for c in CLASSES] == [f"{value:.4f}" for value in own]
            assert row["labels"] == "|".join(given)
    predictor.rule = None
    with pytest.raises(UserError, match="no threshold"):
        predictor.labels(files)


def test_a_model_of_ones_own_loop_predicts(tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 8, 8), nn.ReLU(), nn.Conv2d(8, 2, 1))
    model.pooling = "average"  # this name is not ours alone
    predictor = Predictor(model, ["cat", "dog"], 32, threshold=0.5)
    files = [save_noise(tmp_path / "new" / f"{i}.png") for i in range(3)]
    batch = torch.from_numpy(np.stack([read_image(file, 32) for file in files]))
    maps = model(prepare(batch, 32))
    torch.testing.assert_close(predictor(files), maps.mean((2, 3)).sigmoid())
    assert predictor.heatmaps(files).shape == (3, 2, 4, 4)
    done, _ = predict_files(predictor, files, tmp_path / "a.json")
    assert done == 3 and len(predictor.labels(files)) == 3
    with pytest.raises(ValueError, match="the model's maps"):
        Predictor(model, ["cat"], 32)(files)
