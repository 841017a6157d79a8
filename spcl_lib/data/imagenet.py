"""`imagenet`: ImageNet-1K with its own single labels, evaluated against ReaL's sets of labels.

ReaL (Beyer et al., 2020, "Are we done with ImageNet?", arXiv 2006.07159) gives each of the 50,000
validation images the set of its valid classes. If the set is empty, the image is left out, as its
authors do. There are 1.28 million images, so they are chosen before any is decoded.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from spcl_lib.data.image_set import ImageSet, hold_out, list_image_files, unique_names
from spcl_lib.data.images import endings
from spcl_lib.system.errors import UserError, is_text
from spcl_lib.system.files import parse_json, read_list

CLASSES = 1000
VALIDATION_IMAGES = 50_000
# Some mirrors append the class to the name: ILSVRC2012_val_00000001_n01751748.JPEG. It is not used.
_VALIDATION = re.compile(r"ILSVRC2012_val_(\d{8})(_n\d{8})?\.\w+", re.IGNORECASE)
_SAMPLE_SEED = 1200
_SHAPE = "train/<wnid>/*.JPEG, val/*.JPEG, real.json and imagenet_class_index.json"
Picture = tuple[str, Path, tuple[int, ...]]  # name for people, file, class numbers


def list_imagenet(
    root: Path, report: str = "test", train_images: int = 0, eval_images: int = 0
) -> tuple[ImageSet, ImageSet]:
    """The images to train on, and validation images with ReaL's labels; none is read yet.

    Args:
        root: data root; holds the folder imagenet.
        report: "val" takes both sets from the training images, with their single labels.
        train_images: number of images to train on, a fixed random choice; 0 = all.
        eval_images: number of images to report on; 0 = all.

    Raises:
        UserError: a file or folder is missing or damaged.
    """
    folder = root / "imagenet"
    if not folder.is_dir():
        raise UserError(f"ImageNet is not at '{folder}'; put {_SHAPE} there")
    wnids, classes = read_class_index(folder / "imagenet_class_index.json")
    train, notes = list_training(folder / "train", wnids)
    if report == "val":
        stay, held = hold_out(len(train))
        train, evaluation = [train[i] for i in stay], [train[i] for i in held]
        more: tuple[str, ...] = ()
    else:
        evaluation, more = list_validation(folder / "val", folder / "real.json")
    return (
        _image_set(_sample(train, train_images), classes, notes),
        _image_set(_sample(evaluation, eval_images), classes, more),
    )


def _sample(found: list[Picture], count: int) -> list[Picture]:
    """A fixed random choice of `count` images (0 = all); the first images share one class."""
    if count == 0 or count >= len(found):
        return found
    generator = torch.Generator().manual_seed(_SAMPLE_SEED)
    return [found[i] for i in torch.randperm(len(found), generator=generator)[:count].sort().values]


def _image_set(found: list[Picture], classes: tuple[str, ...], notes: tuple[str, ...]) -> ImageSet:
    ids, files, own = zip(*found, strict=True)
    labels = torch.zeros((len(files), len(classes)), dtype=torch.bool)
    rows = [row for row, numbers in enumerate(own) for _ in numbers]
    labels[rows, [c for numbers in own for c in numbers]] = True
    return list_image_files(files, labels=labels, classes=classes, ids=ids, notes=notes)


def read_class_index(path: Path) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The 1,000 wnids and names, by class number; the wnid is added to a name that occurs twice.

    Raises:
        UserError: the file is missing, or is not the published table {"0": [wnid, name], ...}.
    """
    table = _read_json(path, "it is published with Keras")
    try:
        wnids, names = zip(*(table[str(c)] for c in range(CLASSES)), strict=True)
        sound = len(table) == CLASSES == len(set(wnids)) and list(wnids) == sorted(wnids)
        sound = sound and all(map(is_text, wnids + names)) and all(wnids + names)
    except (KeyError, TypeError, ValueError):
        sound = False
    if not sound:
        raise UserError(
            f"'{path}' is not the table of ImageNet's classes; expected the keys 0..999, each with "
            '[wnid, name], in the order of the wnids: {"0": ["n01440764", "tench"], ...}'
        )
    return wnids, unique_names(names, wnids)


def read_real(path: Path) -> list[tuple[int, ...]]:
    """ReaL's valid classes of ILSVRC2012_val_00000001 ... 00050000, in this order.

    Raises:
        UserError: the file is missing, or is not 50,000 lists of class numbers.
    """
    lists = _read_json(path, "it is published at github.com/google-research/reassessed-imagenet")
    lists = lists if isinstance(lists, list) else []
    wrong = [n for n, own in enumerate(lists) if not isinstance(own, list)
             or not all(type(c) is int and 0 <= c < CLASSES for c in own)]  # fmt: skip
    if wrong or len(lists) != VALIDATION_IMAGES:
        what = f"{str(lists[wrong[0]])[:60]} as number {wrong[0] + 1}" if wrong else len(lists)
        raise UserError(
            f"'{path}' holds {what}; expected a list of {VALIDATION_IMAGES:,} lists of class "
            f"numbers in 0..{CLASSES - 1}, one for every validation image"
        )
    return [tuple(own) for own in lists]


def list_training(folder: Path, wnids: tuple[str, ...]) -> tuple[list[Picture], tuple[str, ...]]:
    """All training images, by class and name, and notes. Classes may be missing.

    Raises:
        UserError: there is no image, or no class has the name of a folder.
    """
    found, stray = [], []
    number = {wnid: (c,) for c, wnid in enumerate(wnids)}
    entries = _entries(folder)
    for entry in tqdm(entries, "listing imagenet/train", unit="class", mininterval=1, delay=2):
        if not entry.is_dir():
            stray.append(entry.path)
            continue
        if entry.name not in number:
            raise UserError(
                f"the name of '{entry.path}' is no class of imagenet_class_index.json; the name of "
                f"a folder of training images must be a wnid, such as '{wnids[0]}'"
            )
        for file in _entries(entry.path):
            name, ending = os.path.splitext(file.name)
            if ending.lower() in endings() and file.is_file():
                found.append((f"{entry.name}/{name}", Path(file.path), number[entry.name]))
            else:
                stray.append(file.path)
    if not found:
        raise UserError(f"'{folder}' holds no training image; expected <wnid>/*.JPEG in it")
    present = len({own for _, _, own in found})
    count = f"imagenet/train: {len(found):,} images of {present:,} of the {CLASSES:,} classes"
    return found, (*_note("train", stray, "no image in the folder of a class"), count)


def list_validation(folder: Path, real: Path) -> tuple[list[Picture], tuple[str, ...]]:
    """The validation images with ReaL's labels, matched by the number in the file's name; notes.

    The files lie in the folder itself or in folders below it. Images may be missing.

    Raises:
        UserError: there is no image, a number occurs twice, or real.json is not valid.
    """
    files: dict[int, Path] = {}
    stray = []
    outer = _entries(folder)
    inner = [file for entry in outer if entry.is_dir() for file in _entries(entry.path)]
    for entry in [entry for entry in outer if not entry.is_dir()] + inner:
        match = _VALIDATION.fullmatch(entry.name)
        number = int(match[1]) if match and entry.is_file() else 0
        if not 1 <= number <= VALIDATION_IMAGES:
            stray.append(entry.path)
        elif number in files:
            raise UserError(f"'{entry.path}' and '{files[number]}' are the same image; keep one")
        else:
            files[number] = Path(entry.path)
    if not files:
        found = f"; '{stray[0]}' is not named so" if stray else ""
        raise UserError(
            f"ImageNet's validation images are not at '{folder}': expected "
            f"ILSVRC2012_val_00000001.JPEG ... there or in <wnid> folders{found}. To train without "
            "them and evaluate on held-out training images: --set report=val"
        )
    labels = read_real(real)
    kept = [(f"ILSVRC2012_val_{number:08d}", files[number], labels[number - 1])
            for number in sorted(files) if labels[number - 1]]  # fmt: skip
    if not kept:
        raise UserError(f"'{real}' gives none of the images in '{folder}' a label; add others")
    count = (
        f"imagenet/val: {len(files):,} of {VALIDATION_IMAGES:,} images, "
        f"{len(files) - len(kept):,} of them left out because ReaL gives them no label"
    )
    return kept, (*_note("val", stray, "not named as ILSVRC2012_val_00000001.JPEG"), count)


def _entries(folder: str | Path) -> list[os.DirEntry[str]]:
    """Entries of a folder sorted by name, without hidden ones; their kind needs no further stat."""
    if not os.path.isdir(folder):
        return []
    with os.scandir(folder) as found:
        return sorted((e for e in found if not e.name.startswith(".")), key=lambda e: e.name)


def _note(split: str, stray: list[str], why: str) -> list[str]:
    text = f"imagenet/{split}: {len(stray):,} entries left out, {why}; first: {stray[:1]}"
    return [text] if stray else []


def _read_json(path: Path, source: str) -> Any:
    try:
        return parse_json(read_list(path))
    except (OSError, ValueError) as error:
        raise UserError(f"'{path}' cannot be read as JSON ({error}); {source}") from error
