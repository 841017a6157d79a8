"""Images in the forms that people have them, as the squares that networks are given."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.utils.data import DataLoader

from spcl_lib.data.images import make_square, map_in_threads, read_image, silence_pillow
from spcl_lib.system.paths import expand_home

_FORMS = (
    "a file, a PIL image, a NumPy array (H, W, 3) or (N, H, W, 3), a tensor (3, H, W) or "
    "(N, 3, H, W), a list of these, or a DataLoader of tensors"
)


def squares(images: Any, side: int, size: int = 64) -> Iterator[Tensor]:
    """Gives images in batches (B, 3, side, side) uint8; the last batch may be smaller.

    All forms go through the same code as files do, see `images.try_image`. So the same pixels give
    the same square. Only a JPEG file of more than 8 times `side` may differ in the last bits,
    because it is decoded at a lower size.

    Args:
        images: one image or many. An image is a file (str or Path), a PIL image, a NumPy array
            (H, W, 3), or a tensor (3, H, W). Arrays and tensors are uint8, or floats in 0..1. They
            may be grey, with one channel, and arrays may have an alpha channel. Many are a list, an
            array (N, H, W, 3), a tensor (N, 3, H, W), or a DataLoader whose batches are such
            tensors, or tuples that begin with one.
        side: side of the squares, in pixels.
        size: B.

    Raises:
        TypeError: they have another form.
        ValueError: an array or a tensor has another shape, type or range; or there is no image.
        UserError: a file is missing or no readable image.
    """
    waiting = map_in_threads(lambda image: _square(image, side), _each(images))
    first = True
    with silence_pillow():
        while batch := list(islice(waiting, size)):
            first = False
            yield torch.from_numpy(np.stack(batch))
    if first:
        raise ValueError("there is no image")


def _each(images: Any) -> Iterable[Any]:
    """The images one by one."""
    if isinstance(images, DataLoader):
        return (image for batch in images for image in _of_batch(batch))
    if isinstance(images, Tensor | np.ndarray):
        return images if images.ndim == 4 else [images]
    return images if isinstance(images, list | tuple) else [images]


def _of_batch(batch: Any) -> Tensor:
    """The images of a DataLoader's batch."""
    images = batch[0] if isinstance(batch, list | tuple) and batch else batch
    if not isinstance(images, Tensor) or images.ndim != 4:
        raise TypeError(
            "a DataLoader's batches must be tensors (B, 3, H, W), or tuples that begin with one; "
            f"got {_describe(images)}"
        )
    return images


def _square(image: Any, side: int) -> np.ndarray:
    if isinstance(image, str | os.PathLike):
        return read_image(expand_home(image), side)
    if isinstance(image, Image.Image):
        return make_square(_upright_copy(image), side)
    if isinstance(image, Tensor):
        if image.ndim != 3 or image.shape[0] not in (1, 3):
            raise ValueError(f"a tensor must be (3, H, W); got {_describe(image)}")
        channels_last = image.detach().cpu().permute(1, 2, 0)
        numbers = channels_last.float() if image.is_floating_point() else channels_last
        return make_square(_picture(numbers.numpy()), side)
    if isinstance(image, np.ndarray):
        if image.ndim not in (2, 3) or (image.ndim == 3 and image.shape[2] not in (1, 3, 4)):
            raise ValueError(f"an array must be (H, W, 3); got {_describe(image)}")
        return make_square(_picture(image), side)
    raise TypeError(f"images must be {_FORMS}; got {_describe(image)}")


def _upright_copy(image: Image.Image) -> Image.Image:
    """A copy, turned as its EXIF data say: a caller's image must stay as it is."""
    with contextlib.suppress(Exception):  # damaged EXIF data do not damage the picture
        return ImageOps.exif_transpose(image)
    return image.copy()


def _picture(pixels: np.ndarray) -> Image.Image:
    """The picture of an array (H, W) or (H, W, 1 to 4)."""
    if 0 in pixels.shape:
        raise ValueError(f"an image has no pixels: {_describe(pixels)}")
    if np.issubdtype(pixels.dtype, np.floating):
        low, high = float(pixels.min()), float(pixels.max())
        if not (low >= 0 and high <= 1):  # NaN too
            raise ValueError(
                f"floats must be in 0..1, before any normalisation; got {low:.3g} to {high:.3g}"
            )
        pixels = (pixels.astype(np.float32) * 255).round().astype(np.uint8)
    if pixels.dtype != np.uint8:
        raise ValueError(f"pixels must be uint8, or floats in 0..1; got {pixels.dtype}")
    grey = pixels.ndim == 3 and pixels.shape[2] == 1
    return Image.fromarray(np.ascontiguousarray(pixels[:, :, 0] if grey else pixels))


def _describe(value: Any) -> str:
    if isinstance(value, Tensor | np.ndarray):
        return f"{tuple(value.shape)} {str(value.dtype).removeprefix('torch.')}"
    return type(value).__name__
