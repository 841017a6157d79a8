"""ImageSet, the form of every data set: images, full labels and, where known, the objects."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torchvision.ops import masks_to_boxes

from spcl_lib.data.cache import decode_images
from spcl_lib.data.images import Images, LazyImages
from spcl_lib.data.objects import Boxes, Masks, turns_of

HELD_OUT = 0.4  # share of a real training split that is used for choices
PARTS = 3  # held-out parts, which together have all images
_HELD_OUT_SEED = 1200
_SAMPLED = 50_000  # with more files, only their sizes identify the content
_SAMPLE_BYTES = 4096


def hold_out(count: int, part: int = 0) -> tuple[Tensor, Tensor]:
    """Splits 0..count-1 into 60 % for training and 40 % held out for choices; ascending int64.

    The result depends only on `count` and on the number of the part, below PARTS. Neighbouring
    parts share a few images.
    """
    generator = torch.Generator().manual_seed(_HELD_OUT_SEED)
    order = torch.randperm(count, generator=generator).roll(-(part * count // PARTS))
    held = round(HELD_OUT * count)
    return order[held:].sort().values, order[:held].sort().values


@dataclass(frozen=True)
class ImageSet:
    """One split of a data set.

    Attributes:
        images: (N, 3, S, S) uint8; whole images, resized to squares. (N, 0) before the decoding.
        labels: (N, C) bool; the full labels. Training on a single label never sees them.
        classes: C names.
        ids: N names, for messages and predictions.
        class_map: (N, S, S) uint8 or None; number + 1 of the class visible at a pixel, 0 = none.
        boxes: the annotated objects, or None if the data set has none or the caller needs none.
        masks: exact masks, or None if the data set has none.
        ignored: (N, C) bool or None; labels that the evaluation does not count. They are False in
            `labels`.
        files: N image files, or None for drawn images.
        size: (N, 2) int64; height and width for which boxes and masks were annotated. The decoding
            turns them with the pictures, see `objects.turns_of`, and leaves None. None also if they
            belong to the pictures as they are seen.
        notes: messages about the selection, such as "3 images left out".

    Raises:
        ValueError: the numbers of images, labels and ids differ, or two classes have one name.
    """

    images: Images
    labels: Tensor
    classes: tuple[str, ...]
    ids: tuple[str, ...]
    class_map: Tensor | None = None
    boxes: Boxes | None = None
    masks: Masks | None = None
    ignored: Tensor | None = None
    files: tuple[Path, ...] | None = None
    size: Tensor | None = None
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        counts = len(self.images), len(self.labels), len(self.ids)
        if len(set(counts)) > 1:  # images would get wrong labels
            raise ValueError(f"images, labels and ids must be equally many; got {counts}")
        if len(set(self.classes)) < len(self.classes):  # metrics and scores have them as keys
            raise ValueError(f"two classes have one name: {sorted(self.classes)}")

    def __len__(self) -> int:
        return len(self.images)

    def subset(self, indices: Tensor) -> ImageSet:
        """The images at `indices` (M,) int64, in that order."""

        def pick(part: Any) -> Any:
            if isinstance(part, tuple):
                return tuple(part[i] for i in indices.tolist())
            if isinstance(part, Boxes | Masks | LazyImages):
                return part.subset(indices)
            return None if part is None else part[indices]

        per_image = ("images", "labels", "ids", "class_map", "boxes", "masks", "ignored", "files",
                     "size")  # fmt: skip
        return replace(self, **{name: pick(getattr(self, name)) for name in per_image})

    def first(self, count: int) -> ImageSet:
        """The first `count` images; all if there are fewer."""
        return self if count >= len(self) else self.subset(torch.arange(count))

    def regions(self, indices: Tensor) -> Tensor:
        """Whether an object of each class covers the centre of each pixel: (B, C, S, S) bool.

        Exact masks count, else boxes. The image numbers `indices` (B,) int64 may repeat.

        Raises:
            ValueError: the data set has neither masks nor boxes.
        """
        if self.class_map is not None:
            values = torch.arange(1, len(self.classes) + 1, dtype=torch.uint8)
            return self.class_map[indices][:, None] == values[:, None, None]
        objects = self.masks or self.boxes
        if objects is None:
            raise ValueError("this data set has neither masks nor boxes of its objects")
        return objects.regions(indices, len(self.classes), self.images.shape[-1])

    def content(self) -> str:
        """Eight characters that change with any image file or label, but not with the folder.

        They depend on the size of each file and, for up to 50,000 files, on 4 kB from its middle.
        """
        digest = hashlib.sha256()
        for part in (self.labels, self.ignored):
            digest.update(b"" if part is None else part.contiguous().numpy())
        digest.update(json.dumps([self.classes, self.ids]).encode("utf-8", "surrogatepass"))
        sampled = len(self.files or ()) <= _SAMPLED
        for file in self.files or ():
            digest.update(_identify_file(file, sampled))
        return digest.hexdigest()[:8]


def _identify_file(file: Path, sampled: bool) -> bytes:
    """Size and sample of a file; empty for a broken link or a pipe: the decoding reports them."""
    try:
        size = file.stat().st_size
        if not file.is_file():
            return b""
        if not sampled:
            return str(size).encode()
        with open(file, "rb") as handle:
            handle.seek(max(0, (size - _SAMPLE_BYTES) // 2))
            return str(size).encode() + handle.read(_SAMPLE_BYTES)
    except OSError:
        return b""


def list_image_files(files: Sequence[Path], **known: Any) -> ImageSet:
    """A data set of N files that are not decoded yet; `known` are other arguments of `ImageSet`."""
    return ImageSet(torch.empty((len(files), 0), dtype=torch.uint8), files=tuple(files), **known)


def decode_image_set(data: ImageSet, side: int, name: str, damaged: str) -> ImageSet:
    """Decodes the images of a listed data set; arguments and errors as of `cache.decode_images`.

    Skipped images take their labels along. Boxes and masks turn with pictures that EXIF data turn.
    """
    decoded = decode_images(data.files, side, name, damaged)
    data = data if len(decoded.kept) == len(data) else data.subset(decoded.kept)
    data = replace(data, images=decoded.images)
    if data.size is None:
        return data
    turns = turns_of(data.size, decoded.stored)
    boxes, masks = (part and part.turned(turns) for part in (data.boxes, data.masks))
    return replace(data, boxes=boxes, masks=masks, size=None)


def unique_names(
    names: Sequence[str], ids: Sequence[object], form: Callable[[str], str] = str
) -> tuple[str, ...]:
    """The names of classes; those whose `form` occurs twice get their ids added.

    ImageNet's two cranes become "crane (n02012849)" and "crane (n03126707)".
    """
    counts = Counter(map(form, names))
    pairs = zip(names, ids, strict=True)
    return tuple(f"{name} ({i})" if counts[form(name)] > 1 else name for name, i in pairs)


def boxes_of_map(class_map: Tensor, num_classes: int) -> Boxes:
    """The smallest box around the visible pixels of every class of an image.

    Objects of one class in one image share a box, because a class map does not separate them.

    Args:
        class_map: (N, S, S) uint8; class number + 1, 0 = none.
        num_classes: C.
    """
    values = torch.arange(1, num_classes + 1, dtype=torch.uint8)
    masks = class_map[:, None] == values[:, None, None]  # (N, C, S, S)
    image, label = masks.flatten(2).any(2).nonzero(as_tuple=True)
    box = masks_to_boxes(masks[image, label])
    box[:, 2:] += 1  # after the last pixel
    return Boxes(image, label, box / class_map.shape[-1])
