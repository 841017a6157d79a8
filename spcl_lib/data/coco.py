"""`coco2014`, `coco2017`: MS-COCO, labels, boxes and masks from `instances_*.json`.

pycocotools reads the annotations. It is needed for COCO only.
"""

from __future__ import annotations

import contextlib
import math
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from spcl_lib.data.cache import make_once, pack, stamps, unpack
from spcl_lib.data.image_set import ImageSet, list_image_files, unique_names
from spcl_lib.data.objects import Boxes, Masks
from spcl_lib.system.errors import UserError, is_text
from spcl_lib.system.files import parse_json, read_list

# Raise it when what `parse_instances` gives changes; a test compares golden values.
VERSION = 1
# The keys that are read, and the type that each value must have.
_KEYS: dict[str, dict[str, type | tuple[type, ...]]] = {
    "images": {"id": int, "file_name": str, "height": int, "width": int},
    "categories": {"id": int, "name": str},
    "annotations": {
        "image_id": int, "category_id": int, "bbox": list, "segmentation": (list, dict),
    },
}  # fmt: skip
_FARTHEST = 1e5  # pixels; what is larger is a mistake and would cost pycocotools much memory


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
        Labels, boxes and masks. `ids` are COCO's image ids as text. Classes are in ascending order
        of the category ids; those of one name get their ids added.

    Raises:
        UserError: annotations are missing or contradict themselves, or pycocotools is missing.
    """
    name = f"{split}{year}"
    file = root / "coco" / "annotations" / f"instances_{name}.json"
    if not file.is_file():
        raise UserError(
            f"COCO's annotations are not at '{file}'. Unpack annotations_trainval{year}.zip and "
            f"{name}.zip from https://cocodataset.org/#download in '{root / 'coco'}'"
        )
    parts = make_once(file.stem, lambda: parse_instances(file), VERSION, *stamps([file]))
    image, label, end = parts["mask_image"], parts["mask_label"], parts["mask_end"]
    classes, size = unpack(parts["classes"]), parts["size"]
    labels = torch.zeros((len(size), len(classes)), dtype=torch.bool)
    labels[image, label] = True
    start = torch.cat([end.new_zeros(1), end[:-1]])
    counts, turn = parts["counts"], torch.ones_like(image)
    data = list_image_files(
        [root / "coco" / name / file_name for file_name in unpack(parts["file_names"])],
        labels=labels,
        classes=tuple(classes),
        ids=tuple(map(str, parts["ids"].tolist())),
        boxes=Boxes(parts["box_image"], parts["box_label"], parts["box"]),
        masks=Masks(image, label, size[image], start, end, counts, turn),
        size=size,
    )
    return _choose_images(data, unannotated, file)


def _choose_images(data: ImageSet, unannotated: str, file: Path) -> ImageSet:
    """The images that are used, with a note about images without annotation."""
    annotated = data.labels.any(1)
    empty = len(data) - int(annotated.sum())
    if empty == len(data):
        raise UserError(f"'{file}' has no annotation; unpack COCO's annotations there again")
    if not empty:
        return data
    done = "left out" if unannotated == "drop" else "kept as all-negative"
    note = (
        f"{file.stem}: images without any annotation: {empty:,} of {len(data):,}, {done} "
        f"(unannotated={unannotated})"
    )
    kept = data.subset(annotated.nonzero().flatten()) if unannotated == "drop" else data
    return replace(kept, notes=(note,))


def parse_instances(file: Path) -> dict[str, Tensor]:
    """Everything that the loader needs from an `instances_*.json`, by ascending ids.

    Returns:
        For N images: ids (N,), size (N, 2) as height and width, file_names and classes (packed).
        For M objects: box_image, box_label, box (M, 4) as fractions of the image. For K pairs of
        image and class: mask_image, mask_label, mask_end (where the run lengths end in counts),
        counts (L,) uint8. The masks of a class in an image become one mask.

    Raises:
        UserError: the file is not valid JSON, lacks something, or contradicts itself, or
            pycocotools is missing.
    """
    coco = _index(file)
    images, categories = (dict(sorted(part.items())) for part in (coco.imgs, coco.cats))
    row, column = ({key: n for n, key in enumerate(part)} for part in (images, categories))
    boxes, objects = [], defaultdict(list)
    for record in coco.dataset["annotations"]:
        pair = row.get(record["image_id"]), column.get(record["category_id"])
        if None in pair:
            raise _wrong(file, record, f"names image id {record['image_id']} or category id "
                         f"{record['category_id']}, which the file does not list")  # fmt: skip
        boxes.append((*pair, *_box(file, record)))
        objects[pair].append(record)
    pairs = sorted(objects)
    bar = tqdm(pairs, desc=f"masks of {file.name}", unit="mask", mininterval=1, leave=False)
    runs = [_union(coco, file, objects.pop(pair)) for pair in bar]
    size = torch.tensor([(one["height"], one["width"]) for one in images.values()])
    table = np.array(boxes, dtype=np.float64).reshape(-1, 6)
    table = torch.from_numpy(table[table[:, 0].argsort(kind="stable")])  # by image
    image, label = table[:, :2].long().T.contiguous()
    corners = torch.cat([table[:, 2:4], table[:, 2:4] + table[:, 4:6]], 1)
    names = [one["name"] for one in categories.values()]
    ends = np.cumsum([len(part) for part in runs], dtype=np.int64)
    places = torch.tensor(pairs, dtype=torch.int64).view(-1, 2).T.contiguous()
    return {
        "ids": torch.tensor(list(images)), "size": size,
        "file_names": pack([one["file_name"] for one in images.values()]),
        "classes": pack(unique_names(names, [*categories], str.casefold)),
        "box_image": image, "box_label": label,
        "box": (corners / size[image][:, [1, 0, 1, 0]]).clamp(0, 1).float(),
        "mask_image": places[0], "mask_label": places[1], "mask_end": torch.from_numpy(ends),
        "counts": torch.from_numpy(np.frombuffer(bytearray(b"".join(runs)), np.uint8)),
    }  # fmt: skip


def _index(file: Path) -> Any:
    """The annotations as pycocotools' `COCO`, after a check of the keys that are needed."""
    try:
        from pycocotools.coco import COCO
    except ImportError as error:
        raise UserError("COCO's annotations need pycocotools: pip install pycocotools") from error
    try:
        content = parse_json(read_list(file))
    except (OSError, ValueError) as error:  # JSON's and Unicode's errors are ValueErrors
        raise UserError(
            f"'{file}' cannot be read as JSON ({error}); unpack COCO's annotations there again"
        ) from error
    for key in _KEYS:
        _check_records(file, content, key)
    coco = COCO()
    coco.dataset = content
    with contextlib.redirect_stdout(None):
        coco.createIndex()
    for key, index in (("images", coco.imgs), ("categories", coco.cats)):
        if len(index) < len(content[key]):
            raise UserError(f"'{file}' has an id more than once in '{key}'; ids must be unique")
    return coco


def _check_records(file: Path, content: Any, key: str) -> None:
    records = content.get(key) if isinstance(content, dict) else None
    if not isinstance(records, list) or (key == "images" and not records):
        raise UserError(f"'{file}' has no list '{key}'; it must be COCO's instances_*.json")
    for number, record in enumerate(records):
        record = record if isinstance(record, dict) else {}
        for name, kind in _KEYS[key].items():
            value = record.get(name)
            right = is_text(value) if kind is str else isinstance(value, kind)
            if kind is int:
                least, most = (1, _FARTHEST) if name in ("height", "width") else (-(2**63), 2**63)
                right = right and least <= value < most
            if not right:
                raise UserError(
                    f"'{file}': number {number} of '{key}' has no valid '{name}' "
                    f"(got {str(value)[:40]}); mend it, or unpack COCO's annotations again"
                )
        record.setdefault("id", number)


def _wrong(file: Path, record: dict[str, Any], what: str) -> UserError:
    return UserError(
        f"'{file}': annotation id {record.get('id')} {what}; mend or remove that annotation"
    )


def _box(file: Path, record: dict[str, Any]) -> list[float]:
    box = _coordinates(file, record, record["bbox"])
    if len(box) != 4 or min(box[2:]) < 0:
        raise _wrong(file, record, "has a 'bbox' that is not x, y, width, height")
    return box


def _coordinates(file: Path, record: dict[str, Any], values: Any) -> list[float]:
    with contextlib.suppress(TypeError, ValueError, OverflowError):
        numbers = [float(value) for value in values]
        if len(numbers) % 2 == 0 and all(abs(v) < _FARTHEST for v in numbers):  # NaN fails too
            return numbers
    raise _wrong(file, record, "has a 'bbox' or 'segmentation' that is no list of coordinates")


def _union(coco: Any, file: Path, records: list[dict[str, Any]]) -> bytes:
    """The union of the objects' pixels as compressed run lengths; empty if they have none."""
    from pycocotools import mask

    runs = []
    for record in records:
        shape = record["segmentation"]
        if isinstance(shape, list):
            outlines = [_coordinates(file, record, outline) for outline in shape]
            shape = [outline for outline in outlines if len(outline) >= 6]  # two points: no area
            if shape:
                runs.append(coco.annToRLE(record | {"segmentation": shape}))
        else:
            runs.append(_check_runs(coco, file, record))
    return mask.merge(runs)["counts"] if runs else b""


def _check_runs(coco: Any, file: Path, record: dict[str, Any]) -> dict[str, Any]:
    """Run lengths (a list, or compressed), if they fill the image; pycocotools does not check."""
    from pycocotools import mask

    image, shape = coco.imgs[record["image_id"]], record["segmentation"]
    size = [image["height"], image["width"]]
    with contextlib.suppress(Exception):  # pycocotools raises many kinds
        if shape["size"] == size and isinstance(shape["counts"], list):
            whole = all(type(count) is int and count >= 0 for count in shape["counts"])
            if whole and sum(shape["counts"]) == math.prod(size):
                return coco.annToRLE(record)
        elif shape["size"] == size:
            again = mask.encode(mask.decode(shape))["counts"].decode()
            if again == shape["counts"]:
                return shape
    raise _wrong(file, record, f"has run lengths that do not fill {size[0]} x {size[1]} pixels")
