"""ImageNet-1K and ReaL: labels match by name, empty lists are left out, errors name the fault."""

import json

import pytest
from refusals import message_of
from small_folder import QUICK, small_config
from small_imagenet import NAMES, TRAIN, WNIDS, grey_of, make_imagenet, picture, real_lists

from spcl_lib.runs import splits as splits_module
from spcl_lib.runs.splits import load_splits

KEPT = [1, 3, 7, 12, 49_999]  # of VALIDATION, those that ReaL labels


@pytest.fixture
def folder(tmp_path):
    """The folder imagenet of a small data root."""
    return make_imagenet(tmp_path / "root")


def splits(folder, **settings):
    return load_splits(small_config("imagenet", **settings), folder.parent)


def classes_of(labels):
    return [row.nonzero().flatten().tolist() for row in labels]


@pytest.mark.parametrize("nested", [False, True])
def test_labels_are_those_of_folders_and_of_real_by_the_names_of_files(nested, tmp_path):
    train, report = splits(make_imagenet(tmp_path / "root", nested))
    order = [(c, i) for c in sorted(TRAIN) for i in range(TRAIN[c])]
    assert classes_of(train.labels) == [[c] for c, _ in order]
    for image, (c, i) in zip(train.images, order, strict=True):
        assert (image.int() - c % 200 - 10 * i).abs().max() <= 2  # JPEG
    assert train.labels.shape == (10, 1000) and len(set(train.classes)) == 1000
    assert train.classes[7] == NAMES[7] and train.classes[517] == f"{NAMES[134]} ({WNIDS[517]})"
    assert report.ids == tuple(f"ILSVRC2012_val_{n:08d}" for n in KEPT)
    assert classes_of(report.labels) == [real_lists()[n - 1] for n in KEPT]
    for image, number in zip(report.images, KEPT, strict=True):
        assert (image.int() - grey_of(number)).abs().max() <= 2


def test_names_of_mirrors_are_understood_and_other_files_are_left_out(folder):
    old = folder / "val" / "ILSVRC2012_val_00000012.JPEG"
    old.rename(old.with_name("ILSVRC2012_val_00000012_n01751748.jpg"))
    for name in ("val/readme.txt", f"train/{WNIDS[7]}.tar", f"train/{WNIDS[7]}/notes.txt"):
        (folder / name).write_bytes(b"")
    train, report = splits(folder)
    assert report.ids == tuple(f"ILSVRC2012_val_{n:08d}" for n in KEPT) and len(train) == 10


def test_a_choice_of_images_is_fixed_fair_and_made_before_any_is_decoded(folder, monkeypatch):
    for c in range(20, 40):
        for i in range(5):
            picture(folder / "train" / WNIDS[c] / f"{i}.JPEG", 100)
    monkeypatch.setattr(splits_module, "_decode", lambda data, *_: data)
    few, report = splits(folder, train_images=30, eval_images=2)
    assert (len(few.files), len(report.files)) == (30, 2)
    assert int(few.labels.any(0).sum()) > 10  # the first 30 files would be of 8 classes
    assert set(few.ids) < set(splits(folder, train_images=60)[0].ids)
    assert splits(folder, train_images=30)[0].ids == few.ids


def test_choices_need_no_validation_images_and_have_the_labels_of_training(folder, tmp_path):
    everything = splits(folder)[0].ids
    (folder / "val").rename(tmp_path / "val")
    (folder / "real.json").unlink()
    train, held = splits(folder, report="val")
    assert sorted(train.ids + held.ids) == sorted(everything) and (len(train), len(held)) == (6, 4)
    for data in (train, held):
        assert [WNIDS[c] for (c,) in classes_of(data.labels)] == [i[:9] for i in data.ids]


@pytest.mark.parametrize(
    ("name", "words"),
    [("real.json", "publishes"), ("imagenet_class_index.json", "publishes"),
     ("train", "<wnid>/*.JPEG"), ("val", "--set report=val")],
)  # fmt: skip
def test_missing_parts_are_named(folder, tmp_path, name, words):
    (folder / name).rename(tmp_path / name)
    said = message_of(splits, folder)
    assert str(folder / name) in said and words in said


def test_a_run_reports_real_accuracy_on_validation_images_only(spcl, results, folder):
    command = ("run", "--dataset", "imagenet", "--profile", "smoke", "--method", "scl")
    for report in ("test", "val"):
        outcome = spcl(*command, "--data-root", folder.parent, **QUICK, report=report)
        assert outcome.status == 0, outcome.err
    found = [json.loads(f.read_text()) for f in results.rglob("metrics.json")]
    final, choice = sorted(found, key=lambda m: m["config"]["report"])
    assert final["real_accuracy"] == final["top1_accuracy"] and 0 <= final["real_accuracy"] <= 100
    assert "real_accuracy" not in choice and 0 <= choice["top1_accuracy"] <= 100
    assert len(final["AP"]) == len(final["classes"]) == 1000
