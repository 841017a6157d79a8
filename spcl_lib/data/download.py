"""Downloads Pascal VOC through torchvision, completely or not at all."""

from __future__ import annotations

import os
import shutil
import tarfile
from pathlib import Path

from spcl_lib.data.voc import voc_folder
from spcl_lib.system.errors import UserError, unknown_name
from spcl_lib.system.files import lock_file

YEARS = {"voc2007": 2007, "voc2012": 2012}


def download(dataset: str, root: Path) -> Path:
    """Downloads and unpacks a data set below the data root, unless it is there already.

    torchvision checks the archive (0.5 to 2 GB) before it is unpacked. It is unpacked in a
    temporary folder. The final folder appears only when it is complete.

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
    folder, year = voc_folder(root, YEARS[dataset]), str(YEARS[dataset])
    with lock_file(root / dataset):
        if not folder.is_dir():
            _fetch(year, folder, root / f".{dataset}.download")
    return folder


def _fetch(year: str, folder: Path, partial: Path) -> None:
    from torchvision.datasets import VOCDetection

    try:
        shutil.rmtree(partial, ignore_errors=True)  # a killed process may have left it
        VOCDetection(str(partial), year, "trainval", download=True)
        folder.parent.mkdir(exist_ok=True)
        os.replace(partial / "VOCdevkit" / f"VOC{year}", folder)
    except (OSError, RuntimeError, tarfile.TarError) as error:
        raise UserError(
            f"the download of Pascal VOC {year} failed ({error}) and nothing of it is left; "
            f"try again, or unpack VOCtrainval of {year} as '{folder}' by hand"
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
