"""The cache makes things once: decoded images, features, drawn scenes, parsed annotations.

The name of a file says what it depends on. A file under its final name is whole, and its checksum
travels with it. A damaged file is named, set aside and made again.
"""

import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import torch
from tqdm import tqdm

from spcl_lib.data import images
from spcl_lib.data.image_set import ImageSet
from spcl_lib.data.images import LazyImages, map_in_threads, try_image
from spcl_lib.system import paths
from spcl_lib.system.checksums import DamagedError, fingerprint, load_saved, put_aside
from spcl_lib.system.errors import UserError
from spcl_lib.system.files import atomic_write, lock_file


def make_once(name: str, make: Callable[[], dict[str, Any]], *sources: object) -> dict[str, Any]:
    """What `make` returns, its tensors memory-mapped; the cache keeps it for later calls.

    The `sources` are all that it depends on: VERSION, settings, the `stamp` of every file.
    """
    path = paths.cache() / f"{name}-{fingerprint(sources)}.pt"
    with lock_file(path):
        try:
            return load_saved(path, mmap=True)
        except DamagedError as error:
            put_aside(path, error)
        except FileNotFoundError:
            pass
        # With a path in place of a handle, torch would not report a full disk.
        with atomic_write(path) as temporary, open(temporary, "wb") as handle:
            torch.save(make(), handle)
        try:
            return load_saved(path, mmap=True)
        except DamagedError as error:  # the disk: it would be made again for ever
            again = f"'{path}' is damaged as soon as it is written ({error})"
            raise UserError(f"{again}; SPCL_CACHE=DIR chooses another folder") from error


def on_disk(parts: Iterable[np.ndarray]) -> torch.Tensor:
    """Arrays of bytes, one after another, as (L,) uint8 in a file: they may exceed the memory."""
    with tempfile.TemporaryFile(dir=paths.cache()) as handle:
        for part in parts:
            handle.write(part)
        if not handle.tell():
            return torch.empty(0, dtype=torch.uint8)
        handle.flush()
        return torch.from_numpy(np.memmap(handle, np.uint8, "c"))


def stamp(file: Path) -> tuple[object, ...]:
    """What tells that a file has changed: its name, size, date and rights; for `make_once`."""
    try:
        status = file.stat()
    except OSError:  # it may appear later
        return (str(file),)
    return str(file), status.st_size, status.st_mtime_ns, status.st_mode


def decode_image_set(data: ImageSet, side: int, name: str, damaged: str = "stop") -> ImageSet:
    """Decodes the images of a listed data set as squares, see `images.try_image`, only once.

    If the squares take more than `paths.cache_limit`, the cache holds only what is known of the
    images, and later batches read the image files. Each selection of the same files needs its own
    name. `damaged="skip"` leaves out unreadable images with their labels.
    """
    files, needed = data.files, len(data) * 3 * side * side
    if not files:
        raise UserError(f"{name} has no images")
    cached = needed <= paths.cache_limit()
    if not cached:
        print(f"spcl: {name} needs {needed / 1e9:.3g} GB, above {paths.CACHE_GB}: the images are "
              "read from their files whenever they are needed", flush=True)  # fmt: skip

    def make() -> dict[str, Any]:
        for old in paths.cache().glob(f"{name}-{side}px-*.pt"):
            old.unlink(missing_ok=True)  # another run may do the same
        return _decode(files, side, name, cached)

    sources = images.VERSION, PIL.__version__, images.ENDINGS, cached, *map(stamp, files)
    known = make_once(f"{name}-{side}px", make, *sources)
    if flaws := known["flaws"]:
        named = ", ".join(f"'{files[n]}' {flaw}" for n, flaw in list(flaws.items())[:5])
        text = f"{len(flaws):,} of {len(files):,} images of {name} are damaged, such as {named}"
        if damaged == "stop" or len(flaws) == len(files):
            raise UserError(f"{text}. Repair them, or leave out some with --set damaged=skip")
        print(f"spcl: left out: {text}", flush=True)
        data = data.subset(torch.tensor([n for n in range(len(files)) if n not in flaws]))
    objects = data.objects and replace(data.objects, turns=known["turns"])
    squares = known["images"] if cached else LazyImages(data.files, side)
    return replace(data, images=squares, objects=objects)


def _decode(files: Sequence[Path], side: int, name: str, cached: bool) -> dict[str, Any]:
    """The squares and EXIF's turns of the readable images, and the flaws of the others."""
    flaws, turns = {}, []
    results = map_in_threads(lambda file: try_image(file, side), files)
    bar = tqdm(results, desc=f"decoding {name}", total=len(files), unit="image", mininterval=1)

    def squares() -> Iterator[np.ndarray]:
        for row, result in enumerate(bar):
            if isinstance(result, str):
                flaws[row] = result
            else:
                turns.append(result[1])
                yield result[0] if cached else result[0][:0]

    found = on_disk(squares())
    shape = (len(turns) if cached else 0, 3, side, side)
    return {"images": found.view(shape), "flaws": flaws, "turns": torch.tensor(turns)}
