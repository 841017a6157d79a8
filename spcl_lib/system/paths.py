"""The places of results, caches and data; no other module builds these paths."""

import os
from pathlib import Path

from spcl_lib.system.errors import UserError

CACHE_GB = "SPCL_CACHE_GB"
PACKAGE = Path(__file__).resolve().parents[1]


def checkout() -> Path | None:
    """Folder of the checkout; None where a wheel has put the notebooks into the package."""
    return None if (PACKAGE / "notebooks").is_dir() else PACKAGE.parent


def expand_home(path: str | Path) -> Path:
    """The path with a home folder in place of "~"."""
    return Path(os.path.expanduser(path))


def real_path(path: str | Path) -> Path:
    """The absolute path without "~" and without links."""
    return Path(os.path.realpath(expand_home(path)))


def project() -> Path:
    """Folder of results and data: the checkout, or `~/spcl` if there is none."""
    return checkout() or Path.home() / "spcl"


def results() -> Path:
    """Folder of all runs: `SPCL_RESULTS`, else `results/` in the project."""
    return real_path(os.environ.get("SPCL_RESULTS") or project() / "results")


def in_results(place: str | Path) -> Path:
    """The place; a relative one that begins with "results" and is not here is in `results()`."""
    place = expand_home(place)
    is_away = place.parts[:1] == ("results",) and not place.exists()
    return results().joinpath(*place.parts[1:]) if is_away else place


def cache() -> Path:
    """Folder of files that can be made again: `SPCL_CACHE`, else `data/cache` in the project."""
    return real_path(os.environ.get("SPCL_CACHE") or project() / "data" / "cache")


def cache_limit() -> float:
    """Bytes that the cache may hold of one split: `SPCL_CACHE_GB`, by default 20, times 10^9."""
    given = os.environ.get(CACHE_GB) or "20"
    try:
        return float(given) * 1e9
    except ValueError as error:
        raise UserError(f"{CACHE_GB} must be a number of gigabytes; got '{given}'") from error


def notebooks() -> Path:
    """Folder of the notebooks: in the checkout, else in the installed package."""
    return (checkout() or PACKAGE) / "notebooks"


def reference() -> Path:
    """Folder of the small reference results that are kept under version control."""
    return notebooks() / "reference"


def weights(backbone: str, given: str | Path | None = None) -> Path | None:
    """File of a backbone's pretrained weights: the first that exists, or None.

    Those of small_resnet come with the package. Others are `weights/<backbone>_imagenet.pth` below
    `given`, below `SPCL_DATA` or below `data/`: a user's folder of images may hold no weights.
    """
    if backbone == "small_resnet":
        return notebooks() / "reference" / "small_resnet.safetensors"
    roots = (given, os.environ.get("SPCL_DATA"), project() / "data")
    files = [real_path(root) / "weights" / f"{backbone}_imagenet.pth" for root in roots if root]
    return next((file for file in files if file.is_file()), None)


def data_root(given: str | Path | None = None, make: bool = False) -> Path:
    """Folder that holds the real data sets: `given`, else `SPCL_DATA`, else `data/`."""
    root = real_path(given or os.environ.get("SPCL_DATA") or project() / "data")
    if make:
        root.mkdir(parents=True, exist_ok=True)
    if not root.is_dir():
        other = "--data-root DIR" + ("" if given else ", or SPCL_DATA")
        raise UserError(f"data root '{root}' does not exist; give {other}")
    return root
