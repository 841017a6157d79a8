"""Reads pictures in the forms that people have them, as the RGB squares that networks are given."""

import contextlib
import importlib
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any, Self

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
ENDINGS = (
    ".avif", ".bmp", ".gif", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg", ".pgm", ".png", ".ppm",
    ".tga", ".tif", ".tiff", ".webp",
)  # fmt: skip
HEIF = (".heic", ".heif")  # Pillow needs pillow-heif for them
with contextlib.suppress(ImportError):
    importlib.import_module("pillow_heif").register_heif_opener()
    ENDINGS += HEIF
# Pillow's warnings name no file, and unreadable files raise errors anyway.
warnings.filterwarnings("ignore", module=r"PIL\.")
_DRAFT = 4  # a JPEG whose sides are at least twice this times `side` is decoded at a lower size
_ROUNDING = 1e-3  # a white pixel may be 1.0000002 after a resize


def read_image(file: Path, side: int) -> np.ndarray:
    """The square of `try_image`; raises a UserError with its flaw."""
    result = try_image(file, side)
    if isinstance(result, str):
        raise UserError(f"image '{file}' {result}; replace it by an intact image file")
    return result[0]


def try_image(file: Path, side: int) -> tuple[np.ndarray, int] | str:
    """One image as (3, side, side) uint8, and its EXIF turn (1 to 8); or a flaw: "is missing".

    The whole image is turned as its EXIF data says, converted to RGB and resized to a square
    (antialiased; this is usual). Transparent parts become white. 16-bit values keep their upper 8
    bits, and an animation its first picture. Truncated files are damaged.
    """
    try:
        with Image.open(file) as image:
            image.draft(None, (_DRAFT * side, _DRAFT * side))  # makes large JPEGs faster
            return _make_square(image, side), _orientation(image)
    except FileNotFoundError:
        return "is missing"
    except Exception as error:  # Pillow raises many kinds for a damaged file
        return f"cannot be read: {_cause(file, error)}"


def _cause(file: Path, error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        with open(file, "rb") as handle:  # telephones name some of them .jpg
            is_heif = handle.read(12)[4:] in (b"ftypheic", b"ftypheix", b"ftypmif1")
        return "it needs a package: pip install pillow-heif" if is_heif else "it is no image"
    return " ".join(str(error).split())  # one line


def _orientation(image: Image.Image) -> int:
    with contextlib.suppress(Exception):  # damaged EXIF data do not damage the picture
        found = image.getexif().get(ExifTags.Base.Orientation)
        return found if found in range(1, 9) else 1
    return 1


def _make_square(image: Image.Image, side: int) -> np.ndarray:
    square = upright(image).resize((side, side), Image.Resampling.BILINEAR)
    return np.asarray(square).transpose(2, 0, 1).copy()


def upright(image: Image.Image) -> Image.Image:
    """The picture in RGB as a person sees it: turned as its EXIF data say, on white."""
    image.load()
    has_16_bits = image.mode.startswith("I;16") or (image.format, image.mode) == ("PPM", "I")
    with contextlib.suppress(Exception):  # damaged EXIF data do not damage the picture
        image = ImageOps.exif_transpose(image)
    if has_16_bits:  # Pillow's own conversion turns all values above 255 white
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise ValueError("its pixels have 32 bits; save it with 8 or 16 bits")
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image.convert("RGBA"))
    return image.convert("RGB")


def map_in_threads(work: Callable[[Any], Any], items: Iterable[Any]) -> Iterator[Any]:
    """Gives `work(item)` for all items in their order, with few results waiting in memory."""
    items = iter(items)
    with ThreadPoolExecutor(count_cores()) as pool:
        while some := list(islice(items, 8 * count_cores())):
            yield from pool.map(work, some)


class LazyImages:
    """Images that are read from their files when they are indexed, like a tensor (N, 3, S, S)."""

    def __init__(self, files: Sequence[Path], side: int) -> None:
        self.files, self.shape = files, torch.Size((len(files), 3, side, side))

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, which: int | slice | Tensor) -> Tensor:
        rows = torch.arange(len(self))[which]
        files = [self.files[row] for row in rows.reshape(-1).tolist()]
        squares = map_in_threads(lambda file: read_image(file, self.shape[-1]), files)
        found = torch.from_numpy(np.stack(list(squares)))
        return found if rows.ndim else found[0]

    def subset(self, indices: Tensor) -> Self:
        """The images at `indices` (M,) int64, not read yet."""
        return LazyImages([self.files[i] for i in indices.tolist()], self.shape[-1])


Images = Tensor | LazyImages  # the images of a data set: indexing gives tensors


def squares(images: Any, side: int, size: int = 64) -> Iterator[Tensor]:
    """Gives images in batches (up to `size`, 3, side, side) uint8, as `try_image` gives files.

    Images are files, PIL images, NumPy arrays (H, W, 3) or tensors (3, H, W), alone, in a list, as
    a batch with four axes, or in a DataLoader of such batches or of tuples that begin with one.
    Arrays and tensors are uint8, or floats in 0..1, of 1 to 4 channels.
    """
    waiting = map_in_threads(lambda image: _square(image, side), _each(images))
    batch = list(islice(waiting, size))
    if not batch:
        raise ValueError("there is no image")
    while batch:
        yield torch.from_numpy(np.stack(batch))
        batch = list(islice(waiting, size))


def _each(images: Any) -> Iterator[Any]:
    """The images one by one."""
    if isinstance(images, DataLoader):
        for batch in images:
            if isinstance(batch, dict):
                raise TypeError("a DataLoader must give images, or tuples that begin with them")
            yield from batch[0] if isinstance(batch, list | tuple) else batch
    elif isinstance(images, list | tuple) or getattr(images, "ndim", 0) == 4:
        yield from images
    else:
        yield images


def _square(image: Any, side: int) -> np.ndarray:
    if isinstance(image, str | os.PathLike):
        return read_image(expand_home(image), side)
    if isinstance(image, np.ndarray):
        image = torch.from_numpy(np.atleast_3d(image).copy()).permute(2, 0, 1)
    if isinstance(image, Tensor):
        image = _picture(image.detach().cpu())
    if not isinstance(image, Image.Image):
        raise TypeError("images must be files, PIL images, arrays (H, W, 3) or tensors (3, H, W), "
                        f"alone, in a list or in batches; got {type(image).__name__}")  # fmt: skip
    return _make_square(image, side)


def _picture(pixels: Tensor) -> Image.Image:
    """The picture of a tensor (1 to 4, H, W)."""
    from torchvision.transforms.functional import to_pil_image  # here: it takes a second

    if 0 in pixels.shape:
        raise ValueError(f"an image has no pixels: {tuple(pixels.shape)}")
    if pixels.is_floating_point():
        low, high = float(pixels.min()), float(pixels.max())
        if not (low >= -_ROUNDING and high <= 1 + _ROUNDING):  # NaN too
            raise ValueError(f"floats must be in 0..1, not normalised; got {low:.3g} to {high:.3g}")
        pixels = (pixels.float().clamp(0, 1) * 255).round().to(torch.uint8)
    if pixels.dtype != torch.uint8:
        raise ValueError(f"pixels must be uint8, or floats in 0..1; got {pixels.dtype}")
    return to_pil_image(pixels)
