"""COCO: labels, boxes and masks of `instances_*.json`; annotations that cannot be right."""

import json
import sys
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image
from refusals import message_of
from small_coco import (
    CLASSES,
    HEIGHT,
    WIDTH,
    crowd_mask,
    instance,
    load_coco,
    rectangle,
    small_coco,
    write_coco,
)
from small_folder import small_config

from spcl_lib import UserError
from spcl_lib.data import coco
from spcl_lib.data.image_set import PARTS
from spcl_lib.data.images import read_image
from spcl_lib.runs.splits import load_splits

tools = pytest.importorskip("pycocotools.mask")


@pytest.fixture
def root(tmp_path):
    """A data root with the small COCO as train2017 and, with other ids, as val2017."""
    write_coco(tmp_path / "root", "train")
    write_coco(tmp_path / "root", "val")
    return tmp_path / "root"


def annotations_of(root):
    return root / "coco" / "annotations" / "instances_train2017.json"


config_of = partial(small_config, "coco2017")


# --- labels and images ----------------------------------------------------------------------------


def test_labels_are_the_instances_whatever_their_order_and_a_crowd_is_one(root):
    data = load_coco(root, "train", 16)
    assert data.ids == ("5", "41", "300", "1000") and data.classes == CLASSES
    assert data.labels.int().tolist() == [[1, 1, 0], [0, 0, 1], [1, 0, 0], [0, 0, 1]]
    content = small_coco()
    for key in ("categories", "images", "annotations"):
        content[key].reverse()
    content["annotations"] = [a for a in content["annotations"] if a["id"] != 72]
    write_coco(root, content=content)  # image 300 has nothing but a crowd now
    again = load_coco(root, "train", 16)
    assert again.ids == data.ids and again.classes == CLASSES
    assert torch.equal(again.labels, data.labels)


def test_images_without_annotation_are_dropped_or_kept_and_counted(root, capsys):
    for unannotated, count in (("drop", 4), ("keep", 5)):
        data = load_coco(root, "train", 16, unannotated=unannotated)
        assert len(data) == count and data.labels.any(1).sum() == 4
    train, report = load_splits(config_of(unannotated="keep"), root)
    assert "20" not in train.ids and len(train) == 4
    assert not report.labels[report.ids.index("2020")].any() and len(report) == 5
    assert "images without a positive label: 1 of 5, left out" in capsys.readouterr().out


def test_a_run_reports_on_val_and_chooses_on_a_part_of_train(root):
    train, report = load_splits(config_of(), root)
    assert train.ids == ("5", "41", "300", "1000")
    assert report.ids == ("2005", "2041", "2300", "3000")
    for part in range(PARTS):
        train, held = load_splits(config_of(report="val", held_out=part), root)
        assert len(train) == len(held) == 2
        for name, image in zip(held.ids, held.images, strict=True):
            file = root / "coco" / "train2017" / f"{int(name):012d}.jpg"
            np.testing.assert_array_equal(image, read_image(file, 16))


# --- masks and boxes ------------------------------------------------------------------------------


def expected_masks():
    """(image id, class) -> mask (HEIGHT, WIDTH), written by hand from `small_coco`."""

    def pixels(*rectangles):
        mask = np.zeros((HEIGHT, WIDTH), bool)
        for x0, y0, x1, y1 in rectangles:
            mask[y0:y1, x0:x1] = True
        return mask

    return {
        ("5", "person"): pixels((3, 2, 8, 6)),
        ("5", "train"): pixels((1, 1, 6, 4)),
        ("41", "toothbrush"): pixels((0, 0, 8, 6)),
        ("300", "person"): pixels((6, 0, 8, 6)) | crowd_mask(),
        ("1000", "toothbrush"): pixels((0, 0, 2, 3), (4, 2, 7, 5)),
    }


@pytest.mark.parametrize(("side", "is_packed"), [(5, False), (24, True)])
def test_regions_are_the_masks_at_the_centres_of_the_pixels(root, side, is_packed):
    """The masks are the union of a class's polygons and crowds."""
    content = small_coco()
    (crowd,) = [a for a in content["annotations"] if a["iscrowd"]]
    if is_packed:
        runs = tools.frPyObjects(crowd["segmentation"], HEIGHT, WIDTH)
        crowd["segmentation"]["counts"] = runs["counts"].decode()
    write_coco(root, content=content)
    data = load_coco(root, "train", side)
    chosen = torch.tensor([3, 0, 3, 2])  # in any order, and one of them twice
    regions, masks = data.regions(chosen), expected_masks()
    y, x = (((np.arange(side) + 0.5) / side * length).astype(int) for length in (HEIGHT, WIDTH))
    for b, n in enumerate(chosen.tolist()):
        for c, name in enumerate(CLASSES):
            mask = masks.get((data.ids[n], name), np.zeros((HEIGHT, WIDTH), bool))
            np.testing.assert_array_equal(regions[b, c], mask[y][:, x])


def test_classes_of_one_name_get_their_ids(tmp_path):
    content = small_coco()
    for category in content["categories"][:2]:
        category["name"] = "fish"
    write_coco(tmp_path, content=content)
    assert load_coco(tmp_path, "train", 16).classes == ("fish 1", "fish 7", "toothbrush")


def test_boxes_are_fractions_of_the_image(root):
    data = load_coco(root, "train", 16)
    got = {(data.ids[n], data.classes[c], *(box * 24).round().int().tolist())
           for n, c, box in zip(data.objects.image, data.objects.label, data.objects.box,
                                strict=True)}  # fmt: skip
    assert got == {  # 24 parts: 3 a column, 4 a row
        ("5", "train", 3, 4, 18, 16), ("5", "person", 9, 8, 24, 24),
        ("41", "toothbrush", 0, 0, 24, 24), ("300", "person", 0, 4, 21, 16),
        ("300", "person", 18, 0, 24, 24), ("1000", "toothbrush", 0, 0, 21, 20),
    }  # fmt: skip


@pytest.mark.parametrize("orientation", range(1, 9))
def test_boxes_and_masks_turn_with_the_picture(tmp_path, orientation):
    """The object is the bright corner of the pixels as they are stored."""
    pixels = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    pixels[:3, :4] = 255
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = small_coco()
    content["annotations"] = [instance(5, 7, [rectangle(0, 0, 4, 3)], (0, 0, 4, 3)) | {"id": 1}]
    write_coco(tmp_path, content=content)
    file = tmp_path / "coco" / "train2017" / "000000000005.jpg"
    Image.fromarray(pixels).save(file, exif=exif, quality=95)
    data = load_coco(tmp_path, "train", 8)
    bright = data.images[0].float().mean(0) > 128
    assert torch.equal(data.regions(torch.tensor([0]))[0, 1], bright)
    boxes = replace(data.objects, runs=())
    assert torch.equal(boxes.regions(torch.tensor([0]), 3, 8)[0, 1], bright)


def test_without_pycocotools_it_is_said_what_to_install(root, monkeypatch):
    for name in ("pycocotools", "pycocotools.coco"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UserError, match="pip install pycocotools"):
        load_coco(root, "train", 16)


def test_what_is_parsed_never_changes_without_a_new_version(root):
    """With other values, `coco.VERSION` must change, too."""
    parts = coco.parse_instances(annotations_of(root))
    tensors = {name: part for name, part in parts.items() if isinstance(part, torch.Tensor)}
    golden = {name: round(part.double().sum().item(), 3) for name, part in tensors.items()}
    assert (coco.VERSION, golden) == (2, GOLDEN)


GOLDEN = {"image": 12.0, "label": 5.0, "box": 12.583, "size": 84.0, "end": 171.0, "counts": 2474.0}


# --- what is wrong --------------------------------------------------------------------------------


FAULTS = {
    "an unknown image": lambda content: content["annotations"][3].update(image_id=77),
    "no annotations": lambda content: content.pop("annotations"),
    "no box": lambda content: content["annotations"][3].pop("bbox"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_is_wrong_is_named_in_one_line_with_its_file(root, fault):
    content = small_coco()
    FAULTS[fault](content)
    annotations_of(root).write_text(json.dumps(content))
    said = message_of(load_coco, root, "train", 16)
    assert f"'{annotations_of(root)}' holds no annotations of COCO" in said


def test_annotations_that_are_damaged_or_missing_are_named(root):
    annotations_of(root).write_bytes(b'{"images": [')
    assert "holds no annotations of COCO" in message_of(load_coco, root, "train", 16)
    annotations_of(root).unlink()
    with pytest.raises(UserError, match="annotations are not at .*Unpack"):
        load_coco(root, "train", 16)
