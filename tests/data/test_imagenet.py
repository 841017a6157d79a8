"""ImageNet-1K and ReaL: labels match by name, empty lists are left out, errors name the fault."""

import json
import random

import pytest
import torch
from small_imagenet import (
    NAMES,
    TRAIN,
    WNIDS,
    grey_of,
    make_imagenet,
    picture,
    real_lists,
)
from torch import nn

from spcl_lib import UserError, methods
from spcl_lib.data import imagenet
from spcl_lib.data.draws import single_label_draw
from spcl_lib.data.imagenet import (
    list_training,
    list_validation,
    read_class_index,
    read_real,
)
from spcl_lib.evaluate import evaluate
from spcl_lib.runs import splits as splits_module
from spcl_lib.runs.settings import make_config
from spcl_lib.runs.splits import load_splits

KEPT = [1, 3, 7, 12, 49_999]  # of VALIDATION, those that ReaL labels
UNTRAINED = {"backbone": "small_resnet", "weights": "none", "image_side": 16, "crop_side": 16,
             "eval_side": 16, "epochs": 1}  # fmt: skip


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SPCL_CACHE", str(tmp_path / "cache"))


@pytest.fixture(params=["flat"])
def folder(tmp_path, request):
    """The folder imagenet of a small data root."""
    return make_imagenet(tmp_path / "root", request.param)


every_layout = pytest.mark.parametrize("folder", ["flat", "nested", "mixed"], indirect=True)


def splits(folder, **settings):
    values = {"image_side": 16, "train_images": 0, "eval_images": 0} | settings
    return load_splits(make_config("imagenet", "an", 0, "smoke", values), folder.parent)


def classes_of(labels):
    return [row.nonzero().flatten().tolist() for row in labels]


# --- what is right --------------------------------------------------------------------------------


def test_training_images_have_the_class_of_their_folder_and_outputs_stay_1000(folder, capsys):
    train, _ = splits(folder)
    order = [c for c in sorted(TRAIN) for _ in range(TRAIN[c])]
    assert classes_of(train.labels) == [[c] for c in order]
    assert train.ids[-1] == f"{WNIDS[999]}/{WNIDS[999]}_3"
    greys = [c % 200 + 10 * i for c in sorted(TRAIN) for i in range(TRAIN[c])]
    for image, grey in zip(train.images, greys, strict=True):
        assert (image.int() - grey).abs().max() <= 2  # JPEG
    assert train.labels.shape == (10, 1000) and len(set(train.classes)) == 1000
    assert train.classes[7] == NAMES[7] and train.classes[517] == f"{NAMES[134]} ({WNIDS[517]})"
    assert "10 images of 4 of the 1,000 classes" in capsys.readouterr().out


@every_layout
def test_validation_images_get_their_labels_by_name_and_empty_lists_are_left_out(folder, capsys):
    _, report = splits(folder)
    assert report.ids == tuple(f"ILSVRC2012_val_{n:08d}" for n in KEPT)
    assert classes_of(report.labels) == [real_lists()[n - 1] for n in KEPT]
    for image, number in zip(report.images, KEPT, strict=True):
        assert (image.int() - grey_of(number)).abs().max() <= 2
    said = capsys.readouterr().out
    assert "7 of 50,000 images, 2 of them left out because ReaL gives them no label" in said


def test_damaged_images_are_left_out_with_their_labels(folder, capsys):
    intact, _ = splits(folder)
    files = [folder / "train" / f"{name}.JPEG" for name in intact.ids]
    for number in (1, 4):
        files[number].write_bytes(b"")
    train, report = splits(folder, damaged="skip")
    assert "left out 2 of 10 images of imagenet-train" in capsys.readouterr().out
    others = [i for i in range(10) if i not in (1, 4)]
    assert train.ids == tuple(intact.ids[i] for i in others) and len(report) == len(KEPT)
    assert torch.equal(train.labels, intact.labels[others])
    with pytest.raises(UserError, match="2 of 10 images of imagenet-train-10 are damaged"):
        splits(folder)


@every_layout
def test_the_order_of_arrival_does_not_matter(folder, monkeypatch):
    expected = list_validation(folder / "val", folder / "real.json")
    sorted_entries = imagenet._entries

    def shuffled(path):
        return random.Random(0).sample(entries := sorted_entries(path), len(entries))

    monkeypatch.setattr(imagenet, "_entries", shuffled)
    assert list_validation(folder / "val", folder / "real.json") == expected


def test_names_of_mirrors_are_understood_and_other_files_are_left_out_and_counted(folder, capsys):
    old = folder / "val" / "ILSVRC2012_val_00000012.JPEG"
    old.rename(old.with_name("ILSVRC2012_val_00000012_n01751748.jpg"))
    (folder / "val" / "ILSVRC2012_val_00050001.JPEG").write_bytes(b"")
    (folder / "val" / "readme.txt").write_text("")
    (folder / "val" / ".DS_Store").write_text("")
    (folder / "train" / f"{WNIDS[7]}.tar").write_text("")
    (folder / "train" / WNIDS[7] / "notes.txt").write_text("")
    train, report = splits(folder)
    assert report.ids == tuple(f"ILSVRC2012_val_{n:08d}" for n in KEPT) and len(train) == 10
    said = capsys.readouterr().out
    assert "imagenet/val: 2 entries left out" in said
    assert "imagenet/train: 2 entries left out" in said and f"'{folder / 'train'}" in said


class Oracle(nn.Module):
    """Ranks one class highest for every grey level; the rest of the scores are noise below it."""

    def __init__(self, answers):
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(()))
        self.answers = answers  # grey -> class

    def forward(self, images):
        greys = 255 * (images[:, 0].mean((1, 2)) * 0.229 + 0.485)
        levels = torch.tensor(list(self.answers))
        nearest = (greys[:, None] - levels).abs().argmin(1)
        maps = torch.rand(len(images), 1000, 2, 2, generator=torch.Generator().manual_seed(0))
        maps[torch.arange(len(images)), torch.tensor(list(self.answers.values()))[nearest]] += 2
        return maps + self.bias


def test_real_accuracy_of_a_fake_predictor_is_the_one_by_hand(folder):
    # Right for 1 (labels 1, 3), 7 (7, 21) and 49,999 (997, 999); wrong for 3 (3, 9) and 12.
    answers = {1: 3, 3: 1, 7: 21, 12: 24, 49_999: 999}
    _, report = splits(folder)
    model = Oracle({grey_of(n): c for n, c in answers.items()})
    metrics = evaluate(model, report, 16, amp="off")
    assert metrics["top1_accuracy"] == pytest.approx(100 * 3 / 5)
    present = {c for n in KEPT for c in real_lists()[n - 1]}
    assert metrics["classes_without_positive"] == 1000 - len(present)


def test_a_choice_of_images_is_fixed_fair_and_made_before_any_is_decoded(folder, monkeypatch):
    for c in range(20, 40):
        for i in range(5):
            picture(folder / "train" / WNIDS[c] / f"{i}.JPEG", 100)
    monkeypatch.setattr(splits_module, "_decode", lambda data, *_: data)
    few, report = splits(folder, train_images=30, eval_images=2)
    assert (len(few.files), len(report.files)) == (30, 2)
    assert int(few.labels.any(0).sum()) > 10  # the first 30 files would be of 8 classes
    more, _ = splits(folder, train_images=60)
    assert set(few.ids) < set(more.ids)
    assert splits(folder, train_images=30)[0].ids == few.ids


def test_choices_are_made_on_training_images_with_the_label_they_have(folder):
    train, held = splits(folder, report="val")
    everything = list_training(folder / "train", tuple(WNIDS))
    assert sorted(train.ids + held.ids) == sorted(everything.ids)
    assert (len(train), len(held)) == (6, 4)
    for data in (train, held):
        assert [WNIDS[c] for (c,) in classes_of(data.labels)] == [i[:9] for i in data.ids]


def test_the_observed_label_is_the_only_one(folder):
    train, _ = splits(folder)
    assert single_label_draw(train.labels, 0) is train.labels


# --- what is wrong --------------------------------------------------------------------------------


def assert_named(folder, *said):
    with pytest.raises(UserError) as caught:
        splits(folder)
    assert "\n" not in str(caught.value)
    for text in said:
        assert str(text) in str(caught.value)


def test_missing_parts_are_named(folder, tmp_path):
    assert_named(tmp_path / "imagenet", tmp_path / "imagenet", "<wnid>")
    for name in ("real.json", "imagenet_class_index.json"):
        (folder / name).rename(tmp_path / name)
        assert_named(folder, folder / name, "No such file", "published")
        (tmp_path / name).rename(folder / name)
    for name, said in (("train", "<wnid>/*.JPEG"), ("val", "--set report=val")):
        (folder / name).rename(tmp_path / name)
        assert_named(folder, folder / name, said)
        (folder / name).mkdir()
        assert_named(folder, folder / name, said)  # an empty folder
        (folder / name).rmdir()
        (tmp_path / name).rename(folder / name)
    assert len(splits(folder)[0]) == 10


def test_without_validation_images_and_real_labels_choices_can_be_made(folder, tmp_path):
    (folder / "val").rename(tmp_path / "val")
    (folder / "real.json").unlink()
    assert len(splits(folder, report="val")[1]) == 4


def test_a_folder_of_no_class_is_named(folder):
    picture(folder / "train" / "n99999999" / "1.JPEG", 9)
    assert_named(folder, folder / "train" / "n99999999", "imagenet_class_index.json", WNIDS[0])


def test_validation_images_under_other_names_are_named(folder):
    for n, file in enumerate(sorted((folder / "val").iterdir())):
        file.rename(folder / "val" / f"{n}.JPEG")
    assert_named(
        folder, f"'{folder / 'val' / '0.JPEG'}' is not named so", "ILSVRC2012_val_00000001"
    )


def test_one_number_in_two_files_is_named(folder):
    picture(folder / "val" / WNIDS[0] / "ILSVRC2012_val_00000012.JPEG", 9)
    assert_named(folder, f"{WNIDS[0]}/ILSVRC2012_val_00000012.JPEG", "same image", "keep one")


def test_no_image_with_a_label_is_said(folder):
    for number in KEPT:
        (folder / "val" / f"ILSVRC2012_val_{number:08d}.JPEG").unlink()
    assert_named(folder, folder / "real.json", folder / "val", "none of the images")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda lists: lists[:-1], "holds 49,999 entries; expected a list of 50,000 lists"),
        (lambda lists: [*lists, []], "50,001 entries"),
        (lambda lists: dict(enumerate(lists)), "holds dict"),
        (lambda lists: [*lists[:16], [3, 1000], *lists[17:]], "[3, 1000] for ILSVRC2012_val_0000"),
        (lambda lists: [*lists[:16], [-1], *lists[17:]], "val_00000017; expected a list of class"),
        (lambda lists: [*lists[:16], [True], *lists[17:]], "[True] for"),
        (lambda lists: [*lists[:16], ["7"], *lists[17:]], "['7'] for"),
        (lambda lists: [*lists[:16], [1.0], *lists[17:]], "[1.0] for"),
        (lambda lists: [*lists[:16], 7, *lists[17:]], "has 7 for ILSVRC2012_val_00000017"),
    ],
)
def test_a_real_json_that_cannot_be_is_named(change, said, tmp_path):
    file = tmp_path / "real.json"
    file.write_text(json.dumps(change(real_lists())))
    with pytest.raises(UserError, match=r"real\.json'") as caught:
        read_real(file)
    assert said in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"[[1, 2], [3", b"", b"\xff\xd8\xff\xe0", b"404: not found",
                                     b"[" * 50_000])  # fmt: skip
@pytest.mark.parametrize("name", ["real.json", "imagenet_class_index.json"])
def test_invalid_json_is_named(name, content, folder):
    (folder / name).write_bytes(content)
    assert_named(folder, f"'{folder / name}' is no valid JSON", "published")


@pytest.mark.parametrize(
    "change",
    [
        lambda table: {k: v for k, v in table.items() if k != "999"},
        lambda table: table | {"1000": ["n99999999", "new"]},
        lambda table: table | {"5": table["6"], "6": table["5"]},  # not the standard order
        lambda table: table | {"5": table["6"]},
        lambda table: table | {"5": ["n00000045"]},
        lambda table: table | {"5": 5},
        lambda table: table | {"5": [table["5"][0], 5]},
        lambda table: table | {"5": [table["5"][0], ""]},
        lambda table: list(table.values()),
    ],
)
def test_another_class_index_is_refused(change, folder):
    file = folder / "imagenet_class_index.json"
    file.write_text(json.dumps(change(json.loads(file.read_text()))))
    assert_named(folder, file, "not the table", '{"0": ["n01440764", "tench"], ...}')


def test_heatmaps_that_do_not_fit_are_refused_before_any_image_is_decoded(folder, monkeypatch):
    for place in ("memory", "disk"):
        monkeypatch.setattr(f"spcl_lib.system.memory.available_{place}", lambda *_: 10**6)
    monkeypatch.setattr(splits_module, "_decode", lambda *_: pytest.fail("decoded"))
    config = make_config("imagenet", "scl", 0, "smoke", {"report": "val"})
    with pytest.raises(UserError, match="GB of disk at .*train_images"):
        load_splits(config, folder.parent)


# --- runs -----------------------------------------------------------------------------------------


def run(spcl, folder, *arguments, method="an", **settings):
    command = ("run", "--dataset", "imagenet", "--profile", "smoke", "--method", method)
    return spcl(*command, "--data-root", folder.parent, *arguments, **(UNTRAINED | settings))


def test_a_run_reports_real_accuracy_on_validation_images_only(spcl, results, folder):
    for report in ("test", "val"):
        outcome = run(spcl, folder, report=report, method="scl")
        assert outcome.status == 0, outcome.err
    metrics = [json.loads(f.read_text()) for f in results.rglob("metrics.json")]
    final = next(m for m in metrics if m["config"]["report"] == "test")
    choice = next(m for m in metrics if m["config"]["report"] == "val")
    assert final["real_accuracy"] == final["top1_accuracy"] and 0 <= final["real_accuracy"] <= 100
    assert "real_accuracy" not in choice and 0 <= choice["top1_accuracy"] <= 100
    assert (final["train_images"], final["report_images"]) == (10, 5)
    assert len(final["AP"]) == 1000 and len(final["classes"]) == 1000


def test_full_labels_do_not_exist_and_are_not_asked_for(spcl, folder):
    outcome = run(spcl, folder, method="full")
    assert outcome.status == 2 and "'full' needs all labels" in outcome.err
    root = ("--data-root", folder.parent)
    outcome = spcl("reproduce", "--dataset", "imagenet", *root, "--list", "--seeds", 0)
    assert outcome.status == 0
    head, *lines = outcome.out.splitlines()
    rows = [line for line in lines if line.startswith("  run ") and "snapshots=" not in line]
    assert "without full" in head and len(rows) == len(methods.PAPER_METHODS) - 1
    assert not any("full-seed" in row for row in rows)
    assert "without full" not in spcl("reproduce", "--dataset", "voc2007", "--list").out


def test_the_plan_of_missing_data_says_what_is_missing(spcl, tmp_path):
    arguments = ("reproduce", "--dataset", "imagenet", "--data-root", tmp_path)
    outcome = spcl(*arguments, "--list")
    assert outcome.status == 0 and "the data are missing: ImageNet is not at" in outcome.out
    assert spcl(*arguments).status == 2


# --- the published files --------------------------------------------------------------------------


@pytest.fixture
def published(real_data):
    if not (real_data / "imagenet").is_dir():
        pytest.skip(f"needs {real_data / 'imagenet'}")
    return real_data / "imagenet"


def test_the_published_files_are_as_their_authors_describe_them(published):
    lists = read_real(published / "real.json")
    assert len(lists) == 50_000 and sum(not own for own in lists) == 3_163
    wnids, classes = read_class_index(published / "imagenet_class_index.json")
    assert len(set(wnids)) == len(set(classes)) == 1000
    assert (wnids[0], classes[0], classes[517]) == ("n01440764", "tench", "crane (n03126707)")


def test_the_84_training_images_have_the_classes_of_their_folders(published):
    train, held = splits(published, report="val", image_side=32)
    table = json.loads((published / "imagenet_class_index.json").read_text())
    number = {wnid: int(c) for c, (wnid, _) in table.items()}
    files = sorted(path.relative_to(published / "train") for path in published.glob("train/*/*"))
    assert sorted(train.ids + held.ids) == [str(f.with_suffix("")) for f in files]
    assert len(files) == 84
    for data in (train, held):
        assert classes_of(data.labels) == [[number[i.split("/")[0]]] for i in data.ids]


def test_without_the_validation_images_the_message_says_so(published):
    if (published / "val").exists():
        pytest.skip("they are here")
    assert_named(published, (published / "val").resolve(), "--set report=val")
