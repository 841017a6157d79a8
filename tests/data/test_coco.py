"""COCO: labels, boxes and masks agree with the file; it is parsed once; errors name the fault."""

import json
import os

import numpy as np
import pytest
import torch
from PIL import Image
from small_coco import (
    CLASSES,
    HEIGHT,
    WIDTH,
    crowd_mask,
    instance,
    load_coco,
    small_coco,
    write_coco,
)

from spcl_lib import UserError
from spcl_lib.data import coco, coco_instances
from spcl_lib.data.image_set import PARTS
from spcl_lib.data.objects import run_lengths
from spcl_lib.runs.settings import make_config
from spcl_lib.runs.splits import load_splits
from spcl_lib.system import paths

IDS = ("5", "20", "41", "300", "1000")  # in ascending order; 20 has no annotation


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SPCL_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def root(tmp_path):
    """A data root with the small COCO as train2017 and, with other ids, as val2017."""
    write_coco(tmp_path / "root", "train")
    write_coco(tmp_path / "root", "val")
    return tmp_path / "root"


def annotations_of(root, split="train", year=2017):
    return root / "coco" / "annotations" / f"instances_{split}{year}.json"


def labels_by_hand(content, data):
    """(N, C) labels straight from the JSON: a loop over annotations, names in place of numbers."""
    names = {c["id"]: c["name"] for c in content["categories"]}
    present = {(str(a["image_id"]), names[a["category_id"]]) for a in content["annotations"]}
    return [[(i, c) in present for c in data.classes] for i in data.ids]


# --- labels and images ----------------------------------------------------------------------------


def test_labels_are_the_instances_and_a_crowd_is_one(root):
    data = load_coco(root, "train", 16)
    assert data.ids == ("5", "41", "300", "1000") and data.classes == CLASSES
    assert data.labels.tolist() == [
        [True, True, False], [False, False, True], [True, False, False], [False, False, True],
    ]  # fmt: skip
    content = small_coco()
    content["annotations"] = [a for a in content["annotations"] if a["id"] != 72]
    write_coco(root, content=content)  # image 300 has nothing but a crowd now
    assert load_coco(root, "train", 16).labels[2].tolist() == [True, False, False]


def test_categories_are_numbered_by_their_ids_not_by_their_order(root):
    content = small_coco()
    before = load_coco(root, "train", 16)
    content["categories"].reverse()
    content["images"].reverse()
    content["annotations"].reverse()
    write_coco(root, content=content)
    after = load_coco(root, "train", 16)
    assert after.classes == before.classes and after.ids == before.ids
    assert torch.equal(after.labels, before.labels)
    everything = torch.arange(4)
    assert torch.equal(after.regions(everything), before.regions(everything))


@pytest.mark.parametrize(("unannotated", "ids"), [("drop", ("5", "41", "300", "1000")),
                                                  ("keep", IDS)])  # fmt: skip
def test_images_without_annotation_are_dropped_or_kept_and_counted(root, unannotated, ids):
    data = load_coco(root, "train", 16, unannotated=unannotated)
    assert data.ids == ids and data.labels.any(1).sum() == 4
    (line,) = data.notes
    assert "images without any annotation: 1 of 5" in line and f"unannotated={unannotated}" in line
    assert ("left out" in line) == (unannotated == "drop")


def test_images_are_the_files_that_the_annotations_name(root):
    data = load_coco(root, "train", 16)
    for name, image in zip(data.ids, data.images, strict=True):
        with Image.open(root / "coco" / "train2017" / f"{int(name):012d}.jpg") as file:
            expected = np.asarray(file.resize((16, 16), Image.Resampling.BILINEAR))
        np.testing.assert_array_equal(image.permute(1, 2, 0), expected)


@pytest.mark.parametrize("year", [2014, 2017])
def test_a_run_reports_on_val_and_chooses_on_a_part_of_train(tmp_path, year):
    for split in ("train", "val"):
        write_coco(tmp_path, split, year)
    everything = {"train_images": 0, "eval_images": 0, "image_side": 16}
    name = f"coco{year}"
    train, report = load_splits(make_config(name, "an", 0, "smoke", everything), tmp_path)
    assert train.ids == ("5", "41", "300", "1000")
    assert report.ids == ("2005", "2041", "2300", "3000")
    choose = make_config(name, "an", 0, "smoke", everything | {"report": "val"})
    reports = set()
    for part in range(PARTS):
        train, report = load_splits(choose.replace(held_out=part), tmp_path)
        assert len(train) == 2 and len(report) == 2
        assert sorted(train.ids + report.ids) == sorted(("5", "41", "300", "1000"))
        reports.add(report.ids)
    assert len(reports) > 1
    kept = [*paths.cache().glob(f"{name}-held-out-?-2-16px*.npy")]
    assert len(kept) == PARTS - 1, "a part must not take the place of another"


def test_images_that_are_kept_without_annotation_are_reported_on_but_not_trained_on(root, capsys):
    everything = {"train_images": 0, "eval_images": 0, "image_side": 16, "unannotated": "keep"}
    train, report = load_splits(make_config("coco2017", "an", 0, "smoke", everything), root)
    assert "20" not in train.ids and len(train) == 4
    assert not report.labels[report.ids.index("2020")].any() and len(report) == 5
    assert "images without a positive label: 1 of 5, left out" in capsys.readouterr().out


def test_only_the_images_that_are_used_are_read(root):
    for file in (root / "coco" / "train2017").iterdir():
        if int(file.stem) > 41:
            file.unlink()
    some = {"train_images": 2, "eval_images": 1, "image_side": 16}
    train, report = load_splits(make_config("coco2017", "an", 0, "smoke", some), root)
    assert train.ids == ("5", "41") and report.ids == ("2005",)
    with pytest.raises(UserError, match="000000000300.jpg"):
        load_coco(root, "train", 16)


def test_a_damaged_image_that_is_left_out_takes_labels_boxes_and_masks_along(root):
    whole = load_coco(root, "train", 16)
    (root / "coco" / "train2017" / "000000000041.jpg").write_text("404: not found")
    data = load_coco(root, "train", 16, damaged="skip")
    kept = torch.tensor([0, 2, 3])
    assert data.ids == ("5", "300", "1000")
    assert torch.equal(data.images[:], whole.images[kept])
    assert torch.equal(data.labels, whole.labels[kept])
    assert torch.equal(data.regions(torch.arange(3)), whole.regions(kept))
    assert torch.equal(data.boxes.box, whole.subset(kept).boxes.box)


def test_splits_with_other_classes_are_refused(root):
    content = small_coco(2000)
    content["categories"][0]["name"] = "tram"
    write_coco(root, "val", content=content)
    config = make_config("coco2017", "an", 0, "smoke", {"image_side": 16})
    with pytest.raises(UserError, match="classes of its two splits"):
        load_splits(config, root)


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


def masks_of(data):
    masks = data.masks
    pairs = zip(masks.image.tolist(), masks.label.tolist(), strict=True)
    return {
        (data.ids[n], data.classes[c]): masks.decode(k).numpy() for k, (n, c) in enumerate(pairs)
    }


def assert_same_masks(got, expected):
    assert got.keys() == expected.keys()
    for key, mask in expected.items():
        np.testing.assert_array_equal(got[key], mask, err_msg=str(key))


def test_masks_are_the_union_of_a_classes_polygons_and_crowds(root):
    assert_same_masks(masks_of(load_coco(root, "train", 16)), expected_masks())


def test_compressed_run_lengths_are_read_too(root):
    tools = pytest.importorskip("pycocotools.mask")
    content = small_coco()
    (crowd,) = [a for a in content["annotations"] if a["iscrowd"]]
    runs = tools.frPyObjects(crowd["segmentation"], HEIGHT, WIDTH)
    crowd["segmentation"]["counts"] = runs["counts"].decode()
    write_coco(root, content=content)
    assert_same_masks(masks_of(load_coco(root, "train", 16)), expected_masks())


@pytest.mark.parametrize("shape", [[], [[1, 1, 5, 4]]])
def test_an_object_without_an_area_is_a_label_without_pixels(root, shape):
    content = small_coco()
    content["annotations"].append(instance(20, 7, shape) | {"id": 99})
    write_coco(root, content=content)
    data = load_coco(root, "train", 16)
    n = data.ids.index("20")
    assert data.labels[n].tolist() == [False, True, False]
    assert not data.regions(torch.tensor([n])).any()


def test_run_lengths_of_any_mask_are_read_back():
    tools = pytest.importorskip("pycocotools.mask")
    rng = np.random.default_rng(0)
    for share in (0.0, 0.02, 0.5, 1.0):
        mask = np.asfortranarray(rng.random((211, 97)) < share, np.uint8)
        mask[150:, 30:60] ^= 1  # long runs beside short ones: numbers of one to four characters
        counts = np.frombuffer(tools.encode(mask)["counts"], np.uint8)
        edges = np.flatnonzero(np.diff(mask.T.ravel(), prepend=0, append=2))
        assert run_lengths(counts).tolist() == np.diff(edges, prepend=0).tolist()


@pytest.mark.parametrize("side", [5, 16])
def test_regions_are_the_masks_at_the_centres_of_the_pixels(root, side):
    data = load_coco(root, "train", side)
    chosen = torch.tensor([3, 0, 3, 2])  # in any order, and one of them twice
    regions = data.regions(chosen)
    masks = expected_masks()
    assert regions.shape == (4, 3, side, side) and regions.any()
    for b, n in enumerate(chosen.tolist()):
        for c, name in enumerate(CLASSES):
            mask = masks.get((data.ids[n], name), np.zeros((HEIGHT, WIDTH), bool))
            for y in range(side):
                for x in range(side):
                    pixel = mask[int((y + 0.5) / side * HEIGHT), int((x + 0.5) / side * WIDTH)]
                    assert bool(regions[b, c, y, x]) == pixel, (b, name, y, x)


def test_a_subset_keeps_masks_and_boxes_with_their_images(root):
    data = load_coco(root, "train", 16)
    order = torch.tensor([2, 0])
    part = data.subset(order)
    assert torch.equal(part.regions(torch.arange(2)), data.regions(order))
    assert part.boxes.image.tolist() == [0, 0, 1, 1]
    expected = {key: mask for key, mask in expected_masks().items() if key[0] in ("300", "5")}
    assert_same_masks(masks_of(part), expected)


def test_boxes_are_fractions_of_the_image(root):
    data = load_coco(root, "train", 16)
    got = {(data.ids[n], data.classes[c], *(box * 24).round().int().tolist())
           for n, c, box in zip(*vars(data.boxes).values(), strict=True)}  # fmt: skip
    assert got == {  # 24 parts: 3 a column, 4 a row
        ("5", "train", 3, 4, 18, 16), ("5", "person", 9, 8, 24, 24),
        ("41", "toothbrush", 0, 0, 24, 24), ("300", "person", 0, 4, 21, 16),
        ("300", "person", 18, 0, 24, 24), ("1000", "toothbrush", 0, 0, 21, 20),
    }  # fmt: skip


def test_masks_without_pycocotools_say_what_to_install(root, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pycocotools", None)
    with pytest.raises(UserError, match="pip install pycocotools"):
        load_coco(root, "train", 16)


# --- the cache ------------------------------------------------------------------------------------


@pytest.fixture
def counted(monkeypatch):
    """How often a file is parsed and hashed."""
    calls = {"parse": 0, "hash": 0}

    def counting(name, function):
        def call(file):
            calls[name] += 1
            return function(file)

        return call

    monkeypatch.setattr(coco, "parse_instances", counting("parse", coco_instances.parse_instances))
    monkeypatch.setattr(coco, "_sha256", counting("hash", coco._sha256))
    return calls


def test_the_file_is_parsed_once_and_gives_the_same_again(root, counted):
    first, second = load_coco(root, "train", 16), load_coco(root, "train", 16)
    assert counted == {"parse": 1, "hash": 1}
    assert torch.equal(first.labels, second.labels) and first.ids == second.ids
    assert_same_masks(masks_of(second), expected_masks())


def test_a_new_date_alone_hashes_the_file_again_but_does_not_parse_it(root, counted):
    load_coco(root, "train", 16)
    os.utime(annotations_of(root), ns=(10**18, 10**18))
    load_coco(root, "train", 16)
    assert counted == {"parse": 1, "hash": 2}


def test_other_content_is_parsed_again_even_at_the_same_size(root, counted):
    before = load_coco(root, "train", 16)
    file = annotations_of(root)
    text = file.read_text()
    file.write_text(text.replace('"category_id": 7', '"category_id": 1'))
    os.utime(file, ns=(10**18, 10**18))
    assert file.stat().st_size == len(text)
    after = load_coco(root, "train", 16)
    assert counted["parse"] == 2
    assert before.labels[0].tolist() == [True, True, False]
    assert after.labels[0].tolist() == [True, False, False]


# --- what is wrong --------------------------------------------------------------------------------


def changed(change):
    """A fault in the content of the annotations."""

    def break_it(root):
        content = small_coco()
        change(content)
        annotations_of(root).write_text(json.dumps(content))
        return str(annotations_of(root))

    break_it.__name__ = change.__name__
    return break_it


@changed
def names_a_missing_image(content):
    content["annotations"][3]["image_id"] = 77


@changed
def names_an_unknown_category(content):
    content["annotations"][3]["category_id"] = 8


@changed
def lacks_a_list(content):
    del content["annotations"]


@changed
def lacks_a_key(content):
    del content["annotations"][3]["bbox"]


@changed
def lacks_a_file_name(content):
    del content["images"][1]["file_name"]


@changed
def has_a_text_as_record(content):
    content["categories"][1] = "person"


@changed
def has_an_image_twice(content):
    content["images"].append(content["images"][0])


@changed
def has_no_image(content):
    content["images"], content["annotations"] = [], []


@changed
def has_no_annotation(content):
    content["annotations"] = []


@changed
def has_an_image_without_area(content):
    content["images"][2]["width"] = 0


@changed
def has_a_polygon_of_words(content):
    content["annotations"][3]["segmentation"] = [["a", "b", "c", "d", "e", "f"]]


@changed
def has_half_a_point(content):
    content["annotations"][3]["segmentation"][0].append(3)


@changed
def has_a_polygon_far_away(content):
    content["annotations"][3]["segmentation"][0][2] = 1e12


@changed
def has_a_polygon_of_nan(content):
    content["annotations"][3]["segmentation"][0][2] = float("nan")


@changed
def has_a_box_of_three(content):
    content["annotations"][3]["bbox"].pop()


@changed
def has_a_box_turned_round(content):
    content["annotations"][3]["bbox"][2] = -4


@changed
def has_runs_of_another_size(content):
    content["annotations"][1]["segmentation"]["size"] = [HEIGHT, WIDTH + 1]


@changed
def has_runs_that_end_early(content):
    content["annotations"][1]["segmentation"]["counts"].pop()


@changed
def has_runs_without_counts(content):
    del content["annotations"][1]["segmentation"]["counts"]


@changed
def has_runs_of_fractions(content):
    content["annotations"][1]["segmentation"]["counts"] = [10.5, 37.5]


@changed
def has_runs_below_zero(content):
    content["annotations"][1]["segmentation"]["counts"] = [60, -12]


@changed
def has_compressed_runs_that_end_early(content):
    content["annotations"][1]["segmentation"]["counts"] = "5:"


@changed
def has_compressed_runs_that_end_within_a_number(content):
    content["annotations"][1]["segmentation"]["counts"] = "5:Q"


@changed
def has_an_image_too_large_for_any_memory(content):
    content["images"][1]["height"] = 10**9


@changed
def has_a_number_that_is_too_large(content):
    content["images"][1]["width"] = 10**30


@changed
def has_a_name_that_no_file_can_have(content):
    content["images"][1]["file_name"] = "a\0b.jpg"


@changed
def has_half_a_letter_in_the_name_of_a_class(content):
    content["categories"][1]["name"] = "\ud800"


def is_nested_too_deeply(root):
    annotations_of(root).write_text('{"images": ' + "[" * 50_000)
    return str(annotations_of(root))


def is_no_json(root):
    file = annotations_of(root)
    file.write_text(file.read_text()[:-40])
    return str(file)


def is_another_json(root):
    annotations_of(root).write_text("[1, 2]")
    return str(annotations_of(root))


def is_an_image(root):
    annotations_of(root).write_bytes(b"\xff\xd8\xff\xe0")
    return str(annotations_of(root))


def is_missing(root):
    annotations_of(root).unlink()
    return f"annotations are not at '{annotations_of(root)}'"


def lacks_an_image_file(root):
    file = root / "coco" / "train2017" / "000000000041.jpg"
    file.unlink()
    return str(file)


FAULTS = {
    names_a_missing_image: "annotation id 73 names image id 77",
    names_an_unknown_category: "annotation id 73 names category id 8",
    lacks_a_list: "no list 'annotations'",
    lacks_a_key: "number 3 of 'annotations' has no valid 'bbox'",
    lacks_a_file_name: "number 1 of 'images' has no valid 'file_name'",
    has_a_text_as_record: "number 1 of 'categories' has no valid 'id'",
    has_an_image_twice: "more than once in 'images'",
    has_no_image: "lists no image",
    has_no_annotation: "instances_train2017.json' has no annotation",
    has_an_image_without_area: "image id 20 has no area",
    has_a_polygon_of_words: "annotation id 73 has a 'bbox' or 'segmentation'",
    has_half_a_point: "annotation id 73 has a 'bbox' or 'segmentation'",
    has_a_polygon_far_away: "annotation id 73 has a 'bbox' or 'segmentation'",
    has_a_polygon_of_nan: "annotation id 73 has a 'bbox' or 'segmentation'",
    has_a_box_of_three: "annotation id 73 has a 'bbox' or 'segmentation'",
    has_a_box_turned_round: "annotation id 73 has a 'bbox' of negative width",
    has_runs_of_another_size: "annotation id 71 has run lengths",
    has_runs_that_end_early: "annotation id 71 has run lengths",
    has_runs_without_counts: "annotation id 71 has run lengths",
    has_runs_of_fractions: "annotation id 71 has run lengths",
    has_runs_below_zero: "annotation id 71 has run lengths",
    has_compressed_runs_that_end_early: "annotation id 71 has run lengths",
    has_compressed_runs_that_end_within_a_number: "annotation id 71 has run lengths",
    has_an_image_too_large_for_any_memory: "a side of 1,000,000,000 pixels",
    has_a_number_that_is_too_large: "number 1 of 'images' has no valid 'width'",
    has_a_name_that_no_file_can_have: "number 1 of 'images' has no valid 'file_name'",
    has_half_a_letter_in_the_name_of_a_class: "number 1 of 'categories' has no valid 'name'",
    is_nested_too_deeply: "cannot be read as JSON",
    is_no_json: "cannot be read as JSON",
    is_another_json: "no object with images",
    is_an_image: "cannot be read as JSON",
    is_missing: "Unpack",
    lacks_an_image_file: "is missing",
}


@pytest.mark.parametrize(("break_it", "said"), FAULTS.items())
def test_what_is_wrong_is_named_in_one_line_with_its_file(root, break_it, said):
    named = break_it(root)
    with pytest.raises(UserError) as caught:
        load_coco(root, "train", 16)
    message = str(caught.value)
    assert said in message and "\n" not in message
    assert named in message


# --- real data ------------------------------------------------------------------------------------


@pytest.fixture
def real_root(real_data):
    if not (real_data / "coco").is_dir():
        pytest.skip(f"needs {real_data / 'coco'}")
    return real_data


@pytest.mark.parametrize("split", ["train", "val"])
def test_real_labels_are_those_of_the_file(real_root, split):
    content = json.loads(annotations_of(real_root, split).read_text())
    data = load_coco(real_root, split, 32, unannotated="keep")
    assert sorted(data.ids) == sorted(str(record["id"]) for record in content["images"])
    assert list(data.ids) == sorted(data.ids, key=int)
    assert len(data.classes) == 80 and data.classes[0] == "person"
    assert data.classes[79] == "toothbrush"  # COCO's ids go up to 90
    assert data.labels.tolist() == labels_by_hand(content, data) and data.labels.sum() > 60
    dropped = load_coco(real_root, split, 32)
    annotated = {str(a["image_id"]) for a in content["annotations"]}
    assert set(dropped.ids) == annotated and len(dropped) < len(data)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of pycocotools with numpy 2
@pytest.mark.parametrize("split", ["train", "val"])
def test_real_masks_are_pycocotools_own(real_root, split, capsys):
    reference = pytest.importorskip("pycocotools.coco").COCO(annotations_of(real_root, split))
    data = load_coco(real_root, split, 32)
    names = {record["id"]: record["name"] for record in reference.loadCats(reference.getCatIds())}
    expected = {}
    for record in reference.loadAnns(reference.getAnnIds()):
        key = str(record["image_id"]), names[record["category_id"]]
        mask = reference.annToMask(record).astype(bool)
        expected[key] = expected.get(key, np.zeros_like(mask)) | mask
    assert_same_masks(masks_of(data), expected)
    regions = data.regions(torch.arange(len(data)))
    for n, name in enumerate(data.ids):
        for c, label in enumerate(data.classes):
            mask = expected.get((name, label), np.zeros((1, 1), bool))
            rows, columns = ((np.arange(32) + 0.5) / 32 * s for s in mask.shape)
            sampled = mask[rows.astype(int)[:, None], columns.astype(int)]
            np.testing.assert_array_equal(regions[n, c], sampled)
