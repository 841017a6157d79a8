"""The cache makes things once: decoded images, drawn scenes, parsed annotations.

The name of a file says what it depends on: settings, the files it comes from, and the VERSION of
the code that makes it. A file under its final name is whole, and its checksum travels with it. A
damaged file is named, set aside and made again.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import PIL
import torch
from torch import Tensor
from tqdm import tqdm

from spcl_lib.data import images as image_files
from spcl_lib.data.images import Images, LazyImages, map_in_threads, silence_pillow, try_stored
from spcl_lib.system import paths
from spcl_lib.system.checksums import (
    DamagedError,
    check_sealed,
    describe,
    load_saved,
    seal,
)
from spcl_lib.system.errors import UserError
from spcl_lib.system.files import atomic_write, lock_file
from spcl_lib.system.fingerprints import fingerprint

_NAMED = 5  # number of damaged images that a message names
T = TypeVar("T")


def make_once(
    name: str, make: Callable[[], dict[str, Tensor]], *sources: object
) -> dict[str, Tensor]:
    """The tensors that `make` returns; the cache keeps them for later calls.

    Args:
        name: readable start of the file's name.
        make: called once; other processes wait for it.
        sources: everything that the result depends on: the VERSION of the code, settings, and the
            `stamps` of files. After a change `make` runs again.

    Raises:
        UserError: the file cannot be written, or is damaged as soon as it is written.
    """

    def write(temporary: Path) -> None:
        with open(temporary, "wb") as handle:  # with a path, torch would not report a full disk
            torch.save(make(), handle)

    path = paths.cache() / f"{name}-{fingerprint(sources)}.pt"
    return make_file(path, lambda file: load_saved(file, mmap=True), write)


def make_file(path: Path, read: Callable[[Path], T], write: Callable[[Path], None]) -> T:
    """What a file of the cache holds; it is written first if it is missing or damaged.

    Args:
        path: the file.
        read: gives its content, or raises FileNotFoundError or DamagedError.
        write: writes the temporary file that becomes `path`.

    Raises:
        UserError: the file cannot be written, or is damaged as soon as it is written.
    """
    with lock_file(path):
        try:
            return read(path)
        except FileNotFoundError:
            pass
        except DamagedError as error:
            set_aside(path, error)
        with atomic_write(path) as temporary:
            write(temporary)
        try:
            return read(path)
        except DamagedError as error:
            raise UserError(
                f"'{path}' is damaged as soon as it is written ({describe(error)}); check the "
                "disk, or choose another folder with SPCL_CACHE=DIR"
            ) from error


def set_aside(file: Path, error: Exception) -> None:
    """Says that a file of the cache is damaged, and gives it the ending .damaged."""
    os.replace(file, file.with_name(f"{file.name}.damaged"))
    _say(f"the cached file '{file}' is damaged ({describe(error)}); it is set aside as "
         f"'{file.name}.damaged' and made again")  # fmt: skip


def stamps(files: Sequence[Path]) -> list[tuple[Any, ...]]:
    """What tells that files have changed: their names, sizes and dates; for `make_once`."""
    found = []
    for file in files:
        try:
            status = file.stat()
            known = status.st_size, status.st_mtime_ns, os.access(file, os.R_OK)
        except OSError:  # perhaps the file is missing; it may appear later
            known = ()
        found.append((str(file), *known))
    return found


def pack(value: object) -> Tensor:
    """A value that JSON can hold, as (L,) uint8."""
    return torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)


def unpack(data: Tensor) -> Any:
    """The inverse of `pack`."""
    return json.loads(data.numpy().tobytes())


# --- decoded images -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Decoded:
    """The images of a split that could be read.

    Attributes:
        images: (K, 3, side, side) uint8; a tensor in memory or on the disk, or `LazyImages`.
        kept: (K,) int64; their numbers among the files, ascending.
        stored: (K, 3) int64; EXIF orientation, height and width of the pixels in each file.
    """

    images: Images
    kept: Tensor
    stored: Tensor


def decode_images(files: Sequence[Path], side: int, name: str, damaged: str = "stop") -> Decoded:
    """The images of a split as squares, see `images.try_image`, decoded once.

    One memory-mapped file in the cache holds them. If it would be larger than `paths.cache_limit`,
    the call only checks every image, and later batches read the image files. If names, sizes or
    dates of the files change, the images are decoded again and the old ones are removed.

    Args:
        files: N image files.
        side: height and width of the squares, in pixels.
        name: readable name of the split; each selection of the same files needs its own name.
        damaged: what to do with missing or unreadable images: "stop" or "skip".

    Raises:
        UserError: an image is damaged and `damaged` is "stop", all images are damaged, or the disk
            is full.
    """
    if not files:
        raise UserError(f"{name} has no images")
    needed = len(files) * 3 * side * side
    cached = needed <= paths.cache_limit()
    place = fingerprint([os.path.commonpath({file.parent for file in files})])
    version = fingerprint([image_files.VERSION, PIL.__version__, cached, *stamps(files)])
    path = paths.cache() / f"{name}-{side}px-{place}" / f"{version}.images"
    if not cached:
        _say(
            f"decoded, the images of {name} would take {format_size(needed)}, more than "
            f"{paths.CACHE_GB}={paths.cache_limit() / 1e9:g}; they are read from their files, "
            "batch by batch"
        )

    def write(temporary: Path) -> None:
        _remove_old(path)
        if cached:
            require_space(path.parent, needed, f"the decoded images of {name}",
                          f", or set {paths.CACHE_GB}=0 to read the images from their files "
                          "every time")  # fmt: skip
        _decode(files, side, name, temporary, cached)

    known, squares = make_file(path, lambda file: _read_decoded(file, side, cached), write)
    flaws = {int(row): flaw for row, flaw in known["flaws"].items()}
    _report_damage(flaws, files, name, damaged)
    kept = torch.tensor([row for row in range(len(files)) if row not in flaws])
    images = LazyImages([files[row] for row in kept], side) if squares is None else squares
    return Decoded(images, kept, torch.tensor(known["stored"]))


def _remove_old(path: Path) -> None:
    """Removes the squares of files that have changed since."""
    for old in path.parent.glob("*.images*"):
        if path.stem not in old.name and old.suffix != ".lock":
            old.unlink()


def _decode(files: Sequence[Path], side: int, name: str, file: Path, cached: bool) -> None:
    """Writes the squares of the readable images, then what is known of all images, and a seal."""
    flaws: dict[int, str] = {}
    stored = []
    results = map_in_threads(lambda file: try_stored(file, side), files)
    title = f"{'decoding' if cached else 'checking'} {name}"
    bar = tqdm(results, desc=title, total=len(files), unit="image", mininterval=1)
    with silence_pillow(), open(file, "wb") as handle:  # not mapped: a full disk must raise
        for row, result in enumerate(bar):
            if isinstance(result, str):
                flaws[row] = result
                continue
            stored.append(result[1])
            if cached:
                handle.write(result[0].tobytes())
        known = json.dumps({"flaws": flaws, "stored": stored}).encode()
        handle.write(known + len(known).to_bytes(8, "big"))
    seal(file)


def _read_decoded(file: Path, side: int, cached: bool) -> tuple[dict[str, Any], Tensor | None]:
    """What is known of the images, and the squares of the readable ones."""
    size = check_sealed(file)
    with open(file, "rb") as handle:
        handle.seek(size - 8)
        length = int.from_bytes(handle.read(8), "big")
        handle.seek(max(0, size - 8 - length))
        try:
            known = json.loads(handle.read(length))
        except ValueError as error:
            raise DamagedError(f"its list of images is damaged: {error}") from error
    shape = (len(known["stored"]), 3, side, side)
    if not cached or not shape[0]:
        return known, torch.empty(shape, dtype=torch.uint8) if cached else None
    return known, torch.from_numpy(np.memmap(file, np.uint8, "c", shape=shape))


def _report_damage(flaws: dict[int, str], files: Sequence[Path], name: str, damaged: str) -> None:
    """Says which images are damaged; stops, unless the caller wants to skip them."""
    if not flaws:
        return
    first, dots = list(flaws)[:_NAMED], ", ..." if len(flaws) > _NAMED else ""
    count = f"{len(flaws):,} of {len(files):,} images of {name}"
    if damaged == "skip" and len(flaws) < len(files):
        names = ", ".join(files[row].name for row in first)
        _say(f"left out {count} that cannot be read: {names}{dots}")
        return
    what = ", ".join(f"'{files[row]}' {flaws[row]}" for row in first)
    advice = "" if damaged == "skip" else ", or leave them out with --set damaged=skip"
    raise UserError(f"{count} are damaged: {what}{dots}. Repair or replace them{advice}")


def require_space(folder: Path, needed: int, what: str, advice: str = "") -> None:
    """Refuses to write `needed` bytes where less is free.

    Raises:
        UserError: it says how much is needed, and how much is free.
    """
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise UserError(
            f"not enough space: {what} need {format_size(needed)} in '{folder}', where "
            f"{format_size(free)} are free. Free some space, choose another folder with the "
            f"environment variable SPCL_CACHE{advice}"
        )


def format_size(count: int) -> str:
    """A number of bytes as a short text: "1.2 GB"."""
    return f"{count / 1e9:,.1f} GB" if count >= 1e8 else f"{count / 1e6:.3g} MB"


def _say(text: str) -> None:
    print(f"spcl: {text}", flush=True)
