"""Reads pictures in the forms that people have them, as the RGB squares that networks are given."""

from __future__ import annotations

import contextlib
import importlib
import os
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError
from torch import Tensor
from torch.utils.data import DataLoader

from spcl_lib.system.errors import UserError
from spcl_lib.system.machine import count_cores
from spcl_lib.system.paths import expand_home

# Raise it when the pixels of a square change; a test compares them with golden ones.
VERSION = 1
PACKAGES = {  # endings of pictures that Pillow reads only with another package
    ".heic": "pillow-heif", ".heif": "pillow-heif", ".hif": "pillow-heif", ".avif": "pillow>=11.3",
    ".jxl": "pillow-jxl-plugin",
}  # fmt: skip
# Pillow knows these, but reads them with another program only, or their pixels have 32 bits.
_NOT_READ = {"BUFR", "EPS", "FITS", "GRIB", "HDF5", "MPEG", "WMF"}
_DRAFT = 4  # a JPEG whose sides are at least twice this times `side` is decoded at a lower size
_ROUNDING = 1e-3  # a white pixel may be 1.0000002 after a resize
Stored = tuple[int, int, int]  # EXIF orientation 1..8, and height and width of the pixels in a file


@cache
def endings() -> frozenset[str]:
    """The endings of pictures that can be read here, in lower case: ".jpg", ".jfif", ".webp" ..."""
    with contextlib.suppress(ImportError):
        importlib.import_module("pillow_heif").register_heif_opener()
    with contextlib.suppress(ImportError):
        importlib.import_module("pillow_jxl")
    known = Image.registered_extensions().items()
    return frozenset(e for e, kind in known if kind in Image.OPEN and kind not in _NOT_READ)


def read_image(file: Path, side: int) -> np.ndarray:
    """As `try_image`; raises a UserError if the file is missing or no readable image."""
    result = try_image(file, side)
    if isinstance(result, str):
        raise UserError(f"image '{file}' {result}; replace it by an intact image file")
    return result


def try_image(file: Path, side: int) -> np.ndarray | str:
    """One image as (3, side, side) uint8, or what is wrong with it, such as "is missing".

    The whole image is turned as its EXIF data says, converted to RGB and resized to a square
    (antialiased; this is usual). Transparent parts become white. 16-bit values keep their upper 8
    bits, and an animation its first picture. A file counts as damaged if it is truncated, or if it
    has more than twice `PIL.Image.MAX_IMAGE_PIXELS` pixels, which Pillow refuses.
    """
    result = try_stored(file, side)
    return result if isinstance(result, str) else result[0]


def try_stored(file: Path, side: int) -> tuple[np.ndarray, Stored] | str:
    """As `try_image`, with how the pixels lie in the file, for places that belong to them."""
    endings()  # lets Pillow know its plugins
    try:
        if not file.is_file() and file.exists():
            return "is no regular file"  # Pillow would wait for a pipe for ever
        with Image.open(file) as image:
            width, height = image.size
            image.draft(None, (_DRAFT * side, _DRAFT * side))  # makes large JPEGs faster
            image.load()
            stored = _orientation(image), height, width
            return make_square(image, side), stored
    except FileNotFoundError:
        return "is missing"
    except MemoryError:
        raise
    except Exception as error:  # Pillow raises many kinds for a damaged file
        return f"cannot be read: {_cause(file, error)}"


def _orientation(image: Image.Image) -> int:
    with contextlib.suppress(Exception):  # damaged EXIF data do not damage the picture
        found = image.getexif().get(ExifTags.Base.Orientation)
        return found if found in range(1, 9) else 1
    return 1


def make_square(image: Image.Image, side: int) -> np.ndarray:
    """One picture as (3, side, side) uint8, as `try_image` says; it may be turned in place.

    Raises ValueError if its pixels have 32 bits, and OSError if its file is damaged.
    """
    square = upright(image).resize((side, side), Image.Resampling.BILINEAR)
    return np.asarray(square).transpose(2, 0, 1).copy()


def upright(image: Image.Image) -> Image.Image:
    """The picture in RGB, turned as its EXIF data say; see `to_rgb`."""
    image.load()
    with contextlib.suppress(Exception):  # damaged EXIF data do not damage the picture
        ImageOps.exif_transpose(image, in_place=True)
    return to_rgb(image)


def to_rgb(image: Image.Image) -> Image.Image:
    """The image in RGB: transparent parts become white, 16-bit values keep their upper 8 bits.

    Raises ValueError if its pixels have 32 bits.
    """
    if image.mode.startswith("I;16"):  # Pillow's own conversion turns all values above 255 white
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        raise ValueError("its pixels have 32 bits; save it with 8 or 16 bits")
    if not image.has_transparency_data:
        return image.convert("RGB")
    white = Image.new("RGBA", image.size, "white")
    return Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")


def _cause(file: Path, error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        package = PACKAGES.get(file.suffix.lower())
        if package and file.suffix.lower() not in endings():
            return f"{file.suffix} needs a package: pip install '{package}'"
        return "it is no image" if file.stat().st_size else "it is empty"
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return " ".join(text.split())  # one line


def map_in_threads(work: Callable[[Any], Any], items: Iterable[Any]) -> Iterator[Any]:
    """Gives `work(item)` for all items in their order, computed by one thread per core.

    Threads are enough, because Pillow decodes and resizes without Python's lock. Only a few results
    wait at any time, so memory does not grow with the number of items.
    """
    pool = ThreadPoolExecutor(count_cores())
    waiting: deque[Future] = deque()
    try:
        for item in items:
            waiting.append(pool.submit(work, item))
            if len(waiting) > 4 * count_cores():
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


@contextlib.contextmanager
def silence_pillow() -> Iterator[None]:
    """Silences Pillow's warnings: they name no file, and unreadable files raise errors anyway."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\.")
        yield


class LazyImages:
    """Images that are read from their files when they are indexed, like a tensor (N, 3, S, S).

    It has no state that the processes of a `DataLoader` could not share.

    Args:
        files: N readable images.
        side: as in `try_image`.
    """

    dtype = torch.uint8

    def __init__(self, files: Sequence[Path], side: int) -> None:
        self.files, self.side = tuple(files), side

    @property
    def shape(self) -> torch.Size:
        """(N, 3, S, S)."""
        return torch.Size((len(self), 3, self.side, self.side))

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, which: int | slice | Tensor) -> Tensor:
        """The images at `which` as a tensor, with the shape that a tensor would give."""
        rows = torch.arange(len(self))[which]
        files = [self.files[row] for row in rows.reshape(-1).tolist()]
        images = torch.empty((len(files), *self.shape[1:]), dtype=torch.uint8)
        with silence_pillow():
            squares = map_in_threads(lambda file: read_image(file, self.side), files)
            for image, square in zip(images, squares, strict=True):
                image.copy_(torch.from_numpy(square))
        return images if rows.ndim else images[0]

    def subset(self, indices: Tensor) -> LazyImages:
        """The images at `indices` (M,) int64, not read yet."""
        return LazyImages([self.files[i] for i in indices.tolist()], self.side)


Images = Tensor | LazyImages  # the images of a data set: indexing gives tensors


# --- images in memory -----------------------------------------------------------------------------


def squares(images: Any, side: int, size: int = 64) -> Iterator[Tensor]:
    """Gives images in batches (B, 3, side, side) uint8; the last batch may be smaller.

    The same pixels give the same square as a file does, see `try_image`. Only a JPEG file of more
    than 8 times `side`, which is decoded at a lower size, may differ in the last bits.

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


def _each(images: Any) -> Iterator[Any]:
    """The images one by one."""
    if not isinstance(images, DataLoader):
        several = isinstance(images, list | tuple)
        several = several or isinstance(images, Tensor | np.ndarray) and images.ndim == 4
        yield from images if several else [images]
        return
    for batch in images:
        first = batch[0] if isinstance(batch, list | tuple) and batch else batch
        if not isinstance(first, Tensor) or first.ndim != 4:
            raise TypeError(
                "a DataLoader's batches must be tensors (B, 3, H, W), or tuples that begin with "
                f"one; got {_describe(first)}"
            )
        yield from first


def _square(image: Any, side: int) -> np.ndarray:
    if isinstance(image, str | os.PathLike):
        return read_image(expand_home(image), side)
    if isinstance(image, Image.Image):
        copy = image.copy()  # a caller's image must stay as it is
        with contextlib.suppress(Exception):
            copy = ImageOps.exif_transpose(image)
        return make_square(copy, side)
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
    raise TypeError(
        "images must be a file, a PIL image, a NumPy array (H, W, 3) or (N, H, W, 3), a tensor "
        "(3, H, W) or (N, 3, H, W), a list of these, or a DataLoader of tensors; "
        f"got {_describe(image)}"
    )


def _picture(pixels: np.ndarray) -> Image.Image:
    """The picture of an array (H, W) or (H, W, 1 to 4)."""
    if 0 in pixels.shape:
        raise ValueError(f"an image has no pixels: {_describe(pixels)}")
    if np.issubdtype(pixels.dtype, np.floating):
        low, high = float(pixels.min()), float(pixels.max())
        if not (low >= -_ROUNDING and high <= 1 + _ROUNDING):  # NaN too
            raise ValueError(
                f"floats must be in 0..1, before any normalisation; got {low:.3g} to {high:.3g}"
            )
        pixels = (pixels.astype(np.float32).clip(0, 1) * 255).round().astype(np.uint8)
    if pixels.dtype != np.uint8:
        raise ValueError(f"pixels must be uint8, or floats in 0..1; got {pixels.dtype}")
    grey = pixels.ndim == 3 and pixels.shape[2] == 1
    return Image.fromarray(np.ascontiguousarray(pixels[:, :, 0] if grey else pixels))


def _describe(value: Any) -> str:
    if isinstance(value, Tensor | np.ndarray):
        return f"{tuple(value.shape)} {str(value.dtype).removeprefix('torch.')}"
    return type(value).__name__
