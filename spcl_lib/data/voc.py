"""`voc2007`, `voc2012`: Pascal VOC in torchvision's VOCdevkit layout.

Labels always come from ImageSets/Main. The boxes in Annotations give the places of the objects. In
some copies of the data, objects that the lists name have no box.
"""

from __future__ import annotations

import contextlib
import math
from collections import Counter
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import torch
from torch import Tensor
from tqdm import tqdm

from spcl_lib.data.cache import make_once, stamps
from spcl_lib.data.image_set import ImageSet, list_image_files
from spcl_lib.data.objects import Boxes
from spcl_lib.system.errors import UserError, unknown_name
from spcl_lib.system.files import read_list

# Raise it when what `_parse` gives changes; a test compares golden values.
VERSION = 1
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
        ignored=flags == 0 if difficult == "ignored" else None,
        **(read_boxes(folder, ids) if boxes else {}),
    )


def read_flags(folder: Path, split: str) -> tuple[list[str], Tensor]:
    """Ids and flags (N, C) int8 of a split: 1 positive, 0 difficult, -1 negative.

    Raises:
        UserError: a list is missing, malformed, or does not name the images of the split.
    """
    lists = folder / "ImageSets" / "Main"
    ids = [row[0] for row in _rows(lists / f"{split}.txt", 1)]
    name, count = Counter(ids).most_common(1)[0] if ids else ("", 2)
    if count > 1:
        what = f"names image '{name}' more than once" if ids else "names no image"
        raise UserError(f"'{lists / f'{split}.txt'}' {what}")
    found = torch.empty((len(ids), len(CLASSES)), dtype=torch.int8)
    for c, name in enumerate(CLASSES):
        path = lists / f"{name}_{split}.txt"
        rows = _rows(path, 2)
        flags = dict(rows)
        for i, flag in rows:
            if flag not in ("1", "0", "-1") or flags[i] != flag:
                raise UserError(f"'{path}' gives image '{i}' the flag {flag[:40]}; expected 1, 0 "
                                "(difficult) or -1, and one flag for every image")  # fmt: skip
        missing = [i for i in ids if i not in flags]
        if missing:
            raise UserError(f"'{path}' lacks image '{missing[0]}' of {split}.txt")
        found[:, c] = torch.tensor([int(flags[i]) for i in ids])
    return ids, found


def _rows(path: Path, fields: int) -> list[list[str]]:
    try:
        rows = [line.split() for line in read_list(path).decode().splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"list '{path}' is missing or cannot be read ({error}); it belongs to "
                        "Pascal VOC's ImageSets/Main") from error  # fmt: skip
    wrong = next((row for row in rows if len(row) != fields), None)
    if wrong is not None:
        line = " ".join(wrong)[:200]
        raise UserError(f"'{path}' has the line '{line}'; expected {fields} fields")
    return rows


def read_boxes(folder: Path, ids: list[str]) -> dict[str, Any]:
    """All annotated objects of the images `ids`, difficult ones too; parsed once, then cached.

    Coordinates are those of the XML, divided by its <size>. VOC counts pixels from 1; we do not
    correct this difference of at most one pixel.

    Returns:
        The boxes, and the size (N, 2) for which they were annotated; see `ImageSet`.

    Raises:
        UserError: an annotation is missing or damaged.
    """
    files = [folder / "Annotations" / f"{i}.xml" for i in ids]
    name = f"{folder.name.lower()}-boxes"
    parts = make_once(name, lambda: _parse(files), VERSION, *stamps(files))
    return {"size": parts.pop("size"), "boxes": Boxes(**parts)}


def _parse(files: list[Path]) -> dict[str, Tensor]:
    bar = tqdm(files, desc="reading boxes", unit="file", mininterval=1, leave=False)
    found = [_objects(file) for file in bar]
    rows = [(n, *one) for n, (_, objects) in enumerate(found) for one in objects]
    return {
        "size": torch.tensor([size for size, _ in found]),
        "image": torch.tensor([n for n, _, _ in rows], dtype=torch.int64),
        "label": torch.tensor([label for _, label, _ in rows], dtype=torch.int64),
        "box": torch.tensor([box for _, _, box in rows], dtype=torch.float32).view(-1, 4),
    }


def _objects(file: Path) -> tuple[tuple[int, int], list[tuple[int, list[float]]]]:
    """Height and width of an annotated image; class number and box, as fractions, of all objects.

    Parts of objects are skipped.
    """
    try:
        root = ElementTree.parse(file).getroot()
    except (ElementTree.ParseError, ValueError, OSError) as error:
        raise UserError(
            f"annotation '{file}' cannot be read ({error}); it is in VOCtrainval's folder "
            "Annotations: unpack it there"
        ) from error
    width, height = _numbers(file, root, "size", ("width", "height"))
    found = []
    for number, item in enumerate(root.iterfind("object"), start=1):
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
        box = [x0 / width, y0 / height, x1 / width, y1 / height]
        found.append((CLASSES.index(name), box))
    return (int(height), int(width)), found


def _inside(value: float, limit: float) -> float:
    """Moves a coordinate to the border if it is up to a pixel outside, which rounding can cause."""
    return min(max(value, 0.0), limit) if -1 <= value <= limit + 1 else value


def _numbers(
    file: Path, parent: ElementTree.Element, group: str, names: tuple[str, ...]
) -> list[float]:
    with contextlib.suppress(ValueError):
        found = [float(parent.findtext(f"{group}/{name}") or "") for name in names]
        if all(map(math.isfinite, found)):
            return found
    raise UserError(
        f"'{file}' has a <{parent.tag}> without numbers for <{group}>: {', '.join(names)}"
    )
