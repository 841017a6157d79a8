"""Checks COCO's `instances_*.json` and turns it into a few compact tensors."""

from __future__ import annotations

import contextlib
import json
from array import array
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from spcl_lib.data.objects import run_lengths
from spcl_lib.system.errors import UserError, is_text
from spcl_lib.system.files import parse_json, read_list

# The keys that are read, and the type that each value must have.
_KEYS: dict[str, dict[str, type | tuple[type, ...]]] = {
    "images": {"id": int, "file_name": str, "height": int, "width": int},
    "categories": {"id": int, "name": str},
    "annotations": {
        "image_id": int, "category_id": int, "bbox": list, "segmentation": (list, dict),
    },
}  # fmt: skip
_FARTHEST = 1e5  # pixels; what is larger is a mistake and would cost pycocotools much memory


def parse_instances(file: Path) -> dict[str, Tensor]:
    """Reads everything that the loader needs from an `instances_*.json`.

    Images and categories are in ascending order of their ids. All instances count, also those
    with `iscrowd`. The masks of a class in an image become one mask.

    Args:
        file: JSON file with the lists images, annotations and categories.

    Returns:
        For N images: ids (N,), size (N, 2) as height and width, file_names and classes (JSON
        texts as bytes). For M objects: box_image, box_label, box (M, 4) as fractions of the image.
        For K pairs of image and class: mask_image, mask_label, mask_end (where the run lengths end
        in counts), counts (L,) uint8.

    Raises:
        UserError: the file is not valid JSON, lacks something, or contradicts itself.
    """
    content = _content(file)
    images = sorted(_records(file, content, "images"), key=lambda record: record["id"])
    categories = sorted(_records(file, content, "categories"), key=lambda record: record["id"])
    rows = _number_by_id(file, "images", images)
    labels = _number_by_id(file, "categories", categories)
    size = _sizes(file, images)
    boxes, objects = _collect_objects(file, _records(file, content, "annotations"), rows, labels)
    return {
        "ids": torch.tensor(list(rows)),
        "size": torch.from_numpy(size),
        "file_names": as_bytes([record["file_name"] for record in images]),
        "classes": as_bytes([record["name"] for record in categories]),
        **_box_tensors(boxes, size),
        **_mask_tensors(file, objects, size),
    }


def as_bytes(texts: Sequence[str]) -> Tensor:
    """A list of texts as (L,) uint8, for a cache of tensors."""
    return torch.frombuffer(bytearray(json.dumps(texts).encode()), dtype=torch.uint8)


def as_texts(data: Tensor) -> list[str]:
    """The inverse of `as_bytes`."""
    return json.loads(data.numpy().tobytes())


def _content(file: Path) -> dict[str, Any]:
    try:
        text = read_list(file).decode("utf-8")
        content = parse_json(text, object_hook=_pack_outlines)
    except (OSError, ValueError) as error:  # JSON's and Unicode's errors are ValueErrors
        raise UserError(
            f"'{file}' cannot be read as JSON ({error}); unpack COCO's annotations there again"
        ) from error
    if not isinstance(content, dict):
        raise UserError(f"'{file}' is no object with images, annotations and categories")
    return content


def _pack_outlines(record: dict[str, Any]) -> dict[str, Any]:
    """Stores the record's outlines as arrays, which take a third of the memory of lists."""
    if isinstance(record.get("segmentation"), list):
        with contextlib.suppress(TypeError):  # a later check reports values that are not numbers
            record["segmentation"] = [array("d", outline) for outline in record["segmentation"]]
    return record


def _records(file: Path, content: dict[str, Any], key: str) -> list[dict[str, Any]]:
    """One of the file's lists, after a check that every record has the keys that are needed."""
    records = content.get(key)
    if not isinstance(records, list):
        raise UserError(f"'{file}' has no list '{key}'; it must be COCO's instances_*.json")
    needed = _KEYS[key].items()
    for number, record in enumerate(records):
        for name, kind in needed:
            value = record.get(name) if isinstance(record, dict) else None
            right = is_text(value) if kind is str else isinstance(value, kind)
            if not right or (kind is int and abs(value) >= 2**63):
                raise UserError(
                    f"'{file}': number {number} of '{key}' has no valid '{name}'; "
                    "mend it, or unpack COCO's annotations again"
                )
    return records


def _number_by_id(file: Path, key: str, records: list[dict[str, Any]]) -> dict[int, int]:
    numbers = {record["id"]: number for number, record in enumerate(records)}
    if len(numbers) < len(records):
        raise UserError(f"'{file}' has an id more than once in '{key}'; ids must be unique")
    return numbers


def _sizes(file: Path, images: list[dict[str, Any]]) -> np.ndarray:
    """Height and width of every image, (N, 2) int64."""
    if not images:
        raise UserError(f"'{file}' lists no image; expected the annotations of a split of COCO")
    size = np.array([(record["height"], record["width"]) for record in images], dtype=np.int64)
    if size.min() < 1:
        raise UserError(f"'{file}': image id {images[int(size.min(1).argmin())]['id']} has no area")
    if size.max() > _FARTHEST:
        largest = images[int(size.max(1).argmax())]
        raise UserError(f"'{file}': image id {largest['id']} has a side of {size.max():,} pixels; "
                        f"at most {_FARTHEST:,.0f} are possible")  # fmt: skip
    return size


def _collect_objects(
    file: Path, records: list[dict[str, Any]], rows: dict[int, int], labels: dict[int, int]
) -> tuple[list[tuple[float, ...]], dict[tuple[int, int], list[dict[str, Any]]]]:
    """A box (image, class, x, y, width, height) per annotation, and records by (image, class)."""
    boxes, objects = [], {}
    for record in records:
        row, label = rows.get(record["image_id"]), labels.get(record["category_id"])
        if row is None:
            raise _wrong(file, record, f"names image id {record['image_id']}, not in 'images'")
        if label is None:
            raise _wrong(
                file, record, f"names category id {record['category_id']}, not in 'categories'"
            )
        box = _numbers(file, record, record["bbox"], 4)
        if box[2:].min() < 0:
            raise _wrong(file, record, "has a 'bbox' of negative width or height")
        boxes.append((row, label, *box))
        objects.setdefault((row, label), []).append(record)
    return boxes, objects


def _wrong(file: Path, record: dict[str, Any], what: str) -> UserError:
    return UserError(
        f"'{file}': annotation id {record.get('id')} {what}; mend or remove that annotation"
    )


def _numbers(
    file: Path, record: dict[str, Any], values: list[Any], count: int | None = None
) -> np.ndarray:
    """Coordinates as (n,) float64; n must be even, and equal to `count` if that is given."""
    try:
        numbers = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError):
        numbers = np.empty(1)
    right = numbers.ndim == 1 and numbers.size % 2 == 0 and numbers.size == (count or numbers.size)
    if not right or not (np.abs(numbers) < _FARTHEST).all():
        raise _wrong(file, record, "has a 'bbox' or 'segmentation' that is no list of coordinates")
    return numbers


def _box_tensors(boxes: list[tuple[float, ...]], size: np.ndarray) -> dict[str, Tensor]:
    table = np.array(boxes, dtype=np.float64).reshape(-1, 6)
    table = table[table[:, 0].argsort(kind="stable")]  # by image
    image, label = table[:, :2].astype(np.int64).T
    corners = np.concatenate([table[:, 2:4], table[:, 2:4] + table[:, 4:6]], axis=1)
    box = np.clip(corners / size[image][:, [1, 0, 1, 0]], 0, 1).astype(np.float32)
    values = {"box_image": image, "box_label": label, "box": box}
    return {name: torch.from_numpy(np.ascontiguousarray(v)) for name, v in values.items()}


def _mask_tensors(
    file: Path, objects: dict[tuple[int, int], list[dict[str, Any]]], size: np.ndarray
) -> dict[str, Tensor]:
    pairs = sorted(objects)
    bar = tqdm(pairs, desc=f"masks of {file.name}", unit="mask", mininterval=1, leave=False)
    counts = [_runs(file, objects.pop(pair), *size[pair[0]].tolist()) for pair in bar]
    ends = np.cumsum([len(part) for part in counts], dtype=np.int64)
    image, label = np.array(pairs, dtype=np.int64).reshape(-1, 2).T.copy()
    return {
        "mask_image": torch.from_numpy(image),
        "mask_label": torch.from_numpy(label),
        "mask_end": torch.from_numpy(ends),
        "counts": torch.from_numpy(np.frombuffer(bytearray(b"".join(counts)), np.uint8)),
    }


def _runs(file: Path, records: list[dict[str, Any]], height: int, width: int) -> bytes:
    """The union of the objects' pixels as compressed run lengths; empty if they have none."""
    tools, polygons, runs = _mask_tools(), [], []
    for record in records:
        shape = record["segmentation"]
        if isinstance(shape, dict):
            _check_runs(file, record, height, width)
            packed = isinstance(shape["counts"], str)
            runs.append(shape if packed else tools.frPyObjects(shape, height, width))
        else:
            polygons += [_numbers(file, record, polygon) for polygon in shape]
    polygons = [polygon for polygon in polygons if polygon.size >= 6]  # two points have no area
    runs += tools.frPyObjects(polygons, height, width) if polygons else []
    return tools.merge(runs)["counts"] if runs else b""


def _check_runs(file: Path, record: dict[str, Any], height: int, width: int) -> None:
    """Checks that run lengths (a list, or compressed) fill the image; pycocotools does not."""
    shape = record["segmentation"]
    try:
        counts = shape["counts"]
        if isinstance(counts, str):
            counts = run_lengths(np.frombuffer(counts.encode(), np.uint8)).tolist()
        right = shape["size"] == [height, width] and sum(counts) == height * width
        right = right and all(isinstance(count, int) and count >= 0 for count in counts)
    except (KeyError, TypeError, ValueError):
        right = False
    if not right:
        raise _wrong(file, record, f"has run lengths that do not fill {height} x {width} pixels")


def _mask_tools() -> ModuleType:
    try:
        from pycocotools import mask
    except ImportError as error:
        raise UserError("COCO's masks need pycocotools: pip install pycocotools") from error
    return mask
