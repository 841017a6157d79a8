"""The cache makes things once: decoded images, drawn scenes, parsed annotations."""

from __future__ import annotations

import contextlib
import glob
import json
import os
import shutil
import zlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import BinaryIO

import numpy as np
import PIL
import torch
from torch import Tensor
from tqdm import tqdm

from spcl_lib.data import images as image_files
from spcl_lib.data.images import (
    ImageFiles,
    Images,
    LazyImages,
    map_in_threads,
    silence_pillow,
    try_image,
)
from spcl_lib.system import paths
from spcl_lib.system.checksums import (
    DamagedError,
    check_saved,
    check_sealed,
    describe,
    load_saved,
    raise_if_sound,
    seal,
)
from spcl_lib.system.errors import UserError
from spcl_lib.system.files import atomic_write, is_disk_full, lock_file
from spcl_lib.system.fingerprints import fingerprint

_NAMED = 5  # number of damaged files that a message names


def make_once(
    name: str, make: Callable[[], dict[str, Tensor]], *sources: object
) -> dict[str, Tensor]:
    """The tensors that `make` returns; the cache keeps them for later calls.

    Args:
        name: readable start of the file's name.
        make: called once; other processes wait for it.
        sources: everything that the result depends on, see `fingerprints.fingerprint`; after a
            change, or if the file is damaged, `make` runs again.
    """
    path = paths.cache() / f"{name}-{fingerprint(sources)}.pt"
    with lock_file(path):
        try:
            return load_saved(path, mmap=True)
        except FileNotFoundError:
            pass
        except DamagedError as error:
            say_damaged(path, error)
        made = make()
        with atomic_write(path) as temporary, open(temporary, "wb") as handle:
            torch.save(made, handle)  # with a path, torch would not report a full disk
    return torch.load(path, weights_only=True, mmap=True)


def decode_images(
    files: Sequence[Path], side: int, name: str, damaged: str = "stop"
) -> tuple[Images, Tensor]:
    """The images of a split as squares, see `images.try_image`, decoded once.

    One memory-mapped file in the cache folder holds the images. If this file would be larger than
    `paths.cache_limit`, the call only checks every image, and later batches read the image files.
    In both cases the cache records the damaged images. If the names, sizes or dates of the files
    change, or the code that decodes them, or if the cache is damaged, the call removes the old
    cache and makes a new one.

    Args:
        files: N image files.
        side: height and width of the squares, in pixels.
        name: readable name of the split; each selection of the same files needs its own name.
        damaged: what to do with missing or unreadable images: "stop" or "skip".

    Returns:
        The K readable images (K, 3, side, side) uint8: a tensor, or an object used like a tensor.
        (K,) int64: their numbers in `files`, ascending. Drop the labels of the other images.

    Raises:
        UserError: an image is damaged and `damaged` is "stop", all images are damaged, or the disk
            is full.
    """
    if not files:
        raise UserError(f"{name} has no images")
    prefix, path = _version(files, side, name)
    record, needed = path.with_suffix(".json"), len(files) * 3 * side * side
    cached = needed <= paths.cache_limit()
    if not cached:
        _say(
            f"decoded, the images of {name} would take {format_size(needed)}, more than "
            f"{paths.CACHE_GB}={paths.cache_limit() / 1e9:g}; they are read from their files, "
            "batch by batch"
        )
    with lock_file(prefix):
        found = _read_decoded(record, path if cached else None, len(files), side)
        if found is None:
            start = glob.escape(prefix.name)
            for old in (*prefix.parent.glob(f"{start}.*"), *prefix.parent.glob(f".{start}.*.tmp")):
                old.unlink()
            advice = f", or set {paths.CACHE_GB}=0 to read the images from their files every time"
            what = f"the decoded images of {name}"
            with explain_full_disk(prefix.parent, needed if cached else 0, what, advice):
                _decode_or_check(files, side, name, record, path if cached else None)
            found = _load_decoded(record, path if cached else None, len(files), side)
        flaws, squares = found
        _report_damage(flaws, files, name, damaged)
        kept = torch.tensor([i for i in range(len(files)) if i not in flaws])
        if squares is not None:
            return torch.from_numpy(squares), kept
    return LazyImages(ImageFiles(files, side), kept), kept


def _version(files: Sequence[Path], side: int, name: str) -> tuple[Path, Path]:
    """The start of the cache files' names for this split, side and folder, and the whole name."""
    stamps = []
    for file in files:
        try:
            status = file.stat()
            stamp = (status.st_size, status.st_mtime_ns, os.access(file, os.R_OK))
        except OSError:  # perhaps the file is missing; if it appears later, the cache is renewed
            stamp = None
        stamps.append((str(file), stamp))
    place = fingerprint([os.path.commonpath({file.parent for file in files})])
    prefix = paths.cache() / f"{name}-{side}px-{place}"
    version = fingerprint([image_files, PIL.__version__, *stamps])
    return prefix, prefix.with_name(f"{prefix.name}.{version}.npy")


Decoded = tuple[dict[int, str], np.ndarray | None]  # flaws by image number; the readable images


def _read_decoded(record: Path, path: Path | None, count: int, side: int) -> Decoded | None:
    """What the cache holds of `count` images; None if it is missing or damaged."""
    try:
        return _load_decoded(record, path, count, side)
    except FileNotFoundError:
        return None
    except Exception as error:  # numpy raises many kinds for a damaged file
        raise_if_sound(error)
        say_damaged(path or record, error)
        return None


def _load_decoded(record: Path, path: Path | None, count: int, side: int) -> Decoded:
    """Raises an exception of any kind if the files are damaged."""
    noted = json.loads(record.read_text())
    flaws = noted.get("flaws", noted)  # an older record holds nothing but the flaws
    if "crc32" in noted and noted["crc32"] != _sum_of(flaws):
        raise DamagedError(f"the checksum of '{record.name}' is wrong")
    flaws = {int(i): str(flaw) for i, flaw in flaws.items()}
    if path is None:
        return flaws, None
    squares = np.load(path, mmap_mode="c")
    check_sealed(path, squares.offset + squares.nbytes)
    if squares.dtype != np.uint8 or squares.shape != (count - len(flaws), 3, side, side):
        raise DamagedError(f"it holds {squares.dtype} of shape {squares.shape}")
    return flaws, squares


def _sum_of(flaws: dict[str, str]) -> int:
    return zlib.crc32(json.dumps(flaws).encode())


def _decode_or_check(
    files: Sequence[Path], side: int, name: str, record: Path, path: Path | None
) -> None:
    """Tries all images; writes the readable images to `path` and the damage to `record`.

    The record comes last: if it exists, the images are complete.
    """
    with atomic_write(record) as new_record:
        if path is None:
            flaws = _try_all(files, side, f"checking {name}", lambda image: None)
        else:
            with atomic_write(path) as new_path:
                flaws = write_squares(files, side, name, new_path)
                seal(new_path)
        noted = {str(i): flaw for i, flaw in flaws.items()}
        new_record.write_text(json.dumps({"flaws": noted, "crc32": _sum_of(noted)}))


def write_squares(files: Sequence[Path], side: int, name: str, path: Path) -> dict[int, str]:
    """Decodes images into one .npy file of (K, 3, side, side) uint8.

    Returns:
        The flaws of the unreadable images, by their numbers in `files`.
    """
    with open(path, "wb") as handle:  # not open_memmap: a full disk must raise, not kill (SIGBUS)
        _write_header(handle, len(files), side)
        flaws = _try_all(
            files, side, f"decoding {name}", lambda image: handle.write(image.tobytes())
        )
        handle.seek(0)
        _write_header(handle, len(files) - len(flaws), side)  # as long as the first header
        handle.flush()
        os.fsync(handle.fileno())  # some file systems report a full disk only now
    return flaws


def _write_header(handle: BinaryIO, count: int, side: int) -> None:
    header = {"descr": "|u1", "fortran_order": False, "shape": (count, 3, side, side)}
    np.lib.format.write_array_header_1_0(handle, header)


def _try_all(
    files: Sequence[Path], side: int, title: str, keep: Callable[[np.ndarray], object]
) -> dict[int, str]:
    """Calls `keep` with every readable image in order; returns the flaws of the others."""
    flaws = {}
    results = map_in_threads(lambda file: try_image(file, side), files)
    bar = tqdm(results, desc=title, total=len(files), unit="image", mininterval=1)
    with silence_pillow():
        for i, result in enumerate(bar):
            if isinstance(result, str):
                flaws[i] = result
            else:
                keep(result)
    return flaws


def _report_damage(flaws: dict[int, str], files: Sequence[Path], name: str, damaged: str) -> None:
    """Reports the damaged images; raises an error unless the caller wants to skip them.

    Args:
        flaws: the flaw of each damaged image, by its number in `files`.
        files: all files.
        name: name of the split.
        damaged: "stop" or "skip".

    Raises:
        UserError: there are flaws and `damaged` is "stop", or no image is left.
    """
    if not flaws:
        return
    first, dots = list(flaws)[:_NAMED], ", ..." if len(flaws) > _NAMED else ""
    count = f"{len(flaws):,} of {len(files):,} images of {name}"
    if damaged == "skip" and len(flaws) < len(files):
        names = ", ".join(files[i].name for i in first)
        _say(f"left out {count} that cannot be read: {names}{dots}")
        return
    what = ", ".join(f"'{files[i]}' {flaws[i]}" for i in first)
    advice = "" if damaged == "skip" else ", or leave them out with --set damaged=skip"
    raise UserError(f"{count} are damaged: {what}{dots}. Repair or replace them{advice}")


@contextlib.contextmanager
def explain_full_disk(folder: Path, needed: int, what: str, advice: str) -> Iterator[None]:
    """Turns a full disk, before or while `needed` bytes are written, into a clear message."""
    free = shutil.disk_usage(folder).free

    def full(cause: str) -> UserError:
        return UserError(
            f"{cause}: {what} need {format_size(needed)} in '{folder}', where {format_size(free)} "
            "are free. Free some space, choose another folder with the environment variable "
            f"SPCL_CACHE{advice}"
        )

    if free < needed:
        raise full("not enough space")
    try:
        yield
    except OSError as error:
        if not is_disk_full(error):
            raise
        raise full(error.strerror) from error


def format_size(count: int) -> str:
    """A number of bytes as a short text: "1.2 GB"."""
    return f"{count / 1e9:,.1f} GB" if count >= 1e8 else f"{count / 1e6:.3g} MB"


# --- damaged files of the cache -------------------------------------------------------------------


def say_damaged(file: Path, error: Exception) -> None:
    """Says that a file of the cache is damaged, and is made again."""
    _say(f"the cached file '{file}' is damaged ({describe(error)}); it is made again")


def check_cache() -> None:
    """Compares every cached file completely with its checksums, and removes the damaged files.

    The runs that need them make them again.
    """
    files = [file for file in sorted(paths.cache().glob("*")) if file.suffix in _CHECKS]
    older = removed = 0
    for file in tqdm(files, desc="checking the cache", unit="file"):
        try:
            older += not _CHECKS[file.suffix](file)
        except FileNotFoundError:  # another process has just replaced it
            continue
        except Exception as error:  # numpy raises many kinds for a damaged file
            raise_if_sound(error)
            say_damaged(file, error)
            file.unlink(missing_ok=True)
            removed += 1
    size = format_size(sum(file.stat().st_size for file in files if file.exists()))
    text = f"the cache '{paths.cache()}': {len(files)} files, {size}; damaged: {removed}"
    _say(text + (f"; too old to have checksums: {older}" if older else ""))


def _check_pt(file: Path) -> bool:
    check_saved(file)
    return True


def _check_npy(file: Path) -> bool:
    squares = np.load(file, mmap_mode="r")
    return check_sealed(file, squares.offset + squares.nbytes, completely=True)


_CHECKS = {
    ".pt": _check_pt, ".npy": _check_npy, ".bin": partial(check_sealed, completely=True),
}  # fmt: skip


def _say(text: str) -> None:
    print(f"spcl: {text}", flush=True)
