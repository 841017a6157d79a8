"""Things that are made once: decoded images and drawn scenes, kept in files that cannot be torn."""

from __future__ import annotations

import contextlib
import fcntl
import glob
import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor
from tqdm import tqdm

from spcl_lib import paths
from spcl_lib.errors import UserError


@contextlib.contextmanager
def replacing(path: Path, ending: str = ".tmp") -> Iterator[Path]:
    """Gives a temporary file beside `path`; renames it to `path` on success, else removes it.

    The temporary is held while it is in use: so `sweep` knows what killed processes have left.

    Args:
        path: file to write or to replace.
        ending: of the temporary's name, for those who look at it.

    Raises:
        UserError: the system refuses (disk full, not allowed); `path` stays as it was.
    """
    with paths.explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{os.getpid()}{ending}")
        try:
            with open(temporary, "wb") as held:
                fcntl.flock(held, fcntl.LOCK_EX)
                yield temporary
                os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


# Of `replacing`, of notebooks that were running, and of safetensors, which writes like `replacing`.
_LEFT = (".*.tmp", ".*.ipynb", ".tmp*")


def sweep(folder: Path, *patterns: str) -> None:
    """Removes temporary files of processes that were killed: those that nobody holds.

    What cannot be removed is left where it is.

    Args:
        folder: where to look; not below it.
        patterns: of the files' names; all temporaries by default.
    """
    for file in [file for pattern in patterns or _LEFT for file in folder.glob(pattern)]:
        with contextlib.suppress(OSError), open(file, "rb") as handle:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            file.unlink()


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Holds an exclusive lock for `path`; the system frees it however the process ends."""
    with paths.explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = open(path.with_name(f".{path.name}.lock"), "w")
    with handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        for left in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
            left.unlink(missing_ok=True)  # of a process that was killed
        yield


def once(name: str, make: Callable[[], dict[str, Tensor]], *sources: object) -> dict[str, Tensor]:
    """Tensors that `make` gives, from the cache if they are there.

    Args:
        name: start of the file's name, for people.
        make: called once; other processes wait for it.
        sources: all that the result depends on; a change makes it anew. A module stands for
            its source text.
    """
    path = paths.cache() / f"{name}-{fingerprint(sources)}.pt"
    with locked(path):
        if not path.exists():
            made = make()
            with replacing(path) as temporary, open(temporary, "wb") as handle:
                torch.save(made, handle)  # by its path, torch would not say that the disk is full
    return torch.load(path, weights_only=True, mmap=True)


def decoded(files: Sequence[Path], side: int, name: str) -> Tensor:
    """All images of a split as (N, 3, side, side) uint8, read through a memory-mapped file.

    Images are turned as their EXIF data says, converted to RGB and resized to squares (the whole
    image, antialiased; the field's custom). The cache is keyed by names, sizes and dates.

    Raises:
        UserError: an image is missing or cannot be read.
    """
    stamps = []
    for file in files:
        if not file.is_file():
            raise UserError(f"image '{file}' is missing; it is listed in the data set's split")
        status = file.stat()
        stamps.append((str(file), status.st_size, status.st_mtime_ns))
    path = paths.cache() / f"{name}-{side}px-{fingerprint((stamps, side, 1))}.npy"
    with locked(path):
        if not path.exists():
            with replacing(path) as temporary:
                _decode_all(files, side, name, temporary)
    return torch.from_numpy(np.load(path, mmap_mode="c"))


def read_image(file: Path, side: int) -> np.ndarray:
    """One image as (3, side, side) uint8.

    Raises:
        UserError: the file is no readable image.
    """
    try:
        with Image.open(file) as image:
            square = ImageOps.exif_transpose(image).convert("RGB")
            square = square.resize((side, side), Image.Resampling.BILINEAR)
    except (OSError, UnidentifiedImageError, SyntaxError, ValueError) as error:
        raise UserError(
            f"image '{file}' cannot be read ({error}); replace it by an intact image file"
        ) from error
    return np.asarray(square).transpose(2, 0, 1)


def _decode_all(files: Sequence[Path], side: int, name: str, path: Path) -> None:
    shape = (len(files), 3, side, side)
    with open(path, "wb") as handle:  # not open_memmap: a full disk must raise, not kill (SIGBUS)
        header = {"descr": "|u1", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(handle, header)
        for file in tqdm(files, desc=f"decoding {name}", unit="image", mininterval=1):
            handle.write(read_image(file, side).tobytes())


def fingerprint(sources: Sequence[object]) -> str:
    """Twelve characters that change with any source; a module stands for its source text."""
    digest = hashlib.sha256()
    for source in sources:
        file = getattr(source, "__file__", None)
        digest.update(Path(file).read_bytes() if file else repr(source).encode())
    return digest.hexdigest()[:12]
