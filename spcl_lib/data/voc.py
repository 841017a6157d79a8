"""`voc2007`: Pascal VOC in torchvision's VOCdevkit layout, labels from ImageSets/Main."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from spcl_lib.data.common import ImageSet, image_set
from spcl_lib.errors import UserError

CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa",
    "train", "tvmonitor",
)  # fmt: skip


def load_voc(
    root: Path, split: str, side: int, year: int = 2007, damaged: str = "stop"
) -> ImageSet:
    """A split of Pascal VOC, images in the order of its list.

    Entries marked "difficult" (0 in ImageSets/Main) count as negative, as the field does.

    Args:
        root: data root; holds VOCdevkit/VOC{year}.
        split: name of a list in ImageSets/Main: "train", "val", "trainval" or "test".
        side: images are resized to squares of this many pixels.
        year: 2007 or 2012.
        damaged: what to do about images that cannot be read: "stop" or "skip".

    Raises:
        UserError: a folder, list or image is missing or damaged.
    """
    folder = root / "VOCdevkit" / f"VOC{year}"
    if not folder.is_dir():
        raise UserError(
            f"Pascal VOC is not at '{folder}'. Unpack VOCtrainval there "
            f"(JPEGImages, ImageSets/Main), or point --data-root at the folder of VOCdevkit"
        )
    ids, labels = read_labels(folder, split)
    files = [folder / "JPEGImages" / f"{i}.jpg" for i in ids]
    name = f"voc{year}-{split}"
    return image_set(files, side, name, damaged, labels=labels, classes=CLASSES, ids=tuple(ids))


def read_labels(folder: Path, split: str) -> tuple[list[str], Tensor]:
    """Ids and full labels (N, C) bool of a split, from ImageSets/Main.

    Raises:
        UserError: a list is missing, malformed, or does not name the images of the split.
    """
    lists = folder / "ImageSets" / "Main"
    ids = [fields[0] for fields in _rows(lists / f"{split}.txt", 1)]
    if not ids:
        raise UserError(f"'{lists / f'{split}.txt'}' names no image")
    labels = torch.zeros((len(ids), len(CLASSES)), dtype=torch.bool)
    for c, name in enumerate(CLASSES):
        path = lists / f"{name}_{split}.txt"
        flags = {fields[0]: fields[1] for fields in _rows(path, 2)}
        wrong = next((f for f in flags.values() if f not in ("1", "0", "-1")), None)
        if wrong is not None:
            raise UserError(f"'{path}' has the flag '{wrong}'; expected 1, 0 (difficult) or -1")
        missing = [i for i in ids if i not in flags]
        if missing:
            raise UserError(f"'{path}' lacks image '{missing[0]}' of {split}.txt")
        labels[:, c] = torch.tensor([flags[i] == "1" for i in ids])
    return ids, labels


def _rows(path: Path, fields: int) -> list[list[str]]:
    if not path.is_file():
        raise UserError(f"list '{path}' is missing; it belongs to Pascal VOC's ImageSets/Main")
    rows = [line.split() for line in path.read_text().splitlines() if line.strip()]
    wrong = next((row for row in rows if len(row) != fields), None)
    if wrong is not None:
        raise UserError(f"'{path}' has the line '{' '.join(wrong)}'; expected {fields} fields")
    return rows
