"""`coco2014`, `coco2017`: MS-COCO, labels and masks from `instances_*.json`."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from spcl_lib.data import coco_instances
from spcl_lib.data.cache import make_once
from spcl_lib.data.coco_instances import as_texts, parse_instances
from spcl_lib.data.image_set import ImageSet, list_image_files
from spcl_lib.data.objects import Boxes, Masks
from spcl_lib.system.errors import UserError


def list_coco(root: Path, split: str, year: int, unannotated: str = "drop") -> ImageSet:
    """A split of COCO in ascending order of the image ids; the images are not read yet.

    A class is present if it has an instance. As is usual, a crowd (`iscrowd`) counts as one.

    Args:
        root: data root; holds coco/annotations/instances_{split}{year}.json and
            coco/{split}{year} with the images.
        split: "train" or "val".
        year: 2014 or 2017.
        unannotated: "drop" leaves out images without any instance, as is usual (82,081 of
            train2014's 82,783 images remain); "keep" keeps them as all-negative.

    Returns:
        Labels, boxes and masks. `ids` are COCO's image ids as text, without leading zeros.
        Classes are in ascending order of the category ids.

    Raises:
        UserError: the annotations are missing, damaged, or contradict themselves.
    """
    name = f"{split}{year}"
    file = root / "coco" / "annotations" / f"instances_{name}.json"
    if not file.is_file():
        raise UserError(
            f"COCO's annotations are not at '{file}'. Unpack annotations_trainval{year}.zip and "
            f"{name}.zip from https://cocodataset.org/#download in '{root / 'coco'}'"
        )
    parts = read_instances(file)
    labels = _labels(parts)
    data = list_image_files(
        [root / "coco" / name / file_name for file_name in as_texts(parts["file_names"])],
        labels=labels,
        classes=tuple(as_texts(parts["classes"])),
        ids=tuple(map(str, parts["ids"].tolist())),
        boxes=Boxes(parts["box_image"], parts["box_label"], parts["box"]),
        masks=_masks(parts),
    )
    kept, note = _choose_images(labels, unannotated, file)
    return replace(data.subset(kept), notes=(note,) if note else ())


def read_instances(file: Path) -> dict[str, Tensor]:
    """Calls `parse_instances` once, and again only when the file's content has changed.

    The content is hashed again only when the file's size or date has changed.
    """
    status = file.stat()
    stamp = str(file), status.st_size, status.st_mtime_ns
    content = make_once(f"{file.stem}-sha256", lambda: {"sha256": _sha256(file)}, *stamp)["sha256"]
    return make_once(file.stem, lambda: parse_instances(file), content.tolist(), coco_instances)


def _sha256(file: Path) -> Tensor:
    with open(file, "rb") as handle:
        digest = hashlib.file_digest(handle, "sha256").digest()
    return torch.frombuffer(bytearray(digest), dtype=torch.uint8)


def _labels(parts: dict[str, Tensor]) -> Tensor:
    labels = torch.zeros((len(parts["ids"]), len(as_texts(parts["classes"]))), dtype=torch.bool)
    labels[parts["mask_image"], parts["mask_label"]] = True
    return labels


def _choose_images(labels: Tensor, unannotated: str, file: Path) -> tuple[Tensor, str]:
    """Numbers of the images that are used, and a note about images without annotation."""
    annotated = labels.any(1)
    empty = len(labels) - int(annotated.sum())
    if empty == len(labels):
        raise UserError(f"'{file}' has no annotation; unpack COCO's annotations there again")
    if not empty:
        return torch.arange(len(labels)), ""
    done = "left out" if unannotated == "drop" else "kept as all-negative"
    note = (
        f"{file.stem}: images without any annotation: {empty:,} of {len(labels):,}, {done} "
        f"(unannotated={unannotated})"
    )
    if unannotated == "drop":
        return annotated.nonzero().flatten(), note
    return torch.arange(len(labels)), note


def _masks(parts: dict[str, Tensor]) -> Masks:
    end = parts["mask_end"]
    start = torch.cat([end.new_zeros(1), end[:-1]])
    size = parts["size"][parts["mask_image"]]
    return Masks(parts["mask_image"], parts["mask_label"], size, start, end, parts["counts"])
