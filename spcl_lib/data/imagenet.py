"""`imagenet`: ImageNet-1K with its own single labels, evaluated against ReaL's sets of labels.

ReaL (Beyer et al., 2020, "Are we done with ImageNet?", arXiv 2006.07159) gives each of the 50,000
validation images the set of its valid classes. If the set is empty, the image is left out, as its
authors do. There are 1.28 million images, so they are chosen before any is decoded.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from tqdm import tqdm

from spcl_lib.data.image_set import ImageSet, hold_out, list_image_files
from spcl_lib.system.errors import UserError, is_text
from spcl_lib.system.files import parse_json, read_list

CLASSES = 1000
VALIDATION_IMAGES = 50_000
_IMAGE = re.compile(r".+\.(jpeg|jpg|png)", re.IGNORECASE)
# Some mirrors append the class to the name: ILSVRC2012_val_00000001_n01751748.JPEG. It is not used.
_VALIDATION = re.compile(r"ILSVRC2012_val_(\d{8})(_n\d{8})?\.(jpeg|jpg|png)", re.IGNORECASE)
_SAMPLE_SEED = 1200
_SHAPE = "train/<wnid>/*.JPEG, val/*.JPEG, real.json and imagenet_class_index.json"


@dataclass(frozen=True)
class Listing:
    """Images that are listed but not read yet.

    Attributes:
        ids: names for people.
        files: one per image.
        labels: class numbers of every image, at least one.
        notes: see `ImageSet`.
    """

    ids: list[str]
    files: list[Path]
    labels: list[tuple[int, ...]]
    notes: tuple[str, ...] = ()

    def pick(self, indices: torch.Tensor) -> Listing:
        """The images at `indices` (M,) int64, in that order."""
        parts = (self.ids, self.files, self.labels)
        return Listing(*([part[i] for i in indices.tolist()] for part in parts), self.notes)

    def sample(self, count: int) -> Listing:
        """A fixed random choice of `count` images (0 = all); the first images share one class."""
        if count == 0 or count >= len(self.files):
            return self
        generator = torch.Generator().manual_seed(_SAMPLE_SEED)
        return self.pick(torch.randperm(len(self.files), generator=generator)[:count].sort().values)

    def image_set(self, classes: tuple[str, ...]) -> ImageSet:
        """The same images with a table of labels."""
        rows = [n for n, own in enumerate(self.labels) for _ in own]
        labels = torch.zeros((len(self.files), len(classes)), dtype=torch.bool)
        labels[rows, [c for own in self.labels for c in own]] = True
        return list_image_files(
            self.files, labels=labels, classes=classes, ids=tuple(self.ids), notes=self.notes
        )


def list_imagenet(
    root: Path, report: str = "test", train_images: int = 0, eval_images: int = 0
) -> tuple[ImageSet, ImageSet]:
    """The images to train on, and validation images with ReaL's labels to report on.

    The images are not read yet.

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
    train = list_training(folder / "train", wnids)
    if report == "val":
        stay, held = hold_out(len(train.files))
        train, evaluation = train.pick(stay), replace(train.pick(held), notes=())
    else:
        evaluation = list_validation(folder / "val", folder / "real.json")
    parts = train.sample(train_images), evaluation.sample(eval_images)
    return parts[0].image_set(classes), parts[1].image_set(classes)


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
    counts = Counter(names)  # two classes are called crane: a bird and a machine
    pairs = zip(wnids, names, strict=True)
    return wnids, tuple(f"{n} ({w})" if counts[n] > 1 else n for w, n in pairs)


def read_real(path: Path) -> list[tuple[int, ...]]:
    """ReaL's valid classes of ILSVRC2012_val_00000001 ... 00050000, in this order.

    Raises:
        UserError: the file is missing, or is not 50,000 lists of class numbers.
    """
    lists = _read_json(path, "it is published at github.com/google-research/reassessed-imagenet")
    if not isinstance(lists, list) or len(lists) != VALIDATION_IMAGES:
        what = f"{len(lists):,} entries" if isinstance(lists, list) else type(lists).__name__
        raise UserError(
            f"'{path}' holds {what}; expected a list of {VALIDATION_IMAGES:,} lists of classes, "
            "one for every validation image"
        )
    for number, own in enumerate(lists, start=1):
        if not isinstance(own, list) or not all(type(c) is int and 0 <= c < CLASSES for c in own):
            raise UserError(
                f"'{path}' has {str(own)[:60]} for ILSVRC2012_val_{number:08d}; expected a list of "
                f"class numbers in 0..{CLASSES - 1}"
            )
    return [tuple(own) for own in lists]


def list_training(folder: Path, wnids: tuple[str, ...]) -> Listing:
    """All training images, by class and name. Classes may be missing; a note counts those found.

    Raises:
        UserError: there is no image, or no class has the name of a folder.
    """
    entries = _entries(folder) if folder.is_dir() else []
    folders = [entry for entry in entries if entry.is_dir()]
    stray = [entry.path for entry in entries if not entry.is_dir()]
    number = {wnid: c for c, wnid in enumerate(wnids)}
    unknown = next((entry.path for entry in folders if entry.name not in number), None)
    if unknown is not None:
        raise UserError(
            f"the name of '{unknown}' is no class of imagenet_class_index.json; the name of a "
            f"folder of training images must be a wnid, such as '{wnids[0]}'"
        )
    listing = Listing([], [], [])
    bar = tqdm(folders, desc="listing imagenet/train", unit="class", mininterval=1, delay=2)
    for entry in bar:
        stray += _add_class(listing, entry, number[entry.name])
    if not listing.files:
        raise UserError(f"'{folder}' holds no training image; expected <wnid>/*.JPEG in it")
    notes = _note_left_out("train", stray, "no image in the folder of a class")
    present = len(set(listing.labels))
    count = f"{len(listing.files):,} images of {present:,} of the {CLASSES:,} classes"
    return replace(listing, notes=(*notes, f"imagenet/train: {count}"))


def _add_class(listing: Listing, folder: os.DirEntry[str], number: int) -> list[str]:
    """Adds the images of one class; gives the paths of entries that are not images."""
    stray, label = [], (number,)  # all images share one tuple, to save memory
    for entry in _entries(folder.path):
        if not _IMAGE.fullmatch(entry.name) or not entry.is_file():
            stray.append(entry.path)
            continue
        listing.ids.append(f"{folder.name}/{entry.name.rpartition('.')[0]}")
        listing.files.append(Path(entry.path))
        listing.labels.append(label)
    return stray


def list_validation(folder: Path, real: Path) -> Listing:
    """The validation images with ReaL's labels, matched by the number in the file's name.

    The files lie in the folder itself or in folders below it. Images may be missing. A note counts
    the images found, and those that are left out because ReaL gives them no label.

    Raises:
        UserError: there is no image, a number occurs twice, or real.json is not valid.
    """
    files, stray = _validation_files(folder)
    if not files:
        found = f"; '{stray[0]}' is not named so" if stray else ""
        raise UserError(
            f"ImageNet's validation images are not at '{folder}': expected "
            f"ILSVRC2012_val_00000001.JPEG ... there or in <wnid> folders{found}. To train without "
            "them and evaluate on held-out training images: --set report=val"
        )
    labels = read_real(real)
    notes = _note_left_out("val", stray, "not named as ILSVRC2012_val_00000001.JPEG")
    kept = [number for number in sorted(files) if labels[number - 1]]
    if not kept:
        raise UserError(f"'{real}' gives none of the images in '{folder}' a label; add others")
    count = (
        f"imagenet/val: {len(files):,} of {VALIDATION_IMAGES:,} images, "
        f"{len(files) - len(kept):,} of them left out because ReaL gives them no label"
    )
    ids = [f"ILSVRC2012_val_{number:08d}" for number in kept]
    own = [labels[n - 1] for n in kept]
    return Listing(ids, [files[n] for n in kept], own, (*notes, count))


def _validation_files(folder: Path) -> tuple[dict[int, Path], list[str]]:
    """Files by their number, 1..50,000, and the paths of entries with other names."""
    files: dict[int, Path] = {}
    stray: list[str] = []
    entries = _entries(folder) if folder.is_dir() else []
    inner = [file for entry in entries if entry.is_dir() for file in _entries(entry.path)]
    for entry in [entry for entry in entries if not entry.is_dir()] + inner:
        match = _VALIDATION.fullmatch(entry.name)
        number = int(match[1]) if match and entry.is_file() else 0
        if not 1 <= number <= VALIDATION_IMAGES:
            stray.append(entry.path)
        elif number in files:
            raise UserError(f"'{entry.path}' and '{files[number]}' are the same image; keep one")
        else:
            files[number] = Path(entry.path)
    return files, stray


def _entries(folder: str | Path) -> list[os.DirEntry[str]]:
    """Entries of a folder sorted by name, without hidden ones; their kind needs no further stat."""
    with os.scandir(folder) as found:
        return sorted((e for e in found if not e.name.startswith(".")), key=lambda e: e.name)


def _note_left_out(split: str, stray: list[str], why: str) -> list[str]:
    if not stray:
        return []
    return [f"imagenet/{split}: {len(stray):,} entries left out, {why}; first: '{stray[0]}'"]


def _read_json(path: Path, source: str) -> object:
    try:
        return parse_json(read_list(path))
    except OSError as error:
        raise UserError(f"'{path}' cannot be read ({error.strerror}); {source}") from error
    except ValueError as error:
        raise UserError(f"'{path}' is no valid JSON ({error}); {source}") from error
