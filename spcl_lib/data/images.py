"""Reads image files: one, many in threads, or the batches of a split when they are needed."""

from __future__ import annotations

import contextlib
import math
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from spcl_lib.system.errors import UserError
from spcl_lib.system.machine import count_cores

_COPIED = 2**30  # bytes; larger selections of images are not copied
_DRAFT = 4  # a JPEG whose sides are at least twice this times `side` is decoded at a lower size


def read_image(file: Path, side: int) -> np.ndarray:
    """One image as (3, side, side) uint8; see `try_image`.

    Raises:
        UserError: the file is missing or no readable image.
    """
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
    try:
        if not file.is_file() and file.exists():
            return "is no regular file"  # Pillow would wait for a pipe for ever
        with Image.open(file) as image:
            image.draft(None, (_DRAFT * side, _DRAFT * side))  # makes large JPEGs faster
            square = make_square(image, side)
    except FileNotFoundError:
        return "is missing"
    except MemoryError:
        raise
    except Exception as error:  # Pillow raises many kinds for a damaged file
        return f"cannot be read: {_cause(file, error)}"
    return square


def make_square(image: Image.Image, side: int) -> np.ndarray:
    """One picture as (3, side, side) uint8, as `try_image` says; it may be turned in place.

    Raises:
        ValueError: its pixels have 32 bits.
        OSError: its file is damaged.
    """
    image.load()
    with contextlib.suppress(Exception):  # damaged EXIF data do not damage the picture
        ImageOps.exif_transpose(image, in_place=True)
    square = to_rgb(image).resize((side, side), Image.Resampling.BILINEAR)
    return np.asarray(square).transpose(2, 0, 1).copy()


def to_rgb(image: Image.Image) -> Image.Image:
    """The image in RGB: transparent parts become white, 16-bit values keep their upper 8 bits.

    Raises:
        ValueError: its pixels have 32 bits.
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


class ImageFiles:
    """Gives the images of files as (B, 3, side, side) uint8, and reads them only when needed.

    Args:
        files: M readable images.
        side: as in `try_image`.
    """

    def __init__(self, files: Sequence[Path], side: int) -> None:
        self.files, self.side = files, side
        self.shape = torch.Size((len(files), 3, side, side))
        self._pool = ThreadPoolExecutor(count_cores())
        self._next: list[int] = []
        self._ready: dict[int, Future] = {}

    def expect(self, rows: Tensor) -> None:
        """Says which rows (B,) follow the next ones, so that they are read in the background."""
        self._next = rows.tolist()

    def __getitem__(self, rows: Tensor) -> Tensor:
        ready, self._ready = self._ready, {}
        with silence_pillow():
            futures = [ready.pop(row, None) or self._submit(row) for row in rows.tolist()]
            for unused in ready.values():
                unused.cancel()
            self._ready = {row: self._submit(row) for row in self._next}
            self._next = []
            images = torch.empty((len(rows), *self.shape[1:]), dtype=torch.uint8)
            for image, future in zip(images, futures, strict=True):
                image.copy_(torch.from_numpy(future.result()))
        return images

    def _submit(self, row: int) -> Future:
        return self._pool.submit(read_image, self.files[row], self.side)


class LazyImages:
    """Images that are loaded only when they are indexed, like a tensor (N, 3, S, S).

    Args:
        source: a memory-mapped tensor, or files; (M, 3, S, S) uint8.
        rows: (N,) int64; numbers of these images in the source.
    """

    dtype = torch.uint8

    def __init__(self, source: Tensor | ImageFiles, rows: Tensor) -> None:
        self.source, self.rows = source, rows

    @property
    def shape(self) -> torch.Size:
        """(N, 3, S, S)."""
        return torch.Size((len(self.rows), *self.source.shape[1:]))

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, which: int | slice | Tensor) -> Tensor:
        """The images at `which` as a tensor, with the shape that a tensor would give."""
        rows = self.rows[which]
        images = self.source[rows.reshape(-1)]
        return images if rows.ndim else images[0]

    def expect(self, which: Tensor) -> None:
        """See `ImageFiles.expect`."""
        if isinstance(self.source, ImageFiles):
            self.source.expect(self.rows[which])


Images = Tensor | LazyImages  # the images of a data set: indexing gives tensors


def select_images(images: Images, indices: Tensor) -> Images:
    """The images at `indices` (N,) int64; a copy if they are few, else not loaded yet."""
    if isinstance(images, LazyImages):
        return LazyImages(images.source, images.rows[indices])
    few = len(indices) * math.prod(images.shape[1:]) <= _COPIED
    return images[indices] if few else LazyImages(images, indices)
