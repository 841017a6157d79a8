"""`voc2007`, `voc2012`: Pascal VOC in torchvision's VOCdevkit layout.

Labels come from ImageSets/Main, for which some copies of the data lack boxes in Annotations.
"""

import os
import shutil
from pathlib import Path
from tarfile import TarError
from xml.etree import ElementTree

import torch
from torch import Tensor

from spcl_lib.data.image_set import ImageSet, Objects, list_image_files
from spcl_lib.system.errors import UserError, unknown_name
from spcl_lib.system.files import lock_file

CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa",
    "train", "tvmonitor",
)  # fmt: skip


def voc_folder(root: Path, year: int) -> Path:
    """Folder of a year of Pascal VOC below the data root."""
    return root / "VOCdevkit" / f"VOC{year}"


def list_voc(
    root: Path, split: str, year: int, difficult: str = "negative", objects: bool = False
) -> ImageSet:
    """A split of Pascal VOC in the order of its list; the images are not read yet.

    `difficult` says how a class counts in an image if all its objects there are difficult:
    "negative", as is usual; "positive"; or "ignored": the evaluation leaves it out, and in training
    it is not a positive. With `objects`, the boxes from Annotations are read, too.
    """
    folder = voc_folder(root, year)
    if not folder.is_dir():
        raise UserError(
            f"Pascal VOC is not at '{folder}'. Point --data-root at the folder of VOCdevkit, or "
            f"fetch it: python -m spcl_lib download --dataset voc{year} --data-root {root}"
        )
    ids, flags = read_flags(folder, split)
    return list_image_files(
        [folder / "JPEGImages" / f"{i}.jpg" for i in ids],
        labels=flags >= 0 if difficult == "positive" else flags == 1,
        classes=CLASSES,
        ids=tuple(ids),
        ignored=flags == 0 if difficult == "ignored" else None,
        objects=read_objects(folder, ids) if objects else None,
    )


def read_flags(folder: Path, split: str) -> tuple[list[str], Tensor]:
    """Ids and flags (N, C) int8 of a split: 1 positive, 0 difficult, -1 negative."""
    lists = folder / "ImageSets" / "Main"
    ids = _words(lists / f"{split}.txt")
    found = torch.empty((len(ids), len(CLASSES)), dtype=torch.int8)
    for c, name in enumerate(CLASSES):
        path = lists / f"{name}_{split}.txt"
        words = _words(path)
        flags = dict(zip(words[::2], words[1::2], strict=False))
        try:
            found[:, c] = torch.tensor([int(flags[i]) for i in ids])
        except (KeyError, ValueError) as error:
            raise UserError(f"'{path}' has no flag for an image of {split}.txt: {error}") from error
    return ids, found


def _words(path: Path) -> list[str]:
    words = path.read_text().split() if path.is_file() else []
    if not words:
        raise UserError(f"list '{path}' is missing or empty; it belongs to Pascal VOC's lists")
    return words


def read_objects(folder: Path, ids: list[str]) -> Objects:
    """All annotated objects, difficult ones too; VOC's pixels from 1 are taken as those from 0."""
    files = [folder / "Annotations" / f"{i}.xml" for i in ids]
    rows = [(n, *one) for n, file in enumerate(files) for one in _read_annotation(file)]
    image, label, box = zip(*rows, strict=True)
    return Objects(torch.tensor(image), torch.tensor(label), torch.tensor(box).clamp(0, 1))


def _read_annotation(file: Path) -> list[tuple[int, list[float]]]:
    """Class number and box, as fractions, of all objects of an image, but not of their parts."""
    found = []
    try:
        root = ElementTree.parse(file).getroot()
        size = [float(root.findtext(f"size/{name}")) for name in ("width", "height")]
        for item in root.iterfind("object"):
            box = [float(item.findtext(f"bndbox/{k}")) for k in ("xmin", "ymin", "xmax", "ymax")]
            label = CLASSES.index(item.findtext("name").strip())
            found.append((label, [v / side for v, side in zip(box, size * 2, strict=True)]))
    except (ElementTree.ParseError, TypeError, ValueError, OSError) as error:
        raise UserError(f"'{file}' cannot be read ({error}); unpack VOCtrainval again") from error
    return found


def download(dataset: str, root: Path) -> Path:
    """Downloads trainval (0.5 to 2 GB) below the data root, wholly or not; gives its folder."""
    from torchvision.datasets import utils, voc  # here: torchvision takes a second to import

    if dataset not in ("voc2007", "voc2012"):
        raise unknown_name("data set to download", dataset, ("voc2007", "voc2012"))
    archive, partial = voc.DATASET_YEAR_DICT[dataset[-4:]], root / f".{dataset}.download"
    folder = voc_folder(root, int(dataset[-4:]))
    with lock_file(root / dataset):
        if folder.is_dir():
            return folder
        shutil.rmtree(partial, ignore_errors=True)  # a killed process may have left it
        try:
            utils.download_and_extract_archive(archive["url"], partial, md5=archive["md5"])
            folder.parent.mkdir(exist_ok=True)
            os.replace(partial / archive["base_dir"], folder)
        except (OSError, RuntimeError, TarError) as error:
            raise UserError(f"the download of {dataset} failed ({error}); try again, or unpack "
                            f"VOCtrainval as '{folder}' by hand") from error  # fmt: skip
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return folder
