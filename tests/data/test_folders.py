"""A user's own images: labels from folders or CSV, held-out images, and clear errors."""

import os
import shutil
import unicodedata
from functools import partial

import numpy as np
import pytest
from refusals import message_of
from small_folder import QUICK, make_folder, save_noise, small_config, write_csv

from spcl_lib import UserError
from spcl_lib.data.folders import list_table
from spcl_lib.data.images import read_image
from spcl_lib.runs.splits import identify_data, load_splits


@pytest.fixture
def root(tmp_path):
    return tmp_path / "my images"


config_of = partial(small_config, "folder")


def load(root, **overrides):
    return load_splits(config_of(**overrides), root)


def labels_by_id(*parts):
    return {
        name: {data.classes[c] for c in row.nonzero().flatten().tolist()}
        for data in parts for name, row in zip(data.ids, data.labels, strict=True)
    }  # fmt: skip


# --- class folders --------------------------------------------------------------------------------


def test_every_folder_is_a_class_whatever_its_name_and_depth(root):
    for name in ("Straßenbahn 2", "猫", "a,b;c", "Zebra"):
        for i in range(4):
            save_noise(root / name / f"image {i}.png")
    save_noise(root / "Zebra" / "Zoo" / "Köln" / "ä ö.png")
    parts = load(root)
    assert parts[0].classes == parts[1].classes == ("Straßenbahn 2", "Zebra", "a,b;c", "猫")
    found = labels_by_id(*parts)
    assert len(found) == 17 and found["Zebra/Zoo/Köln/ä ö.png"] == {"Zebra"}
    assert all(labels == {name.split("/")[0]} for name, labels in found.items())
    for data in parts:
        for name, image in zip(data.ids, data.images, strict=True):
            np.testing.assert_array_equal(image, read_image(root / name, 16))


def test_every_ending_that_pillow_reads_is_found_and_what_is_left_out_is_counted(root, capsys):
    make_folder(root, dog=3)
    kinds = [".jfif", ".jpe", ".ppm", ".JPG", ".Png", ".TIFF", ".webp", ".jp2", ".tga"]
    for i, kind in enumerate(kinds):
        save_noise(root / "cat" / f"{i}{kind}")
    for hidden in ("cat/.hidden.jpg", ".git/0.jpg", "cat/.thumbnails/0.jpg"):
        save_noise(root / hidden)
    for name in ("notes.txt", "a.heic", "b.HEIC"):
        (root / "cat" / name).write_text("no image")
    os.mkfifo(root / "cat" / "pipe.jpg")
    (root / "bird").mkdir()
    found = labels_by_id(*load(root))
    assert sum(name.startswith("cat/") for name in found) == len(kinds) and len(found) == 12
    said = capsys.readouterr().out
    assert "4 files are left out: 2 .heic, 1 ." in said and "pip install pillow-heif" in said
    assert "no class, because no image can be found in them: bird" in said


def test_identical_photographs_with_two_labels_or_in_both_splits_are_told(root, capsys):
    make_folder(root, cat=20, dog=20)
    load(root)
    assert "twice" not in capsys.readouterr().out
    trained, reported = (part.ids[0] for part in load(root))
    shutil.copy(root / trained, root / "cat" / "copy.png")
    shutil.copy(root / trained, root / "dog" / "copy.png")
    shutil.copy(root / reported, root / "cat" / "again.png")
    full = write_csv(root / "full.csv", "path,labels", f"{reported},cat|dog")
    (root / "cat" / "lost.png").symlink_to("nowhere")  # which the decoding leaves out
    load(root, full_labels=full, damaged="skip")
    said = "twice, with other labels or to train and to report on: 2, such as"
    assert said in capsys.readouterr().out


def test_a_folder_may_be_a_link_and_no_image_is_read_twice(root):
    """A link to a parent gave ten images 41 names each, and half of them the wrong label."""
    make_folder(root, cat=5, dog=5)
    before = labels_by_id(*load(root))
    (root / "cat" / "again").symlink_to("..")
    (root / "cat" / "more").symlink_to("../dog")
    assert labels_by_id(*load(root)) == before and len(before) == 10


def test_classes_that_differ_in_nothing_but_case_are_refused(root):
    make_folder(root, cat=3, Cat=3, dog=3)
    with pytest.raises(UserError, match="has the classes 'Cat' and 'cat', which differ in nothing"):
        load(root)


# --- a list of labels -----------------------------------------------------------------------------


def listed(root, *lines, encoding="utf-8", end="\n"):
    """Writes lines that give six images (any folder) two labels, after which come `lines`."""
    rows = [f"shots/{i}.png,{'cat' if i % 2 else 'dog'}" for i in range(6)]
    for i in range(6):
        save_noise(root / "shots" / f"{i}.png")
    text = end.join(["path,label", *rows, *lines, ""])
    (root / "labels.csv").write_bytes(text.encode(encoding))
    return "labels.csv"


@pytest.mark.parametrize(("encoding", "end"), [("utf-8", "\n"), ("utf-8-sig", "\r\n")])
def test_a_list_gives_labels_however_it_was_saved(root, encoding, end):
    save_noise(root / "Köln, am Rhein" / "ä ö.png")
    extra = ['"Köln, am Rhein/ä ö.png", große Katze ', "", "./shots/0.png,dog"]
    found = labels_by_id(*load(root, labels=listed(root, *extra, encoding=encoding, end=end)))
    assert found["Köln, am Rhein/ä ö.png"] == {"große Katze"}
    assert found["shots/1.png"] == {"cat"} and found["shots/4.png"] == {"dog"}
    assert len(found) == 7  # a line that repeats another is no mistake


def test_a_label_may_have_its_accents_in_another_form(root):
    """Macs write ö as o and two dots; editors do not."""
    make_folder(root, cat=5, **{unicodedata.normalize("NFD", "Hügel"): 5})
    full = write_csv(root / "full.csv", "path,labels", "cat/cat 1.png,Hügel|cat")
    assert load(root, full_labels=full)[1].labels.tolist() == [[True, True]]


# --- what is reported on --------------------------------------------------------------------------


def test_without_full_labels_a_fifth_of_every_class_is_held_out(root):
    make_folder(root, cat=50, dog=10, owl=3, fox=2, emu=1)
    train, report = load(root)
    counts = dict(zip(train.classes, report.labels.sum(0).tolist(), strict=True))
    assert counts == {"cat": 10, "dog": 2, "owl": 1, "fox": 0, "emu": 0}
    assert len(train) + len(report) == 66 and not set(train.ids) & set(report.ids)
    part = load(root, train_images=24, eval_images=6)
    assert part[0].ids == train.ids[:24] and part[1].ids == report.ids[:6]
    assert (part[0].labels.sum(0)[:2] > 0).all()  # a fixed mixture of the classes
    for i in range(5):
        save_noise(root / "cat" / f"new {i}.png")
    after = set(load(root)[1].ids)
    assert len(after) == 14 and len(after & set(report.ids)) >= 11
    for part in load(root, report="val"):  # choices see no image of the final report
        assert not set(part.ids) & after
    assert [len(part) for part in load(root, report="train")] == [71, 71]


def test_images_with_full_labels_are_reported_on_and_never_trained_on(root):
    make_folder(root)
    for i in range(3):
        save_noise(root / "checked" / f"{i}.png")
    save_noise(root / "aside.png")
    rows = ["checked/0.png,cat|dog", "checked/1.png,", "checked/2.png, dog | dog ",
            f"{root}/cat/cat 3.png,cat|dog", "aside.png,cat"]  # fmt: skip
    full = write_csv(root / "full.csv", "path,labels", *rows)
    train, report = load(root, full_labels=full)
    assert train.classes == ("cat", "dog")  # `checked` holds no training image
    assert labels_by_id(report) == {
        "checked/0.png": {"cat", "dog"}, "checked/1.png": set(), "checked/2.png": {"dog"},
        "cat/cat 3.png": {"cat", "dog"}, "aside.png": {"cat"},
    }  # fmt: skip
    assert len(train) == 14 and "cat/cat 3.png" not in train.ids
    assert (train.labels.sum(1) == 1).all()


# --- what is wrong --------------------------------------------------------------------------------

FAULTS = {
    "one class": (lambda r: shutil.rmtree(r / "dog"), "only the class 'cat'"),
    "nothing at all": (lambda r: shutil.rmtree(r) or r.mkdir(), "no labelled im"),
    "splits": (lambda r: [(r / "cat").rename(r / "train"), (r / "dog").rename(r / "Test")],
               "look like splits"),
    "separator": (lambda r: (r / "cat").rename(r / "c|t"), "a class with '|' in its name"),
    "data sets": (lambda r: (r / "cat").rename(r / "VOCdevkit"), "--dataset voc2007"),
    "too few": (lambda r: shutil.rmtree(r) or make_folder(r, cat=2, dog=2), "too few images"),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_a_folder_that_cannot_be_used_is_explained_in_one_line(root, fault):
    make_folder(root)
    break_it, words = FAULTS[fault]
    break_it(root)
    said = message_of(load, root)
    assert words in said and str(root) in said


LINES = {
    "shots/99.png,cat": "line 8: image 'shots/99.png' is not in",
    "shots/1.png,dog": "line 8: 'shots/1.png' has other labels in an earlier line; a header ",
    "shots/1.png,": "line 8: '' where label must be",
    "shots/1.png,cat,dog": "line 8: 3 fields; expected path,label",
}


@pytest.mark.parametrize("line", LINES)
def test_a_list_that_cannot_be_used_is_explained_with_file_and_line(root, line):
    file = root / listed(root, line)
    said = message_of(load, root, labels=file.name)
    assert LINES[line] in said and str(file) in said


def test_a_list_that_is_missing_or_no_text_is_named(root):
    name = listed(root, "shots/1.png,Käfer", encoding="latin-1")
    assert "labels.csv' is no CSV file in UTF-8" in message_of(load, root, labels=name)
    (root / name).write_text("file,class\n")
    said = "line 1: unknown header 'file,class'; expected path,label"
    assert said in message_of(load, root, labels=name)
    assert "nowhere.csv' cannot be read" in message_of(load, root, labels="nowhere.csv")


def test_the_content_changes_with_every_file_and_label_and_a_copy_is_the_same(root, tmp_path):
    make_folder(root)
    full = write_csv(root / "full.csv", "path,labels", "cat/cat 1.png,cat")

    def content(root=root, **overrides):
        return identify_data(config_of(**overrides), root).content

    seen = [content(), content(full_labels=full)]
    save_noise(root / "cat" / "new.png").rename(root / "dog" / "new.png")
    seen.append(content())
    data = bytearray((root / "dog" / "new.png").read_bytes())
    data[len(data) // 2] ^= 255  # another picture of the same size
    (root / "dog" / "new.png").write_bytes(data)
    seen.append(content())
    assert len(set(seen)) == len(seen) and all(len(value) == 8 for value in seen)
    os.utime(root / "dog" / "new.png", ns=(10**18, 10**18))
    assert content() == seen[-1]
    shutil.copytree(root, tmp_path / "copy")
    assert content(tmp_path / "copy") == seen[-1]
    assert "'folder' needs --data-root DIR" in message_of(content, None)


# --- tables ---------------------------------------------------------------------------------------


@pytest.fixture
def table(root):
    """A data root with five training images and two for the report."""
    for name in ("a", "b", "sub/c", "d", "e", "f", "g"):
        save_noise(root / f"{name}.png")
    write_csv(root / "train.csv", "path,labels", "a.png,dog|cat", "b.png,cat", "sub/c.png,bird",
              "d.png,", "e.png,dog", "a.png,cat|dog")  # fmt: skip
    write_csv(root / "val.csv", "path,labels", "f.png,", "g.png,bird|cat")
    return root


def test_a_table_has_all_labels_in_the_order_of_its_files(table, spcl):
    train, val = list_table(table)
    assert train.classes == val.classes == ("bird", "cat", "dog")
    assert train.ids == ("a.png", "b.png", "sub/c.png", "d.png", "e.png")
    assert train.labels.int().tolist() == [[0, 1, 1], [0, 1, 0], [1, 0, 0], [0, 0, 0], [0, 0, 1]]
    assert val.labels.int().tolist() == [[0, 0, 0], [1, 1, 0]]
    held = load_splits(small_config("table", report="val"), table)
    assert set(held[0].ids) | set(held[1].ids) == set(train.ids) - {"d.png"}
    arguments = ("run", "--dataset", "table", "--profile", "smoke", "--method", "full")
    outcome = spcl(*arguments, "--data-root", table, **QUICK)
    assert outcome.status == 0, outcome.err
    assert "training images without a positive label: 1 of 5" in outcome.out


def test_some_images_of_a_sorted_table_are_of_all_its_classes(tmp_path):
    names = [f"{name}{i}" for name in ("cat", "dog") for i in range(20)]
    for name in names:
        save_noise(tmp_path / f"{name}.png")
    write_csv(tmp_path / "train.csv", "path,labels", *(f"{n}.png,{n[:3]}" for n in names[:30]))
    write_csv(tmp_path / "val.csv", "path,labels", *(f"{n}.png,{n[:3]}" for n in names[30:]))
    train, _ = load_splits(small_config("table", train_images=12, eval_images=0), tmp_path)
    assert len(train) == 12 and train.labels.any(0).all()


@pytest.mark.parametrize(
    ("file", "header", "line", "words"),
    [
        ("val.csv", "path,labels", "a.png,dog", "must not be trained on"),
        ("val.csv", "path,labels", "f.png,dgo", "'dgo'. Did you mean 'dog'"),
        ("val.csv", "path,label", "f.png,dog", "needs path,labels, with all labels"),
        ("train.csv", "path,label", "a.png,dog|cat", "'dog.cat' where label must be"),
        ("train.csv", "path,labels", "a.png,dog", "only the class 'dog'; it needs"),
    ],
)
def test_a_table_that_is_wrong_is_explained_with_its_line(table, file, header, line, words):
    write_csv(table / file, header, line)
    with pytest.raises(UserError, match=words):
        list_table(table)
