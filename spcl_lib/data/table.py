"""`table`: any multi-label images; train.csv and val.csv list them with all their labels."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from pathlib import Path

import torch

from spcl_lib.data.image_set import ImageSet, list_image_files
from spcl_lib.data.label_files import LabelRow, read_label_file
from spcl_lib.data.objects import Boxes
from spcl_lib.system.errors import UserError

TRAIN, VAL = "train.csv", "val.csv"


def list_table(root: Path) -> tuple[ImageSet, ImageSet]:
    """Lists the images of both files in the order of the files, without reading the images.

    Args:
        root: folder with train.csv and val.csv. Each has the header `path,labels` and a line for
            every image: its path below the folder, and its labels with "|" between them. An image
            without any class has no label. A third column, boxes, is optional: see
            `label_files.read_label_file`.

    Returns:
        The images of train.csv and of val.csv. The classes are the sorted labels of train.csv.

    Raises:
        UserError: a file is missing or malformed, an image is in both files, there are fewer than
            two classes, or val.csv has a label that train.csv does not have.
    """
    train, val = (read_label_file(root, name, "labels") for name in (TRAIN, VAL))
    for path in sorted(train.keys() & val.keys()):
        raise UserError(
            f"image '{path}' is in '{root / TRAIN}' (line {train[path].line}) and in "
            f"'{root / VAL}' (line {val[path].line}); evaluation images must not be trained on"
        )
    classes = tuple(sorted(frozenset().union(*(row.labels for row in train.values()))))
    if len(classes) < 2:
        raise UserError(f"'{root / TRAIN}' has {len(classes)} labels; two or more are needed")
    _check_known(val, classes, root / VAL, f"no image of {TRAIN} has")
    return _image_set(root, train, classes), _image_set(root, val, classes)


def list_labelled(root: Path, file: Path, column: str, classes: tuple[str, ...]) -> ImageSet:
    """Lists images with their labels among given classes, without reading the images.

    Args:
        root: folder of the images.
        file: CSV file as in `list_table`, with paths below `root`.
        column: "labels", or "label" for one label per image.
        classes: C names, of a trained network.

    Raises:
        UserError: the file is missing or malformed, or has a label that is not among the classes.
    """
    rows = read_label_file(root, str(file.absolute()), column)
    _check_known(rows, classes, file, "the run has no class")
    return _image_set(root, rows, classes)


def _check_known(
    rows: Mapping[str, LabelRow], classes: tuple[str, ...], file: Path, flaw: str
) -> None:
    for row in rows.values():
        for name in sorted(row.labels - set(classes)):
            close = difflib.get_close_matches(name, classes, n=1)
            hint = f" Did you mean '{close[0]}'?" if close else ""
            raise UserError(f"'{file}', line {row.line}: {flaw} '{name}'.{hint}")


def _image_set(root: Path, rows: Mapping[str, LabelRow], classes: tuple[str, ...]) -> ImageSet:
    number = {name: c for c, name in enumerate(classes)}
    labels = torch.zeros((len(rows), len(classes)), dtype=torch.bool)
    for i, row in enumerate(rows.values()):
        labels[i, [number[name] for name in row.labels]] = True
    files, boxes = [root / path for path in rows], _boxes(rows, number)
    return list_image_files(files, labels=labels, classes=classes, ids=tuple(rows), boxes=boxes)


def _boxes(rows: Mapping[str, LabelRow], number: Mapping[str, int]) -> Boxes | None:
    """The objects of all images; None if the file has no boxes."""
    if any(row.objects is None for row in rows.values()):
        return None
    found = [(i, number[name], box) for i, row in enumerate(rows.values())
             for name, box in row.objects]  # fmt: skip
    images, labels, corners = zip(*found, strict=True) if found else ((), (), ())
    return Boxes(
        torch.tensor(images, dtype=torch.int64), torch.tensor(labels, dtype=torch.int64),
        torch.tensor(corners, dtype=torch.float32).view(-1, 4),
    )  # fmt: skip
