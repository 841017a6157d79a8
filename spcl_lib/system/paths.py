"""The places of results, caches and data; no other module builds these paths."""

from __future__ import annotations

import os
from pathlib import Path

from spcl_lib.system.errors import UserError

CACHE_GB = "SPCL_CACHE_GB"
PACKAGE = Path(__file__).resolve().parents[1]


def checkout() -> Path | None:
    """Folder of the checkout, or None if the package is installed without one.

    A wheel puts the notebooks into the package. In a checkout they are beside it.
    """
    folder, is_installed = PACKAGE.parent, (PACKAGE / "notebooks").is_dir()
    return folder if (folder / "pyproject.toml").is_file() and not is_installed else None


def expand_home(path: str | Path) -> Path:
    """The path with a home folder in place of "~" or "~user".

    Raises:
        UserError: there is no such user, and no file of this name.
    """
    expanded = os.path.expanduser(path)
    if str(expanded).startswith("~") and not os.path.lexists(expanded):
        raise UserError(
            f"'{path}' is in no home folder, because there is no such user; for a folder whose "
            f"name starts with '~' write './{path}'"
        )
    return Path(expanded)


def real_path(path: str | Path) -> Path:
    """The absolute path without "~" and without links; a link that leads to itself stays.

    Raises:
        UserError: see `expand_home`.
    """
    return Path(os.path.realpath(expand_home(path)))


def project() -> Path:
    """Folder of results and data: the checkout, or `~/spcl` if there is none."""
    return checkout() or Path.home() / "spcl"


def results() -> Path:
    """Folder of all runs: `SPCL_RESULTS`, else `results/` in the project."""
    return _folder("SPCL_RESULTS", project() / "results")


def cache() -> Path:
    """Folder of files that can be made again: `SPCL_CACHE`, else `data/cache` in the project."""
    return _folder("SPCL_CACHE", project() / "data" / "cache")


def _folder(variable: str, default: Path) -> Path:
    return real_path(os.environ.get(variable) or default)


def cache_limit() -> float:
    """Bytes that the decoded images of one split may take in the cache.

    It is `SPCL_CACHE_GB` in units of 10^9 bytes, else 20. The images of larger splits are decoded
    from their files whenever they are needed. With 0, no split is cached.

    Raises:
        UserError: the environment variable is not a number, or it is below 0.
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
    """Folder of the notebooks: in the checkout, else in the installed package."""
    return (PACKAGE if checkout() is None else project()) / "notebooks"


def reference() -> Path:
    """Folder of the small reference results that are kept under version control."""
    return notebooks() / "reference"


def weights(backbone: str, given: str | Path | None = None) -> Path | None:
    """File of a backbone's pretrained weights: the first that exists, or None.

    Those of small_resnet come with the package. Of other backbones,
    `weights/<backbone>_imagenet.pth` is looked for below `given`, below `SPCL_DATA` and below
    `data/`, because a user's folder of images may hold no weights.
    """
    if backbone == "small_resnet":
        return notebooks() / "reference" / "small_resnet.safetensors"
    roots = (given, os.environ.get("SPCL_DATA"), project() / "data")
    name = Path("weights") / f"{backbone}_imagenet.pth"
    files = [real_path(root) / name for root in roots if root]
    return next((file for file in files if file.is_file()), None)


def data_root(given: str | Path | None = None, needed_for: str = "this data set") -> Path:
    """Folder that holds the real data sets: `given`, else `SPCL_DATA`, else `data/`.

    Raises:
        UserError: the folder does not exist.
    """
    root = expand_home(given or os.environ.get("SPCL_DATA") or project() / "data")
    if not os.path.isdir(root):  # Path.is_dir() raises for a name that is too long
        raise UserError(
            f"data root '{root}' does not exist; {needed_for} is read from there. "
            "Give its folder with --data-root DIR or the environment variable SPCL_DATA"
        )
    return real_path(root)
