"""`voc2007`, `voc2012`: Pascal VOC in torchvision's VOCdevkit layout.

Labels always come from ImageSets/Main. The boxes in Annotations give the places of the objects. In
some copies of the data, objects that the lists name have no box.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

import torch
from torch import Tensor
from tqdm import tqdm

from spcl_lib.data.cache import make_once
from spcl_lib.data.image_set import ImageSet, list_image_files
from spcl_lib.data.objects import Boxes
from spcl_lib.system.errors import UserError, unknown_name
from spcl_lib.system.files import read_list

CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa",
    "train", "tvmonitor",
)  # fmt: skip


def voc_folder(root: Path, year: int) -> Path:
    """Folder of a year of Pascal VOC below the data root."""
    return root / "VOCdevkit" / f"VOC{year}"


def list_voc(
    root: Path, split: str, year: int, difficult: str = "negative", boxes: bool = False
) -> ImageSet:
    """A split of Pascal VOC in the order of its list; the images are not read yet.

    Args:
        root: data root; holds VOCdevkit/VOC{year}.
        split: name of a list in ImageSets/Main: "train", "val", "trainval" or "test".
        year: 2007 or 2012.
        difficult: how a class counts in an image if all its objects there are "difficult" (0 in
            ImageSets/Main): "negative", as is usual; "positive"; or "ignored": the evaluation
            leaves it out, and in training it is not a positive.
        boxes: whether to read the boxes from Annotations, too.

    Raises:
        UserError: a folder, list or annotation is missing or damaged.
    """
    folder = voc_folder(root, year)
    if not folder.is_dir():
        raise UserError(
            f"Pascal VOC is not at '{folder}'. Unpack VOCtrainval there (JPEGImages, "
            f"ImageSets/Main, Annotations), or point --data-root at the folder of VOCdevkit, or "
            f"fetch it: python -m spcl_lib download --dataset voc{year} --data-root {root}"
        )
    ids, flags = read_flags(folder, split)
    return list_image_files(
        [folder / "JPEGImages" / f"{i}.jpg" for i in ids],
        labels=flags >= 0 if difficult == "positive" else flags == 1,
        classes=CLASSES,
        ids=tuple(ids),
        boxes=read_boxes(folder, ids) if boxes else None,
        ignored=flags == 0 if difficult == "ignored" else None,
    )


def read_flags(folder: Path, split: str) -> tuple[list[str], Tensor]:
    """Ids and flags (N, C) int8 of a split: 1 positive, 0 difficult, -1 negative.

    Raises:
        UserError: a list is missing, malformed, or does not name the images of the split.
    """
    lists = folder / "ImageSets" / "Main"
    ids = [fields[0] for fields in _rows(lists / f"{split}.txt", 1)]
    if not ids:
        raise UserError(f"'{lists / f'{split}.txt'}' names no image")
    twice = next((i for i, count in Counter(ids).items() if count > 1), None)
    if twice is not None:
        raise UserError(f"'{lists / f'{split}.txt'}' names image '{twice}' more than once")
    found = torch.empty((len(ids), len(CLASSES)), dtype=torch.int8)
    for c, name in enumerate(CLASSES):
        path = lists / f"{name}_{split}.txt"
        flags: dict[str, str] = {}
        for i, flag in _rows(path, 2):
            if flags.setdefault(i, flag) != flag:
                raise UserError(f"'{path}' gives image '{i}' the flags {flags[i]} and {flag}")
        wrong = next((f for f in flags.values() if f not in ("1", "0", "-1")), None)
        if wrong is not None:
            raise UserError(
                f"'{path}' has the flag '{wrong[:40]}'; expected 1, 0 (difficult) or -1"
            )
        missing = [i for i in ids if i not in flags]
        if missing:
            raise UserError(f"'{path}' lacks image '{missing[0]}' of {split}.txt")
        found[:, c] = torch.tensor([int(flags[i]) for i in ids])
    return ids, found


def _rows(path: Path, fields: int) -> list[list[str]]:
    if not path.is_file():
        raise UserError(f"list '{path}' is missing; it belongs to Pascal VOC's ImageSets/Main")
    try:
        text = read_list(path).decode()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"list '{path}' cannot be read ({error})") from error
    rows = [line.split() for line in text.splitlines() if line.strip()]
    wrong = next((row for row in rows if len(row) != fields), None)
    if wrong is not None:
        line = " ".join(wrong)[:200]
        raise UserError(f"'{path}' has the line '{line}'; expected {fields} fields")
    return rows


def read_boxes(folder: Path, ids: list[str]) -> Boxes:
    """All annotated objects of the images `ids`, difficult ones too; parsed once, then cached.

    Coordinates are those of the XML, divided by its <size>. VOC counts pixels from 1; we do not
    correct this difference of at most one pixel.

    Raises:
        UserError: an annotation is missing or damaged.
    """
    files = [folder / "Annotations" / f"{i}.xml" for i in ids]
    name, this = f"{folder.name.lower()}-boxes", sys.modules[__name__]
    return Boxes(**make_once(name, lambda: _parse(files), [_stamp(file) for file in files], this))


def _stamp(file: Path) -> tuple[str, int, int]:
    try:
        status = file.stat()
    except OSError as error:
        raise UserError(
            f"annotation '{file}' cannot be read ({error.strerror}); the boxes of its image are "
            "in VOCtrainval's folder Annotations: unpack it there"
        ) from error
    return str(file), status.st_size, status.st_mtime_ns


def _parse(files: list[Path]) -> dict[str, Tensor]:
    bar = tqdm(files, desc="reading boxes", unit="file", mininterval=1, leave=False)
    found = [(n, label, box) for n, file in enumerate(bar) for label, box in _objects(file)]
    return {
        "image": torch.tensor([n for n, _, _ in found], dtype=torch.int64),
        "label": torch.tensor([label for _, label, _ in found], dtype=torch.int64),
        "box": torch.tensor([box for _, _, box in found], dtype=torch.float32).view(-1, 4),
    }


def _objects(file: Path) -> Iterator[tuple[int, list[float]]]:
    """Class number and box, as fractions of the image, of every object in an annotation."""
    try:
        root = ElementTree.parse(file).getroot()
    except (ElementTree.ParseError, ValueError, OSError) as error:
        raise UserError(
            f"annotation '{file}' is not readable XML ({error}); replace it by the original"
        ) from error
    width, height = _numbers(file, root, "size", ("width", "height"))
    for number, item in enumerate(root.iterfind("object"), start=1):  # parts of objects are skipped
        name = (item.findtext("name") or "").strip()
        if name not in CLASSES:
            raise unknown_name(f"class of object {number} in '{file}':", name, CLASSES)
        corners = _numbers(file, item, "bndbox", ("xmin", "ymin", "xmax", "ymax"))
        limits = (width, height, width, height)
        x0, y0, x1, y1 = (_inside(v, limit) for v, limit in zip(corners, limits, strict=True))
        if not (0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height):
            raise UserError(
                f"'{file}' has the box {corners} (xmin, ymin, xmax, ymax) for object {number} "
                f"({name}); expected 0 <= xmin < xmax <= {width:g}, 0 <= ymin < ymax <= {height:g}"
            )
        yield CLASSES.index(name), [x0 / width, y0 / height, x1 / width, y1 / height]


def _inside(value: float, limit: float) -> float:
    """Moves a coordinate to the border if it is up to a pixel outside, which rounding can cause."""
    return min(max(value, 0.0), limit) if -1 <= value <= limit + 1 else value


def _numbers(
    file: Path, parent: ElementTree.Element, group: str, names: tuple[str, ...]
) -> list[float]:
    try:
        return [float(parent.findtext(f"{group}/{name}") or "") for name in names]
    except ValueError as error:
        raise UserError(
            f"'{file}' has a <{parent.tag}> without numbers for <{group}>: {', '.join(names)}"
        ) from error
