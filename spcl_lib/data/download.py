"""Downloads Pascal VOC, completely or not at all."""

from __future__ import annotations

import os
import shutil
import tarfile
from http.client import HTTPException
from pathlib import Path
from urllib.error import HTTPError, URLError

import torch

from spcl_lib.data.voc import voc_folder
from spcl_lib.system.errors import UserError, unknown_name
from spcl_lib.system.files import lock_file

YEARS = {"voc2007": 2007, "voc2012": 2012}
_PLACE = "host.robots.ox.ac.uk/pascal/VOC"
_ARCHIVES = {  # the archive of trainval, and its SHA-256
    2007: (
        "voc2007/VOCtrainval_06-Nov-2007.tar",
        "7d8cd951101b0957ddfd7a530bdc8a94f06121cfc1e511bb5937e973020c7508",
    ),
    2012: (
        "voc2012/VOCtrainval_11-May-2012.tar",
        "e14f763270cf193d0b5f74b169f44157a4b0c6efa708f4dd0ff78ee691763bcb",
    ),
}


def download(dataset: str, root: Path) -> Path:
    """Downloads and unpacks a data set below the data root, unless it is there already.

    The archive (0.5 to 2 GB) is unpacked only if its SHA-256 is right, which guards its way by http
    too. The final folder appears only when it is complete.

    Args:
        dataset: "voc2007" or "voc2012" (trainval). Others must be downloaded by hand.
        root: data root.

    Returns:
        The folder of the data.

    Raises:
        UserError: it is another data set, or the download failed and nothing of it is left.
    """
    if dataset not in YEARS:
        raise unknown_name("data set to download", dataset, YEARS)
    folder = voc_folder(root, YEARS[dataset])
    with lock_file(root / dataset):
        if not folder.is_dir():
            _fetch(YEARS[dataset], folder, root / f".{dataset}.download")
    return folder


def _fetch(year: int, folder: Path, partial: Path) -> None:
    name, sha256 = _ARCHIVES[year]
    try:
        shutil.rmtree(partial, ignore_errors=True)  # a killed process may have left it
        partial.mkdir()
        archive = str(partial / "archive.tar")
        try:
            torch.hub.download_url_to_file(f"https://{_PLACE}/{name}", archive, sha256)
        except URLError as error:
            if isinstance(error, HTTPError):  # the server has https, and refuses
                raise
            torch.hub.download_url_to_file(f"http://{_PLACE}/{name}", archive, sha256)
        with tarfile.open(archive) as opened:
            # Nothing outside the folder, no devices. Python before 3.11.4 has no such filter.
            opened.extraction_filter = getattr(tarfile, "data_filter", None)
            opened.extractall(partial)
        folder.parent.mkdir(exist_ok=True)
        os.replace(partial / "VOCdevkit" / f"VOC{year}", folder)
    except (OSError, HTTPException, RuntimeError, tarfile.TarError) as error:
        raise UserError(
            f"the download of Pascal VOC {year} failed ({error}) and nothing of it is left; "
            f"try again, or unpack VOCtrainval of {year} as '{folder}' by hand"
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
