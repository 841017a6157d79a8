"""Pascal VOC: labels of its lists, boxes of its annotations; parts that are missing or damaged."""

import json
from functools import partial

import numpy as np
import pytest
import torch
from refusals import message_of
from small_folder import QUICK, small_config
from small_voc import load_voc, voc_flags, voc_ids, write_annotations

from spcl_lib.data.images import read_image
from spcl_lib.data.voc import CLASSES
from spcl_lib.runs.splits import load_splits


def devkit(root):
    return root / "VOCdevkit" / "VOC2007"


def lists(root):
    return devkit(root) / "ImageSets" / "Main"


config_of = partial(small_config, "voc2007")


# --- labels and images ----------------------------------------------------------------------------


@pytest.mark.parametrize("split", ["train", "val"])
def test_labels_and_images_are_those_of_the_lists(voc, split):
    data, flags = load_voc(voc, split, 16), voc_flags(split)
    assert data.ids == tuple(voc_ids()[split])  # in the order of the list, not of the names
    np.testing.assert_array_equal(data.labels, flags == 1)
    assert data.classes == CLASSES and len(CLASSES) == 20 and (flags == 0).any()
    for name, image in zip(data.ids, data.images, strict=True):
        expected = read_image(devkit(voc) / "JPEGImages" / f"{name}.jpg", 16)
        np.testing.assert_array_equal(image, expected)


def test_difficult_is_what_the_setting_says(voc):
    flags = voc_flags("train")
    for difficult, labels in (("negative", flags == 1), ("positive", flags >= 0),
                              ("ignored", flags == 1)):  # fmt: skip
        data = load_voc(voc, "train", 16, difficult=difficult)
        np.testing.assert_array_equal(data.labels, labels)
        assert (data.ignored is None) == (difficult != "ignored")
    for part, split in zip(load_splits(config_of(difficult="ignored"), voc), ("train", "val"),
                           strict=True):  # fmt: skip
        np.testing.assert_array_equal(part.ignored, voc_flags(split) == 0)


def test_voc2012_is_read_from_a_folder_of_its_own_and_choices_are_made_on_train(voc):
    devkit(voc).rename(devkit(voc).with_name("VOC2012"))
    train, report = load_splits(small_config("voc2012"), voc)
    assert train.ids == tuple(voc_ids()["train"]) and report.ids == tuple(voc_ids()["val"])
    train, report = load_splits(small_config("voc2012", report="val"), voc)
    assert sorted(train.ids + report.ids) == sorted(voc_ids()["train"])  # none is in both


# --- boxes ----------------------------------------------------------------------------------------

OBJECTS = {  # of images of 24 x 18 pixels
    "000003": [("dog", 1, 2, 12, 9), ("person", 6, 1, 24, 18)],
    "000012": [("dog", 3, 3, 6, 6), ("dog", 12.5, 9, 18, 13.5)],
}


def annotation(root, name="000003"):
    return devkit(root) / "Annotations" / f"{name}.xml"


@pytest.fixture
def boxed(voc):
    """The tiny VOC with annotations of its training images."""
    write_annotations(devkit(voc), {i: OBJECTS.get(i, []) for i in voc_ids()["train"]})
    return voc


def test_boxes_are_those_of_the_annotations_as_fractions(boxed):
    data = load_voc(boxed, "train", 16, objects=True)
    image, label, box = data.objects.image, data.objects.label, data.objects.box
    got = {
        (data.ids[n], CLASSES[c], *(b * torch.tensor([24, 18, 24, 18])).tolist())
        for n, c, b in zip(image, label, box, strict=True)
    }
    assert got == {(name, *values) for name, rows in OBJECTS.items() for values in rows}
    part = "<part><name>head</name><bndbox><xmin>1</xmin></bndbox></part></object>"
    annotation(boxed).write_text(annotation(boxed).read_text().replace("</object>", part))
    assert torch.equal(load_voc(boxed, "train", 16, objects=True).objects.box, box)


def test_a_run_reads_boxes_only_when_it_asks_for_them(boxed):
    assert load_splits(config_of(report="val"), boxed)[0].objects is None
    assert load_splits(config_of(report="val", draw="size"), boxed)[0].objects is not None
    for part in load_splits(config_of(report="val"), boxed, objects=True):
        for n, name in enumerate(part.ids):
            assert (part.objects.image == n).sum() == len(OBJECTS.get(name, []))


ANNOTATION_FAULTS = {
    "torn": ("</annotation>", "cannot be read"),
    "no size": ("<width>24</width>", "cannot be read"),
    "missing": (None, "unpack VOCtrainval"),
}


@pytest.mark.parametrize("fault", ANNOTATION_FAULTS)
def test_a_damaged_annotation_is_named_in_one_line(boxed, fault):
    file, (lost, words) = annotation(boxed), ANNOTATION_FAULTS[fault]
    file.write_text(file.read_text().replace(lost, "")) if lost else file.unlink()
    said = message_of(load_voc, boxed, "train", 16, objects=True)
    assert words in said and str(file) in said
    assert len(load_voc(boxed, "train", 16)) == 6  # labels and images do not need it


# --- what is wrong --------------------------------------------------------------------------------

FAULTS = {
    "no split": (lambda r: (lists(r) / "train.txt").unlink(), "train.txt' is missing or empty"),
    "no list": (lambda r: (lists(r) / "cow_train.txt").unlink(), "cow_train.txt' is missing"),
    "an image less": (lambda r: (lists(r) / "cow_train.txt").write_text("000003 1\n"),
                      "cow_train.txt' has no flag for an image of train.txt: '000007'"),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_what_is_wrong_is_named_in_one_line(voc, fault):
    break_it, words = FAULTS[fault]
    break_it(voc)
    assert words in message_of(load_voc, voc, "train", 16)


def test_a_run_from_files_has_the_metrics_of_a_run_from_the_cache(voc, spcl, results, monkeypatch):
    settings = QUICK | {"frozen": 0, "batch": 2, "bank_size": 4}
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
    assert lazy["history"] == cached["history"] and lazy["AP"] == cached["AP"]
