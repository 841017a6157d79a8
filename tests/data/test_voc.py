"""Pascal VOC: labels come from ImageSets/Main, boxes from Annotations; errors name the fault."""

import json
import math
import os
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from small_voc import load_voc, voc_flags, voc_ids, write_annotations

from spcl_lib import UserError
from spcl_lib.data import voc
from spcl_lib.data.voc import CLASSES, read_flags
from spcl_lib.runs.settings import make_config
from spcl_lib.runs.splits import load_splits


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SPCL_CACHE", str(tmp_path / "cache"))


def devkit(root):
    return root / "VOCdevkit" / "VOC2007"


def lists(root):
    return devkit(root) / "ImageSets" / "Main"


@pytest.mark.parametrize("split", ["train", "val"])
def test_labels_are_the_lists_and_difficult_counts_as_negative(voc, split):
    data = load_voc(voc, split, 16)
    flags = voc_flags(split)
    assert (flags == 0).any()
    assert data.ids == tuple(voc_ids()[split])  # in the order of the list, not of the names
    np.testing.assert_array_equal(data.labels, flags == 1)
    assert data.classes == CLASSES and len(CLASSES) == 20


def test_difficult_is_what_the_setting_says(voc):
    flags = voc_flags("train")
    for difficult, labels in (("negative", flags == 1), ("positive", flags >= 0),
                              ("ignored", flags == 1)):  # fmt: skip
        data = load_voc(voc, "train", 16, difficult=difficult)
        np.testing.assert_array_equal(data.labels, labels)
        if difficult == "ignored":
            np.testing.assert_array_equal(data.ignored, flags == 0)
        else:
            assert data.ignored is None


def test_the_setting_of_a_run_reaches_both_splits(voc):
    small = {"train_images": 0, "eval_images": 0, "image_side": 16, "difficult": "ignored"}
    train, report = load_splits(make_config("voc2007", "an", 0, "smoke", small), voc)
    np.testing.assert_array_equal(train.ignored, voc_flags("train") == 0)
    np.testing.assert_array_equal(report.ignored, voc_flags("val") == 0)


def test_voc2012_is_read_from_a_folder_of_its_own(voc):
    shutil.copytree(devkit(voc), devkit(voc).with_name("VOC2012"))
    shutil.rmtree(devkit(voc))
    config = make_config("voc2012", "an", 0, "smoke", {"image_side": 16, "train_images": 0})
    train, report = load_splits(config, voc)
    assert train.ids == tuple(voc_ids()["train"]) and report.ids == tuple(voc_ids()["val"])
    np.testing.assert_array_equal(train.labels, voc_flags("train") == 1)


def test_images_are_the_whole_files_resized_in_the_order_of_the_list(voc):
    data = load_voc(voc, "train", 16)
    assert data.images.shape == (6, 3, 16, 16) and data.images.dtype == torch.uint8
    for name, image in zip(data.ids, data.images, strict=True):
        with Image.open(devkit(voc) / "JPEGImages" / f"{name}.jpg") as file:
            assert file.size == (24, 18)
            expected = np.asarray(file.resize((16, 16), Image.Resampling.BILINEAR))
        np.testing.assert_array_equal(image.permute(1, 2, 0), expected)


def test_columns_may_be_separated_and_ordered_in_any_way(voc):
    before = read_flags(devkit(voc), "train")[1]
    file = lists(voc) / "dog_train.txt"
    rows = file.read_text().splitlines()
    file.write_text("\r\n".join(row.replace(" ", "\t") for row in reversed(rows)) + "\r\n\r\n")
    assert torch.equal(read_flags(devkit(voc), "train")[1], before)


# --- boxes ----------------------------------------------------------------------------------------

OBJECTS = {  # of images of 24 x 18 pixels
    "000003": [("dog", 1, 2, 12, 9), ("person", 6, 1, 24, 18)],
    "000012": [("dog", 3, 3, 6, 6), ("dog", 12.5, 9, 18, 13.5)],
}


def annotation(root, name):
    return devkit(root) / "Annotations" / f"{name}.xml"


@pytest.fixture
def boxed(voc):
    """The tiny VOC with annotations of its training images."""
    write_annotations(devkit(voc), {i: OBJECTS.get(i, []) for i in voc_ids()["train"]})
    return voc


def test_boxes_are_those_of_the_annotations_as_fractions(boxed):
    data = load_voc(boxed, "train", 16, boxes=True)
    image, label, box = vars(data.boxes).values()
    got = {
        (data.ids[n], CLASSES[c], *(b * torch.tensor([24, 18, 24, 18])).tolist())
        for n, c, b in zip(image, label, box, strict=True)
    }
    assert got == {(name, *values) for name, rows in OBJECTS.items() for values in rows}
    assert image.tolist() == [1, 1, 2, 2]  # as the images are listed
    assert load_voc(boxed, "train", 16).boxes is None


def test_a_run_reads_boxes_only_when_it_asks_for_them(boxed):
    config = make_config("voc2007", "an", 0, "smoke", {"image_side": 16, "report": "val"})
    assert load_splits(config, boxed)[0].boxes is None
    for part in load_splits(config, boxed, objects=True):
        for n, name in enumerate(part.ids):
            assert (part.boxes.image == n).sum() == len(OBJECTS.get(name, []))


def test_a_draw_by_boxes_gets_them(boxed):
    small = {"image_side": 16, "report": "val", "draw": "size"}
    train, _ = load_splits(make_config("voc2007", "an", 0, "smoke", small), boxed)
    assert train.boxes is not None


def test_parts_of_an_object_are_no_objects(boxed):
    file = annotation(boxed, "000003")
    part = "<part><name>head</name><bndbox><xmin>1</xmin></bndbox></part></object>"
    file.write_text(file.read_text().replace("</object>", part))
    assert len(load_voc(boxed, "train", 16, boxes=True).boxes.box) == 4


def test_a_box_that_is_a_pixel_too_large_is_cut(boxed):
    file = annotation(boxed, "000003")
    file.write_text(file.read_text().replace("<xmax>24<", "<xmax>25<"))
    box = load_voc(boxed, "train", 16, boxes=True).boxes.box
    assert box[1].tolist() == pytest.approx([6 / 24, 1 / 18, 1, 1])


def test_boxes_are_parsed_once_and_again_when_a_file_changes(boxed, monkeypatch):
    calls = []
    parse = voc._parse
    monkeypatch.setattr(voc, "_parse", lambda files: calls.append(1) or parse(files))
    first = load_voc(boxed, "train", 16, boxes=True).boxes
    assert torch.equal(load_voc(boxed, "train", 16, boxes=True).boxes.box, first.box)
    assert len(calls) == 1
    file = annotation(boxed, "000003")
    file.write_text(file.read_text().replace("<xmax>12<", "<xmax>18<"))
    os.utime(file, ns=(10**18, 10**18))
    assert load_voc(boxed, "train", 16, boxes=True).boxes.box[0, 2] == 18 / 24
    assert len(calls) == 2


def altered(name, before, after):
    """A fault in the annotation of image 000003."""

    def break_it(root):
        file = annotation(root, "000003")
        assert before in file.read_text()
        file.write_text(file.read_text().replace(before, after))

    break_it.__name__ = name
    return break_it


def without_annotation(root):
    annotation(root, "000003").unlink()


def binary_annotation(root):
    annotation(root, "000003").write_bytes(b"\xff\xd8\xff\xe0")


ANNOTATION_FAULTS = {
    without_annotation: "unpack it there",
    binary_annotation: "not readable XML",
    altered("torn", "</annotation>", ""): "not readable XML",
    altered("unknown_class", "<name>dog<", "<name>dgo<"): "Did you mean 'dog'",
    altered("nameless", "<name>dog</name>", ""): "unknown class of object 1",
    altered("no_size", "<width>24</width>", ""): "<annotation> without numbers for <size>",
    altered("a_size_of_words", "<width>24<", "<width>wide<"): "without numbers for <size>",
    altered("half_a_box", "<xmax>12</xmax>", ""): "<object> without numbers for <bndbox>",
    altered("outside", "<xmax>24<", "<xmax>31<"): "object 2 (person); expected 0 <= xmin",
    altered("below_zero", "<ymin>2<", "<ymin>-5<"): "object 1 (dog); expected 0 <= xmin",
    altered("turned", "<xmax>12<", "<xmax>1<"): "object 1 (dog); expected 0 <= xmin",
    altered("not_a_number", "<xmax>12<", "<xmax>nan<"): "object 1 (dog); expected 0 <= xmin",
}


@pytest.mark.parametrize(("break_it", "said"), ANNOTATION_FAULTS.items())
def test_a_damaged_annotation_is_named_in_one_line(boxed, break_it, said):
    break_it(boxed)
    with pytest.raises(UserError) as caught:
        load_voc(boxed, "train", 16, boxes=True)
    message = str(caught.value)
    assert str(annotation(boxed, "000003")) in message and said in message
    assert "\n" not in message
    assert len(load_voc(boxed, "train", 16)) == 6  # labels and images do not need it


# --- what is wrong --------------------------------------------------------------------------------


def without_devkit(root):
    shutil.rmtree(root / "VOCdevkit")
    return devkit(root)


def without_split(root):
    (lists(root) / "train.txt").unlink()
    return lists(root) / "train.txt"


def empty_split(root):
    (lists(root) / "train.txt").write_text("")
    return lists(root) / "train.txt"


def without_class_list(root):
    (lists(root) / "sheep_train.txt").unlink()
    return lists(root) / "sheep_train.txt"


def class_list_lacks_an_image(root):
    file = lists(root) / "sheep_train.txt"
    rows = file.read_text().splitlines()
    file.write_text("\n".join(row for row in rows if not row.startswith("000012")))
    return f"{file}' lacks image '000012'"


def bad_flag(root):
    file = lists(root) / "sheep_train.txt"
    file.write_text(file.read_text().replace("000012 -1", "000012  2"))
    assert " 2" in file.read_text()
    return f"{file}' has the flag '2'"


def bad_line(root):
    file = lists(root) / "sheep_train.txt"
    file.write_text(file.read_text() + "000099\n")
    return f"{file}' has the line '000099'"


def an_image_twice(root):
    file = lists(root) / "train.txt"
    file.write_text(file.read_text() + "000012\n")
    return f"{file}' names image '000012' more than once"


def two_flags_for_an_image(root):
    file = lists(root) / "sheep_train.txt"
    file.write_text(file.read_text() + "000012  1\n")
    return f"{file}' gives image '000012' the flags -1 and 1"


def missing_image(root):
    file = devkit(root) / "JPEGImages" / "000005.jpg"
    file.unlink()
    return file


def truncated_image(root):
    file = devkit(root) / "JPEGImages" / "000005.jpg"
    file.write_bytes(file.read_bytes()[:-300])
    return file


def text_as_image(root):
    file = devkit(root) / "JPEGImages" / "000005.jpg"
    file.write_text("404: not found\n")
    return file


def empty_image(root):
    file = devkit(root) / "JPEGImages" / "000005.jpg"
    file.write_bytes(b"")
    return file


LIST_FAULTS = [
    without_devkit, without_split, empty_split, without_class_list, class_list_lacks_an_image,
    bad_flag, bad_line, an_image_twice, two_flags_for_an_image,
]  # fmt: skip
IMAGE_FAULTS = [missing_image, truncated_image, text_as_image, empty_image]


@pytest.mark.parametrize("break_it", LIST_FAULTS + IMAGE_FAULTS)
def test_what_is_wrong_is_named_in_one_line(voc, break_it, tmp_path):
    named = str(break_it(voc))
    with pytest.raises(UserError) as caught:
        load_voc(voc, "train", 16)
    assert named in str(caught.value)
    assert "\n" not in str(caught.value)
    assert break_it in IMAGE_FAULTS or not (tmp_path / "cache").exists()


@pytest.mark.parametrize("limit", ["20", "0"])
@pytest.mark.parametrize("break_it", IMAGE_FAULTS)
def test_left_out_images_take_their_labels_and_ids_along(voc, break_it, limit, monkeypatch, capsys):
    monkeypatch.setenv("SPCL_CACHE_GB", limit)
    intact = load_voc(voc, "train", 16)
    images = intact.images[:]
    break_it(voc)
    data = load_voc(voc, "train", 16, damaged="skip")
    assert "left out 1 of 6 images of voc2007-train" in capsys.readouterr().out
    left_out = intact.ids.index("000005")
    others = [i for i in range(6) if i != left_out]
    assert 0 < left_out < 5 and len(data) == 5
    assert data.ids == tuple(intact.ids[i] for i in others)
    assert [file.stem for file in data.files] == list(data.ids)
    assert torch.equal(data.labels, intact.labels[others])
    assert len(intact.labels.unique(dim=0)) == 6  # so a shift would be seen
    assert torch.equal(data.images[:], images[others])


def test_a_run_may_leave_out_damaged_images_of_both_its_splits(voc, capsys):
    missing_image(voc)
    (devkit(voc) / "JPEGImages" / "000002.jpg").write_bytes(b"")
    overrides = {"train_images": 0, "eval_images": 0, "image_side": 16}
    config = make_config("voc2007", "an", profile="smoke", overrides=overrides)
    with pytest.raises(UserError, match="000005.jpg' is missing"):
        load_splits(config, voc)
    config = make_config(
        "voc2007", "an", profile="smoke", overrides=overrides | {"damaged": "skip"}
    )
    train, report = load_splits(config, voc)
    assert set(train.ids) == set(voc_ids()["train"]) - {"000005"}
    assert set(report.ids) == set(voc_ids()["val"]) - {"000002"}


@pytest.mark.parametrize("break_it", [truncated_image, text_as_image])
def test_after_the_file_is_mended_the_same_call_works(voc, break_it):
    file = devkit(voc) / "JPEGImages" / "000005.jpg"
    intact = file.read_bytes()
    break_it(voc)
    with pytest.raises(UserError):
        load_voc(voc, "train", 16)
    file.write_bytes(intact)
    assert len(load_voc(voc, "train", 16)) == 6


# --- splits of a run ------------------------------------------------------------------------------


def test_final_runs_report_on_val_and_choices_on_a_part_of_train(voc):
    small = {"train_images": 0, "eval_images": 0, "image_side": 16}
    config = make_config("voc2007", "an", profile="smoke", overrides=small | {"report": "test"})
    train, report = load_splits(config, voc)
    assert train.ids == tuple(voc_ids()["train"]) and report.ids == tuple(voc_ids()["val"])
    config = make_config("voc2007", "an", profile="smoke", overrides=small | {"report": "val"})
    train, report = load_splits(config, voc)
    assert len(train) > len(report) > 0
    assert sorted(train.ids + report.ids) == sorted(voc_ids()["train"])  # none is in both


def test_images_with_nothing_but_difficult_objects_are_not_trained_on_but_reported_on(voc):
    for split, name in (("train", "000012"), ("val", "000002")):
        for file in lists(voc).glob(f"*_{split}.txt"):
            file.write_text(file.read_text().replace(f"{name}  1", f"{name}  0"))
    everything = {"train_images": 0, "eval_images": 0, "image_side": 16}
    config = make_config("voc2007", "an", profile="smoke", overrides=everything)
    train, report = load_splits(config, voc)
    assert "000012" not in train.ids and len(train) == 5
    assert "000002" in report.ids and len(report) == 4


def test_a_run_from_files_has_the_metrics_of_a_run_from_the_cache(voc, spcl, results, monkeypatch):
    truncated_image(voc)
    settings = {
        "backbone": "small_resnet", "weights": "none", "frozen": 0, "image_side": 32,
        "crop_side": 24, "eval_side": 24, "batch": 2, "bank_size": 4, "damaged": "skip",
    }  # fmt: skip
    data = "--dataset", "voc2007", "--data-root", voc, "--profile", "smoke"
    metrics = []
    for limit in ("20", "0"):
        monkeypatch.setenv("SPCL_CACHE_GB", limit)
        outcome = spcl("run", "--method", "scl", "--force", *data, **settings)
        assert outcome.status == 0, outcome.err
        assert ("read from their files" in outcome.out) == (limit == "0")
        (file,) = results.glob("*/*/metrics.json")
        metrics.append(json.loads(file.read_text()))
    cached, lazy = metrics
    assert cached["train_images"] == 5 and math.isfinite(cached["mAP"])
    assert lazy["history"] == cached["history"] and lazy["AP"] == cached["AP"]


# --- real data ------------------------------------------------------------------------------------


@pytest.mark.parametrize("split", ["train", "val"])
def test_real_labels_are_the_lists_for_all_images(real_data, split):
    folder = devkit(real_data)
    if not folder.is_dir():
        pytest.skip(f"{folder} is not there")
    positives = set()  # (image, class), read the other way round: line by line
    for name in CLASSES:
        text = (folder / "ImageSets" / "Main" / f"{name}_{split}.txt").read_text()
        for line in text.splitlines():
            if line.strip().endswith(" 1"):
                positives.add((line.split()[0], name))
    expected_ids = (folder / "ImageSets" / "Main" / f"{split}.txt").read_text().split()

    ids, flags = read_flags(folder, split)
    labels = flags == 1
    got = {(ids[n], CLASSES[c]) for n, c in labels.nonzero().tolist()}
    assert ids == expected_ids and len(ids) >= 2500
    assert got == positives and len(positives) > 3000


@pytest.mark.parametrize("split", ["train", "val"])
def test_real_boxes_agree_with_the_lists(real_data, split):
    folder = devkit(real_data)
    if not (folder / "Annotations").is_dir():
        pytest.skip(f"{folder / 'Annotations'} is not there")
    ids, flags = read_flags(folder, split)
    boxes = voc.read_boxes(folder, ids)
    x0, y0, x1, y1 = boxes.box.T
    assert len(boxes.box) > 7000 and boxes.box.min() >= 0 and boxes.box.max() <= 1
    assert (x0 < x1).all() and (y0 < y1).all()
    text = (folder / "Annotations" / f"{ids[9]}.xml").read_text()  # counted without a parser
    named = [CLASSES.index(part.split("<")[0]) for part in text.split("<name>")[1:]]
    assert boxes.label[boxes.image == 9].tolist() == named
    drawn = torch.zeros_like(flags, dtype=torch.bool)
    drawn[boxes.image, boxes.label] = True
    assert not (drawn & (flags == -1)).any()  # what has a box is in the lists


def test_real_images_load_in_the_order_of_their_list(real_part):
    chosen = (lists(real_part) / "val.txt").read_text().split()
    data = load_voc(real_part, "val", 48)
    assert data.ids == tuple(chosen) and chosen != sorted(chosen)
    for name, image in zip(chosen, data.images, strict=True):
        with Image.open(devkit(real_part) / "JPEGImages" / f"{name}.jpg") as file:
            expected = file.convert("RGB").resize((48, 48), Image.Resampling.BILINEAR)
        np.testing.assert_array_equal(image.permute(1, 2, 0), np.asarray(expected))
