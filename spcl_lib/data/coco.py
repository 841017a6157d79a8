"""`coco2014`, `coco2017`: MS-COCO, by pycocotools, which is needed only here."""

import contextlib
from collections import Counter
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from spcl_lib.data.cache import make_once, stamp
from spcl_lib.data.image_set import ImageSet, Objects, list_image_files
from spcl_lib.system.errors import UserError

# Raise it when what `parse_instances` gives changes; a test compares golden values.
VERSION = 2


def list_coco(root: Path, split: str, year: int, unannotated: str = "drop") -> ImageSet:
    """A split of COCO in ascending order of the image ids; the images are not read yet.

    As is usual, a crowd (`iscrowd`) counts as an instance.
    `unannotated="drop"` leaves out images without any instance, as is usual (82,081 of train2014's
    82,783 images remain); "keep" keeps them as all-negative.
    """
    name = f"{split}{year}"
    file = root / "coco" / "annotations" / f"instances_{name}.json"
    if not file.is_file():
        raise UserError(
            f"COCO's annotations are not at '{file}'. Unpack annotations_trainval{year}.zip and "
            f"{name}.zip from https://cocodataset.org/#download in '{root / 'coco'}'"
        )
    parts = make_once(file.stem, lambda: parse_instances(file), VERSION, stamp(file))
    labels = torch.zeros((len(parts["ids"]), len(parts["classes"])), dtype=torch.bool)
    labels[parts["image"], parts["label"]] = True
    data = list_image_files(
        [root / "coco" / name / file_name for file_name in parts["file_names"]],
        labels=labels,
        classes=tuple(parts["classes"]),
        ids=tuple(map(str, parts["ids"])),
        objects=_objects(parts),
    )
    annotated = labels.any(1).nonzero().flatten()
    if unannotated == "keep" or len(annotated) == len(data):
        return data
    note = f"{len(data) - len(annotated):,} images of {file.stem} have no annotation; left out"
    return replace(data.subset(annotated), notes=(note,))


def _objects(parts: dict[str, Any]) -> Objects:
    counts, ends = parts["counts"].numpy().tobytes(), [0, *parts["end"].tolist()]
    places = zip(parts["size"].tolist(), pairwise(ends), strict=True)
    runs = tuple({"size": size, "counts": counts[start:end]} for size, (start, end) in places)
    return Objects(parts["image"], parts["label"], parts["box"], runs)


def parse_instances(file: Path) -> dict[str, Any]:
    """Images and classes by ascending ids, and M objects, whose masks end at `end` in `counts`."""
    try:
        from pycocotools.coco import COCO
    except ImportError as error:
        raise UserError("COCO's annotations need pycocotools: pip install pycocotools") from error
    try:
        with contextlib.redirect_stdout(None):
            coco = COCO(file)
        return _parse(coco, f"masks of {file.name}")
    except (ValueError, LookupError, TypeError, AssertionError) as error:
        raise UserError(f"'{file}' holds no annotations of COCO ({error!r})") from error


def _parse(coco: Any, title: str) -> dict[str, Any]:
    images, classes = ([part[i] for i in sorted(part)] for part in (coco.imgs, coco.cats))
    names = Counter(one["name"] for one in classes)
    row, column = ({one["id"]: n for n, one in enumerate(part)} for part in (images, classes))
    records = sorted(coco.dataset["annotations"], key=lambda record: row[record["image_id"]])
    image = torch.tensor([row[record["image_id"]] for record in records])
    size = torch.tensor([(one["height"], one["width"]) for one in images])[image]  # (M, 2)
    box = torch.tensor([record["bbox"] for record in records], dtype=torch.float64)
    box[:, 2:] += box[:, :2]  # width and height -> the other corner
    bar = tqdm(records, desc=title, unit="mask", mininterval=1, leave=False)
    runs = [_run_lengths(coco, record) for record in bar]
    return {
        "ids": [one["id"] for one in images],
        "file_names": [one["file_name"] for one in images],
        "classes": [  # those of one name get their ids added
            one["name"] if names[one["name"]] == 1 else f"{one['name']} {one['id']}"
            for one in classes
        ],
        "image": image,
        "label": torch.tensor([column[record["category_id"]] for record in records]),
        "box": (box / size[:, [1, 0, 1, 0]]).clamp(0, 1).float(),
        "size": size,
        "end": torch.tensor([len(part) for part in runs]).cumsum(0),
        "counts": torch.frombuffer(bytearray(b"".join(runs)), dtype=torch.uint8),
    }


def _run_lengths(coco: Any, record: dict[str, Any]) -> bytes:
    shape = record["segmentation"]
    if isinstance(shape, list):  # an outline of two points has no area; COCO means a box by it
        shape = [outline for outline in shape if len(outline) >= 6] or [[0] * 6]
    counts = coco.annToRLE(record | {"segmentation": shape})["counts"]
    return counts.encode() if isinstance(counts, str) else counts
