"""Where results, caches and data are, and what to say where the system refuses to keep a file.

No other module builds such a path.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
from collections.abc import Iterator
from pathlib import Path

from spcl_lib.errors import UserError

CACHE_GB = "SPCL_CACHE_GB"
PACKAGE = Path(__file__).resolve().parent


def project() -> Path:
    """The checkout; for a copy installed without its checkout, `~/spcl`."""
    checkout = PACKAGE.parent
    return checkout if (checkout / "pyproject.toml").is_file() else Path.home() / "spcl"


def results() -> Path:
    """Folder of all runs: `SPCL_RESULTS`, else `results/` in the project."""
    return _folder("SPCL_RESULTS", project() / "results")


def cache() -> Path:
    """Folder of what can be made again: `SPCL_CACHE`, else `data/cache` in the project."""
    return _folder("SPCL_CACHE", project() / "data" / "cache")


def _folder(variable: str, default: Path) -> Path:
    return Path(os.environ.get(variable) or default).expanduser().resolve()


def cache_limit() -> float:
    """Bytes that the decoded images of one split may take in the cache.

    `SPCL_CACHE_GB` in units of 10^9 bytes, else 20. Larger splits, and all with 0, are read from
    their files again and again.

    Raises:
        UserError: the environment variable is no such number.
    """
    given = os.environ.get(CACHE_GB) or "20"
    try:
        limit = float(given)
    except ValueError:
        limit = -1
    if not limit >= 0:  # NaN too
        raise UserError(f"{CACHE_GB} must be a number of gigabytes, 0 or more; got '{given}'")
    return limit * 1e9


def notebooks() -> Path:
    """Folder of the notebooks."""
    return project() / "notebooks"


def reference() -> Path:
    """Folder of the small reference results that are kept under version control."""
    return notebooks() / "reference"


def weights(backbone: str, given: str | Path | None = None) -> Path | None:
    """File of a backbone's ImageNet weights, the first that is there, or None.

    It is `weights/<backbone>_imagenet.pth` below `given`, below `SPCL_DATA` or below `data/`: a
    user's folder of images holds no weights.
    """
    roots = (given, os.environ.get("SPCL_DATA"), project() / "data")
    name = Path("weights") / f"{backbone}_imagenet.pth"
    files = [Path(root).expanduser().resolve() / name for root in roots if root]
    return next((file for file in files if file.is_file()), None)


def data_root(given: str | Path | None = None, needed_for: str = "this data set") -> Path:
    """Folder that holds the real data sets: `given`, else `SPCL_DATA`, else `data/`.

    Raises:
        UserError: the folder does not exist.
    """
    root = Path(given or os.environ.get("SPCL_DATA") or project() / "data").expanduser()
    if not root.is_dir():
        raise UserError(
            f"data root '{root}' does not exist; {needed_for} is read from there. "
            "Give its folder with --data-root DIR or the environment variable SPCL_DATA"
        )
    return root.resolve()


# --- where the system refuses ---------------------------------------------------------------------

_FULL = {
    errno.ENOSPC: "Free some space", errno.EDQUOT: "Free some space",
    errno.EFBIG: "Files of this size must be allowed",
}  # fmt: skip
_CLOSED = "Its permissions must be changed"
_MIXED_UP = "There is a file where a folder is needed, or the other way round"
_REFUSALS = _FULL | {
    errno.EACCES: _CLOSED, errno.EPERM: _CLOSED, errno.EROFS: _CLOSED,
    errno.ENOTDIR: _MIXED_UP, errno.EEXIST: _MIXED_UP, errno.EISDIR: _MIXED_UP,
    errno.ENAMETOOLONG: "A shorter path is needed",
}  # fmt: skip


@contextlib.contextmanager
def explained(path: Path | None = None) -> Iterator[None]:
    """Turns what the system refuses within the block (disk full, not allowed) into a UserError.

    Args:
        path: what was to be written; named where the system names nothing, or a temporary beside.

    Raises:
        UserError: which path, why, what to do, and which variable sets its folder.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        number, named = _refusal(error)
        if number not in _REFUSALS:
            raise
        if path is None or (named is not None and named.parent != path.parent):
            path = named
        raise UserError(_explanation(number, path)) from error


def _refusal(error: BaseException | None) -> tuple[int | None, Path | None]:
    """The system's error number, and the path that it names; None if it was not the system."""
    if isinstance(error, OSError):
        return error.errno, Path(os.fsdecode(error.filename)) if error.filename else None
    while error is not None:  # torch raises errors of its own, and safetensors quotes the number
        quoted = re.search(r"\(os error (\d+)\)", str(error))
        number = error.errno if isinstance(error, OSError) else quoted and int(quoted[1])
        if number in _FULL:
            return number, None
        error = error.__cause__ or error.__context__
    return None, None


def _explanation(number: int, path: Path | None) -> str:
    what = f"'{path}'" if path else "the system refuses"
    text = f"{what}: {os.strerror(number)}. {_REFUSALS[number]}"
    for variable, name, folder in (
        ("SPCL_RESULTS", "results", results()), ("SPCL_CACHE", "cache", cache()),
    ):  # fmt: skip
        # A folder that could not be made is named by the first of its parents that is missing.
        if path and (path.is_relative_to(folder) or folder.is_relative_to(path)):
            return f"{text}, or choose another folder for the {name}: {variable}=DIR ('{folder}')"
    return text
