"""A user's folder of images: labels from folders or CSV, held-out images, and clear errors."""

import json
import os
import shutil
import unicodedata

import numpy as np
import pytest
import torch
from PIL import Image
from small_folder import FOLDER, QUICK, make_folder, save_noise, write_csv

from spcl_lib import UserError
from spcl_lib.data import folder
from spcl_lib.model import small_resnet
from spcl_lib.runs.network import build_network
from spcl_lib.runs.settings import make_config
from spcl_lib.runs.splits import identify_data, load_splits, report_labels
from spcl_lib.system import paths

ALL = {"train_images": 0, "eval_images": 0, "image_side": 16}


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SPCL_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def root(tmp_path):
    return tmp_path / "my images"


def config_of(**overrides):
    return make_config("folder", "an", profile="smoke", overrides=ALL | overrides)


def load(root, **overrides):
    return load_splits(config_of(**overrides), root)


def labels_by_id(data):
    return {
        name: {data.classes[c] for c in row.nonzero().flatten().tolist()}
        for name, row in zip(data.ids, data.labels, strict=True)
    }


def everything(*parts):
    return {name: labels for part in parts for name, labels in labels_by_id(part).items()}


# --- class folders --------------------------------------------------------------------------------


def test_every_folder_is_a_class_whatever_its_name_and_depth(root):
    for name in ("Straßenbahn 2", "猫", "a,b;c", "Zebra"):
        for i in range(4):
            save_noise(root / name / f"image {i}.png")
    save_noise(root / "Zebra" / "Zoo" / "Köln" / "ä ö.png")
    train, report = load(root)
    assert train.classes == report.classes == ("Straßenbahn 2", "Zebra", "a,b;c", "猫")
    found = everything(train, report)
    assert found["Zebra/Zoo/Köln/ä ö.png"] == {"Zebra"}
    assert len(found) == 17
    assert all(labels == {name.split("/")[0]} for name, labels in found.items())


def test_images_are_the_files_of_their_names(root):
    for data in load(make_folder(root)):
        for name, image in zip(data.ids, data.images, strict=True):
            with Image.open(root / name) as file:
                expected = file.convert("RGB").resize((16, 16), Image.Resampling.BILINEAR)
            np.testing.assert_array_equal(image.permute(1, 2, 0), np.asarray(expected))


def test_every_kind_of_image_is_found_and_what_is_hidden_or_no_image_is_not(root):
    make_folder(root, dog=3)
    kinds = [*folder.SUFFIXES, ".JPG", ".Png", ".TIFF"]
    for i, kind in enumerate(kinds):
        save_noise(root / "cat" / f"{i}{kind}")
    for hidden in ("cat/.hidden.jpg", ".git/0.jpg", "cat/.thumbnails/0.jpg"):
        save_noise(root / hidden)
    (root / "cat" / "notes.txt").write_text("no image")
    (root / "readme.md").write_text("no image")
    found = everything(*load(root))
    assert {n for n in found if n.startswith("cat/")} == {
        f"cat/{i}{kind}" for i, kind in enumerate(kinds)
    }
    assert len(found) == len(kinds) + 3


def test_images_beside_the_class_folders_are_counted_and_said(root, capsys):
    save_noise(make_folder(root) / "overview.png")
    found = everything(*load(root))
    assert "overview.png" not in found and len(found) == 15
    assert "1 images directly in" in capsys.readouterr().out


def test_folders_may_be_links(root, tmp_path):
    make_folder(tmp_path / "elsewhere", cat=4, dog=4)
    root.mkdir()
    for name in ("cat", "dog"):
        (root / name).symlink_to(tmp_path / "elsewhere" / name)
    assert len(everything(*load(root))) == 8


@pytest.mark.parametrize("where", [".", "..", "../..", "../dog", "deep/folder"])
def test_no_image_is_read_twice_through_a_link(root, where):
    """A link to a parent gave ten images 41 names each, and half of them the wrong label."""
    make_folder(root, cat=5, dog=5)
    (root / "cat" / "deep" / "folder").mkdir(parents=True)
    before = everything(*load(root))
    (root / "cat" / "again").symlink_to(where)
    assert everything(*load(root)) == before and len(before) == 10


def test_links_to_folders_elsewhere_end_too(root, tmp_path):
    make_folder(tmp_path / "elsewhere", cat=4, dog=4)
    (tmp_path / "elsewhere" / "cat" / "loop").symlink_to("..")
    root.mkdir()
    (root / "all").symlink_to(tmp_path / "elsewhere")
    (root / "cat").symlink_to(tmp_path / "elsewhere" / "cat")
    assert folder.images_below(root) == sorted(
        [f"all/dog/dog {i}.png" for i in range(4)] + [f"cat/cat {i}.png" for i in range(4)]
    )


def test_a_class_folder_that_links_to_another_is_named(root):
    make_folder(root, cat=5, dog=5)
    (root / "owl").symlink_to("cat")
    with pytest.raises(UserError, match="owl' .*is read under another name"):
        load(root)


def test_a_pipe_among_the_images_is_named(root, make_pipe):
    make_pipe(make_folder(root) / "cat" / "pipe.png")
    with pytest.raises(UserError, match="pipe.png' is no regular file"):
        load(root)


@pytest.mark.parametrize("name", ["labels", "full_labels"])
def test_a_list_must_be_a_regular_file(root, name, make_pipe):
    make_pipe(make_folder(root) / "pipe.csv")
    with pytest.raises(UserError, match="pipe.csv' cannot be read .it is no regular file"):
        load(root, **{name: "pipe.csv"})


def test_a_list_has_a_largest_size(root):
    with open(make_folder(root) / "large.csv", "w") as file:
        file.truncate(2**31 + 1)  # it takes no space on the disk
    with pytest.raises(UserError, match="large.csv' cannot be read .it has more than 2 GiB"):
        load(root, labels="large.csv")


# --- a list of labels -----------------------------------------------------------------------------


def listed(root, *lines, encoding="utf-8", end="\n", name="labels.csv"):
    """Writes lines that give six images (any folder) two labels, after which come `lines`."""
    rows = [f"shots/{i}.png,{'cat' if i % 2 else 'dog'}" for i in range(6)]
    for i in range(6):
        save_noise(root / "shots" / f"{i}.png")
    text = end.join(["path,label", *rows, *lines, ""])
    (root / name).write_bytes(text.encode(encoding))
    return name


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_a_list_gives_labels_however_it_was_saved(root, encoding, end):
    save_noise(root / "Köln, am Rhein" / "ä ö.png")
    extra = ['"Köln, am Rhein/ä ö.png", große Katze ', "", "./shots/0.png,dog"]
    found = everything(*load(root, labels=listed(root, *extra, encoding=encoding, end=end)))
    assert found["Köln, am Rhein/ä ö.png"] == {"große Katze"}
    assert found["shots/1.png"] == {"cat"} and found["shots/4.png"] == {"dog"}
    assert len(found) == 7  # a line that repeats another is no mistake


def test_a_name_may_have_its_accents_in_another_form(root):
    """Macs write ö as o and two dots; editors do not."""
    written, stored = (unicodedata.normalize(form, "Köln/schön.png") for form in ("NFC", "NFD"))
    assert written != stored
    save_noise(root / stored)
    labels = listed(root, f"{written},{unicodedata.normalize('NFD', 'Hügel')}")
    full = write_csv(root / "full.csv", "path,labels", f"{written},Hügel|cat")
    with pytest.raises(UserError, match=r"is in .*full.csv.*and in .*labels.csv"):
        load(root, labels=labels, full_labels=full)
    found = everything(*load(root, labels=labels))
    assert found[stored] == {"Hügel"}


# --- what is reported on --------------------------------------------------------------------------


def test_without_full_labels_a_fifth_of_every_class_is_held_out(root):
    make_folder(root, cat=20, dog=10, owl=3, fox=2, emu=1)
    train, report = load(root)
    counts = dict(zip(train.classes, report.labels.sum(0).tolist(), strict=True))
    assert counts == {"cat": 4, "dog": 2, "owl": 1, "fox": 0, "emu": 0}
    assert len(train) + len(report) == 36 and not set(train.ids) & set(report.ids)
    again = load(root)
    assert [data.ids for data in again] == [train.ids, report.ids]


def test_what_is_held_out_hardly_changes_when_images_are_added(root):
    make_folder(root, cat=50, dog=50)
    before = set(load(root)[1].ids)
    for i in range(5):
        save_noise(root / "cat" / f"new {i}.png")
    after = set(load(root)[1].ids)
    assert len(before) == 20 and len(after) == 21
    assert len(before & after) >= 18


def test_images_with_full_labels_are_reported_on_and_never_trained_on(root):
    make_folder(root)
    for i in range(3):
        save_noise(root / "checked" / f"{i}.png")
    save_noise(root / "aside.png")
    rows = ["checked/0.png,cat|dog", "checked/1.png,", "checked/2.png, dog | dog ",
            "cat/cat 3.png,cat|dog", "aside.png,cat"]  # fmt: skip
    full = write_csv(root / "full.csv", "path,labels", *rows)
    train, report = load(root, full_labels=full)
    assert train.classes == ("cat", "dog")  # `checked` holds no training image
    assert labels_by_id(report) == {
        "checked/0.png": {"cat", "dog"}, "checked/1.png": set(), "checked/2.png": {"dog"},
        "cat/cat 3.png": {"cat", "dog"}, "aside.png": {"cat"},
    }  # fmt: skip
    assert len(train) == 14 and "cat/cat 3.png" not in train.ids
    assert (train.labels.sum(1) == 1).all()


@pytest.mark.parametrize("full", [True, False])
def test_choices_never_touch_the_images_of_the_report(root, full):
    make_folder(root, cat=20, dog=20)
    lines = ["path,labels", *(f"cat/cat {i}.png,cat" for i in range(6))]
    extra = {"full_labels": write_csv(root / "full.csv", *lines)} if full else {}
    train, report = load(root, **extra)
    val_train, val = load(root, report="val", **extra)
    assert sorted(val_train.ids + val.ids) == sorted(train.ids)
    assert len(val) == (7 if full else 6)
    assert (val.labels.sum(1) == 1).all()


def test_a_part_is_a_fixed_mixture_of_the_classes(root):
    make_folder(root, a=30, b=30, c=30)
    train, report = load(root, train_images=24, eval_images=12)
    assert (len(train), len(report)) == (24, 12)
    assert (train.labels.sum(0) >= 3).all() and (report.labels.sum(0) >= 1).all()
    whole = load(root)[0]
    assert train.ids == whole.ids[:24]


def test_damaged_images_are_left_out_together_with_their_labels(root):
    make_folder(root, cat=20, dog=20)
    before = everything(*load(root))
    for name in ("cat/cat 3.png", "dog/dog 7.png"):
        (root / name).write_text("404: not found")
    with pytest.raises(UserError, match="cat 3.png|dog 7.png"):
        load(root)
    left = load(root, damaged="skip")
    expected = {n: c for n, c in before.items() if n not in ("cat/cat 3.png", "dog/dog 7.png")}
    assert everything(*left) == expected
    for data in left:
        assert len(data.images) == len(data.labels) == len(data.ids)


# --- what is wrong --------------------------------------------------------------------------------

HEAD = "path,label"
FAULTS = {
    "a class folder without images": (lambda r: (r / "owl").mkdir(), "owl' holds no image"),
    "one class": (lambda r: shutil.rmtree(r / "dog"), "only the class 'cat'"),
    "nothing at all": (lambda r: [shutil.rmtree(r / n) for n in ("cat", "dog")], "no labelled im"),
    "splits": (lambda r: [(r / "cat").rename(r / "train"), (r / "dog").rename(r / "Test")],
               "look like splits"),
    "a bar in a name": (lambda r: (r / "cat").rename(r / "c|t"), "class 'c|t'"),
    "too few": (lambda r: [shutil.rmtree(r / n) for n in ("cat", "dog")]
                + [make_folder(r, cat=2, dog=2)], "too few images"),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_a_folder_that_cannot_be_used_is_explained_in_one_line(root, fault):
    make_folder(root)
    assert load(root)
    break_it, said = FAULTS[fault]
    break_it(root)
    with pytest.raises(UserError) as caught:
        load(root)
    assert said in str(caught.value) and str(root) in str(caught.value)
    assert "\n" not in str(caught.value)


LINES = {
    "header": ([], "file,class", "line 1: unknown header 'file,class'; expected path,label"),
    "no header": ([], "shots/1.png,cat", "line 1: unknown header 'shots/1.png,cat'"),
    "semicolons": ([], "path;label", "by semicolons; save it with commas"),
    "tabs": ([], "path\tlabel", "by tabs; save it with commas"),
    "missing image": (["shots/99.png,cat"], HEAD, "line 8: image 'shots/99.png' is not in"),
    "name of any length": (["9" * 5000 + ",cat"], HEAD, "line 8: image '999"),
    "other slash": ([r"shots\1.png,cat"], HEAD, "line 8: image 'shots\\1.png' is not in"),
    "parent": (["../secret.png,cat"], HEAD, "line 8: '../secret.png' leads out of"),
    "hidden parent": (["shots/../../x.png,cat"], HEAD, "line 8: 'shots/../../x.png' leads out"),
    "absolute": (["/etc/x.png,cat"], HEAD, "line 8: '/etc/x.png' leads out of"),
    "drive": ([r"C:\x.png,cat"], HEAD, r"line 8: 'C:\x.png' leads out of"),
    "two labels": (["shots/1.png,dog"], HEAD, "line 8: 'shots/1.png' has other labels in line 3"),
    "empty label": (["shots/1.png,"], HEAD, "line 8: a label is empty"),
    "one field": (["shots/1.png"], HEAD, "line 8: 1 fields; expected path,label"),
    "three fields": (["shots/1.png,cat,dog"], HEAD, "line 8: 3 fields; expected path,label"),
    "open quote": (['"shots/1.png,cat'], HEAD, "check its quotes"),
    "a folder": (["shots,cat"], HEAD, "line 8: image 'shots' is not in"),
}


@pytest.mark.parametrize("fault", LINES)
def test_a_list_that_cannot_be_used_is_explained_with_file_and_line(root, fault):
    lines, header, said = LINES[fault]
    file = root / listed(root, *lines)
    file.write_text(file.read_text().replace("path,label", header, 1))
    with pytest.raises(UserError) as caught:
        load(root, labels=file.name)
    assert said in str(caught.value) and str(file) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_list_that_is_missing_empty_or_no_text_is_named(root):
    make_folder(root)
    with pytest.raises(UserError, match=r"label file '.*/nowhere.csv' cannot be read.*No such"):
        load(root, labels="nowhere.csv")
    with pytest.raises(UserError, match="'.*empty.csv', line 1: unknown header ''"):
        load(root, labels=write_csv(root / "empty.csv", ""))
    with pytest.raises(UserError, match="'.*bare.csv' names no image"):
        load(root, labels=write_csv(root / "bare.csv", "path,label"))
    name = listed(root, "shots/1.png,Käfer", encoding="latin-1")
    with pytest.raises(UserError, match=r"labels.csv', line 8: no UTF-8 text"):
        load(root, labels=name)


FULL_LINES = {
    "unknown label": ("dog/dog 1.png,dog|catt", "line 3: no training image has the label 'catt'. "
                      "Did you mean 'cat'? Classes: cat, dog"),
    "missing image": ("dog/none.png,dog", "line 3: image 'dog/none.png' is not in"),
    "outside": ("../none.png,dog", "line 3: '../none.png' leads out"),
    "empty among others": ("dog/dog 1.png,dog||cat", "line 3: a label is empty"),
    "two rows": ("cat/cat 1.png,dog", "line 3: 'cat/cat 1.png' has other labels in line 2"),
}  # fmt: skip


@pytest.mark.parametrize("fault", FULL_LINES)
def test_full_labels_that_cannot_be_used_are_explained_with_file_and_line(root, fault):
    make_folder(root)
    line, said = FULL_LINES[fault]
    full = write_csv(root / "full.csv", "path,labels", "cat/cat 1.png,cat", line)
    with pytest.raises(UserError) as caught:
        load(root, full_labels=full)
    assert said in str(caught.value) and str(root / "full.csv") in str(caught.value)


def test_full_labels_need_a_label_and_their_own_header(root):
    make_folder(root)
    with pytest.raises(UserError, match="gives no image a label"):
        load(root, full_labels=write_csv(root / "full.csv", "path,labels", "cat/cat 1.png,"))
    with pytest.raises(UserError, match="unknown header 'path,label'; expected path,labels"):
        load(root, full_labels=write_csv(root / "full.csv", HEAD, "cat/cat 1.png,cat"))


def test_an_image_with_full_labels_must_not_be_in_the_list_too(root):
    labels = listed(root)
    full = write_csv(root / "full.csv", "path,labels", "shots/1.png,cat|dog")
    with pytest.raises(UserError) as caught:
        load(root, labels=labels, full_labels=full)
    said = f"'shots/1.png' is in '{root / 'full.csv'}' (line 2) and in '{root / labels}' (line 3)"
    assert said in str(caught.value)


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may read everything")
def test_a_folder_that_may_not_be_read_is_named(root):
    make_folder(root)
    (root / "cat").chmod(0)
    try:
        with pytest.raises(UserError, match="folder '.*cat' cannot be read"):
            load(root)
    finally:
        (root / "cat").chmod(0o755)


# --- which data a run is of -----------------------------------------------------------------------


def flip_byte_in_the_middle(file):
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 255
    file.write_bytes(data)


def test_the_content_changes_with_every_file_and_label(root):
    make_folder(root)
    full = write_csv(root / "full.csv", "path,labels", "cat/cat 1.png,cat")

    def content(**overrides):
        return identify_data(config_of(**overrides), root).content

    seen = [content(), content(full_labels=full)]
    write_csv(root / "full.csv", "path,labels", "cat/cat 1.png,cat|dog")
    seen.append(content(full_labels=full))
    save_noise(root / "cat" / "new.png")
    seen.append(content())
    (root / "cat" / "new.png").rename(root / "dog" / "new.png")
    seen.append(content())
    flip_byte_in_the_middle(root / "dog" / "new.png")  # another picture of the same size
    seen.append(content())
    assert len(set(seen)) == len(seen) and all(len(value) == 8 for value in seen)
    (root / "notes.txt").write_text("no image")
    os.utime(root / "dog" / "new.png", ns=(10**18, 10**18))
    assert content() == seen[-1]


def test_a_copy_of_the_folder_has_the_same_content_and_scenes_have_none(root, tmp_path):
    make_folder(root)
    shutil.copytree(root, tmp_path / "copy")
    assert identify_data(config_of(), root) == identify_data(config_of(), tmp_path / "copy")
    scenes = make_config("scenes", "an")
    assert identify_data(scenes, None) is scenes


def test_what_a_run_is_evaluated_against():
    kinds = {
        ("folder", "test"): "single", ("folder", "val"): "single", ("imagenet", "test"): "full",
        ("imagenet", "val"): "single", ("voc2007", "val"): "full", ("scenes", "test"): "full",
    }  # fmt: skip
    for (dataset, report), kind in kinds.items():
        config = make_config(dataset, "an", overrides={"report": report})
        assert report_labels(config) == kind
    assert report_labels(config_of(full_labels="full.csv")) == "full"
    assert report_labels(config_of(full_labels="full.csv", report="val")) == "single"


# --- weights --------------------------------------------------------------------------------------


def test_weights_are_looked_for_in_every_data_root(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "project", lambda: tmp_path / "project")
    places = [tmp_path / "project" / "data", tmp_path / "env", tmp_path / "given"]
    monkeypatch.setenv("SPCL_DATA", str(places[1]))
    assert paths.weights("mobilenet_v2", places[2]) is None
    for place in places:  # each comes before those that are there already
        file = place / "weights" / "mobilenet_v2_imagenet.pth"
        file.parent.mkdir(parents=True)
        file.touch()
        assert paths.weights("mobilenet_v2", places[2]) == file
    assert paths.weights("resnet18", places[2]) is None


def test_weights_that_cannot_be_had_say_what_to_do(root, monkeypatch, tmp_path):
    def offline(*arguments, **options):
        raise OSError("no network")

    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    monkeypatch.setattr(paths, "project", lambda: tmp_path / "project")
    monkeypatch.delenv("SPCL_DATA", raising=False)
    with pytest.raises(UserError, match="no network.*weights=FILE.*weights=none"):
        build_network(config_of(), 2, make_folder(root))


# --- the command ----------------------------------------------------------------------------------


def test_a_run_says_what_it_is_evaluated_against(spcl, results, root):
    make_folder(root)
    outcome = spcl(*FOLDER, "--data-root", root, **QUICK)
    assert outcome.status == 0, outcome.err
    assert "% against single labels (trained" in outcome.out
    full = write_csv(root / "full.csv", "path,labels", "cat/cat 1.png,cat|dog", "dog/dog 1.png,dog")
    outcome = spcl(*FOLDER, "--data-root", root, **QUICK, full_labels=full)
    assert outcome.status == 0, outcome.err
    assert "% (trained" in outcome.out
    files = sorted(results.rglob("metrics.json"), key=lambda f: f.stat().st_mtime_ns)
    first, second = (json.loads(file.read_text()) for file in files)
    assert (first["report_labels"], second["report_labels"]) == ("single", "full")
    assert (first["train_images"], first["report_images"]) == (12, 3)
    assert (second["train_images"], second["report_images"]) == (13, 2)
    assert first["classes"] == ["cat", "dog"]


def test_a_changed_folder_is_another_run_and_the_same_one_is_not_run_again(spcl, results, root):
    make_folder(root)
    first = spcl(*FOLDER, "--data-root", root, **QUICK)
    (file,) = results.rglob("metrics.json")
    before = file.stat().st_mtime_ns
    assert spcl(*FOLDER, "--data-root", root, **QUICK).out == first.out
    assert file.stat().st_mtime_ns == before
    save_noise(root / "cat" / "new.png")
    assert spcl(*FOLDER, "--data-root", root, **QUICK).status == 0
    assert len(list(results.rglob("metrics.json"))) == 2 and file.stat().st_mtime_ns == before


def test_the_folder_must_be_given(spcl, results, monkeypatch, root):
    monkeypatch.setenv("SPCL_DATA", str(make_folder(root)))
    outcome = spcl(*FOLDER, **QUICK)
    assert outcome.status == 2
    assert outcome.err.strip() == (
        "spcl: error: the data set 'folder' needs --data-root DIR: the folder of your images"
    )
    assert not results.exists()


def test_reproduce_leaves_out_full_and_says_why(spcl, root):
    make_folder(root)
    arguments = ("reproduce", "--dataset", "folder", "--data-root", root, "--seeds", 0)
    outcome = spcl(*arguments, "--list")
    assert outcome.status == 0
    first, *lines = outcome.out.splitlines()
    assert first == "without full: the training images of folder have one known label each"
    rows = [line for line in lines if line.startswith("  run ") and "snapshots=" not in line]
    assert len(rows) == 6 and not any("full" in row for row in rows)
    assert "03_crop_recovery-folder-frozen.ipynb: skipped: these data do not tell" in outcome.out
    assert spcl(*arguments, "--only", "full").status == 2


def test_a_relative_file_of_weights_is_made_absolute(spcl, results, root, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    outcome = spcl(*FOLDER, "--data-root", make_folder(root), **(QUICK | {"weights": "w.pth"}))
    assert outcome.status == 2 and f"'{tmp_path / 'w.pth'}' does not exist" in outcome.err


def test_a_run_is_shown_in_a_notebook_with_paths_from_here(
    spcl, results, root, tmp_path, monkeypatch, own_kernels
):
    make_folder(root)
    torch.save(small_resnet().state_dict(), tmp_path / "w.pth")
    monkeypatch.chdir(tmp_path)
    outcome = spcl(
        "run", "--dataset", "folder", "--profile", "smoke", "--data-root", root.name,
        "--method", "an", "--notebook", "shown.ipynb", **(QUICK | {"weights": "w.pth"}),
    )  # fmt: skip
    assert outcome.status == 0, outcome.err + outcome.out
    (file,) = results.rglob("metrics.json")
    config = json.loads(file.read_text())["config"]
    assert config["weights"] == str(tmp_path / "w.pth")
    assert file.parent.parent.name == f"folder-smoke-{config['content']}"
    assert "dataset = folder" in (tmp_path / "shown.ipynb").read_text()
