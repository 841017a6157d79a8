"""Where results, caches and data are; no other module builds such a path."""

from __future__ import annotations

import os
from pathlib import Path

from spcl_lib.system.errors import UserError

CACHE_GB = "SPCL_CACHE_GB"
PACKAGE = Path(__file__).resolve().parents[1]


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
