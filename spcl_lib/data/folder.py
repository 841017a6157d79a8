"""`folder`: a user's own images with one label each, in class folders or listed in a CSV file."""

from __future__ import annotations

import difflib
import hashlib
import os
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from spcl_lib.data.image_set import ImageSet, list_image_files
from spcl_lib.data.label_files import LabelRow, compose_accents, read_label_file
from spcl_lib.system.errors import UserError

SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")  # in any case
HELD_OUT = 0.2  # share of every class that is held out from training, to evaluate on
_SPLIT_NAMES = {"train", "training", "val", "valid", "validation", "test"}
Labels = dict[str, frozenset[str]]  # path of an image below the folder -> its labels


@dataclass(frozen=True)
class Listing:
    """The images and labels of a folder, before any image is read.

    Attributes:
        classes: sorted names.
        single: training images with one label each. If `full` is empty, some are held out later.
        full: images with full labels, for the evaluation; none of them is in `single`.
        unlabelled: number of images that lie beside the class folders.
    """

    classes: tuple[str, ...]
    single: Labels
    full: Labels
    unlabelled: int = 0


def images_below(folder: Path) -> list[str]:
    """Sorted paths of all images below a folder, with "/"; hidden files are left out.

    A link may lead to a folder elsewhere. But no folder is read twice: its images would appear
    under two names, and a link to a parent would never end.

    Raises:
        UserError: a folder cannot be read.
    """
    found, root = [], folder.resolve()
    known = {root, *root.parents}
    for here, folders, files in os.walk(folder, onerror=_stop, followlinks=True):
        folders[:] = [
            name for name in sorted(folders)
            if not name.startswith(".") and _is_new(Path(here, name), root, known)
        ]  # fmt: skip
        names = [n for n in files if n.lower().endswith(SUFFIXES) and not n.startswith(".")]
        found += [Path(here, name).relative_to(folder).as_posix() for name in names]
    return sorted(found)


def _is_new(folder: Path, root: Path, known: set[Path]) -> bool:
    """Whether a folder has not been read under another name; it is known from now on."""
    real = folder.resolve()
    new = real not in known and not (folder.is_symlink() and real.is_relative_to(root))
    known.add(real)
    return new


def _stop(error: OSError) -> None:
    raise UserError(f"folder '{error.filename}' cannot be read ({error.strerror})") from error


def list_folder(root: Path, labels: str = "", full_labels: str = "") -> Listing:
    """Images and labels of a folder.

    Args:
        root: the folder.
        labels: CSV file of `path,label`, as a path below the folder; empty if the images of every
            class lie in a folder with its name, at any depth.
        full_labels: CSV file of `path,labels`, as a path below the folder; empty if there is none.
            Labels look like `cat|dog`, and are empty if the image shows none of the classes. Its
            images are for the evaluation. They are never trained on, wherever they lie.

    Raises:
        UserError: a label file or a folder cannot be used; the message names the line or folder.
    """
    full = read_label_file(root, full_labels, "labels") if full_labels else {}
    if labels:
        rows = read_label_file(root, labels, "label")
        _refuse_shared(rows, full, root / labels, root / full_labels)
        single, unlabelled = {path: row.labels for path, row in rows.items()}, 0
    else:
        single, unlabelled = _class_folders(root, full)
    classes = tuple(sorted(frozenset().union(*single.values())))
    _check_classes(classes, root / labels)
    _check_known(full, classes, root / full_labels)
    return Listing(classes, single, {path: row.labels for path, row in full.items()}, unlabelled)


def _class_folders(root: Path, full: Mapping[str, LabelRow]) -> tuple[Labels, int]:
    """Training images with their folder as label, and the number of images in no class folder.

    If all images of a folder are in `full`, it is no class: it holds the evaluation's images.
    """
    below = images_below(root)
    found = {path.split("/")[0] for path in below if "/" in path}
    folders = {f.name for f in root.iterdir() if f.is_dir() and not f.name.startswith(".")}
    for name in sorted(folders - found):
        raise UserError(
            f"class folder '{root / name}' holds no image ({', '.join(SUFFIXES)}), or links to a "
            "folder that is read under another name; remove it, or list the images in a CSV file: "
            "--set labels=FILE"
        )
    if found and {name.lower() for name in found} <= _SPLIT_NAMES:
        raise UserError(
            f"'{root}' holds the folders {', '.join(sorted(found))}, which look like splits, not "
            f"classes; point --data-root at one of them"
        )
    evaluated = {compose_accents(path) for path in full}
    left = [path for path in below if compose_accents(path) not in evaluated]
    inside = {
        path: frozenset({compose_accents(path.split("/")[0])}) for path in left if "/" in path
    }
    return inside, len(left) - len(inside)


def _refuse_shared(
    single: Mapping[str, LabelRow], full: Mapping[str, LabelRow], file: Path, full_file: Path
) -> None:
    for path in sorted(single.keys() & full.keys()):
        raise UserError(
            f"image '{path}' is in '{full_file}' (line {full[path].line}) and in '{file}' (line "
            f"{single[path].line}); evaluation images must not be trained on: remove one line"
        )


def _check_classes(classes: tuple[str, ...], where: Path) -> None:
    if len(classes) < 2:
        names = f"only the class '{classes[0]}'" if classes else "no labelled image"
        raise UserError(
            f"'{where}' holds {names}; two classes or more are needed: a folder of images for "
            "every class, or a CSV file of path,label with --set labels=FILE"
        )
    for name in classes:
        if "|" in name:
            raise UserError(f"class '{name}' in '{where}': '|' separates labels; rename it")


def _check_known(full: Mapping[str, LabelRow], classes: tuple[str, ...], file: Path) -> None:
    for row in full.values():
        for name in sorted(row.labels - set(classes)):
            close = difflib.get_close_matches(name, classes, n=1)
            hint = f" Did you mean '{close[0]}'?" if close else ""
            raise UserError(
                f"'{file}', line {row.line}: no training image has the label '{name}'.{hint} "
                f"Classes: {', '.join(classes)}"
            )
    if full and not any(row.labels for row in full.values()):
        raise UserError(f"'{file}' gives no image a label; there is nothing to evaluate on")


def list_folder_splits(
    root: Path, labels: str = "", full_labels: str = "", report: str = "test"
) -> tuple[ImageSet, ImageSet]:
    """The images to train on, with single labels, and the images to report on; none is read yet.

    Images with full labels are reported on. If there are none, a fixed fifth of every class is held
    out from training and evaluated against its single labels. Then a label that nobody gave counts
    as wrong, so the true metrics are higher.

    Args:
        root: the folder.
        labels: see `list_folder`.
        full_labels: see `list_folder`.
        report: "val" replaces the report images by a fifth of the training images, so that the
            report images are not touched.

    Returns:
        Both sets are in a fixed random order, which mixes the classes.

    Raises:
        UserError: the folder or a label file cannot be used.
    """
    listing = list_folder(root, labels, full_labels)
    train, evaluation = (_image_set(root, part, listing) for part in _splits(listing, root, report))
    if not listing.unlabelled:
        return train, evaluation
    note = (
        f"folder: {listing.unlabelled} images directly in '{root}' are in no class folder, "
        "and are left out"
    )
    return replace(train, notes=(note,)), evaluation


def _splits(listing: Listing, root: Path, report: str) -> tuple[Labels, Labels]:
    train, held = listing.single, listing.full
    if not held:
        train, held = _hold_out(train, root, "test")
    if report == "val":
        train, held = _hold_out(train, root, "val")
    return train, held


def _hold_out(single: Labels, root: Path, key: str) -> tuple[Labels, Labels]:
    """Splits the training images: first those that stay, then a fixed share of every class.

    The choice depends on the paths only. So when images are added, few old images change sides.
    If a class has one or two images, all stay.
    """
    by_class = defaultdict(list)
    for path in sorted(single, key=lambda path: _lot(key, path)):
        by_class[single[path]].append(path)
    held = {p for paths in by_class.values() for p in paths[: round(HELD_OUT * len(paths))]}
    if not held:
        raise UserError(
            f"'{root}' has too few images to hold some out: at least one class needs "
            "3 (4 with report=val), or give images with full labels: --set full_labels=FILE"
        )
    rest = {path: labels for path, labels in single.items() if path not in held}
    return rest, {path: single[path] for path in held}


def _lot(key: str, path: str) -> bytes:
    """A fixed random value for a path; it depends on no machine and on no other image."""
    return hashlib.sha256(os.fsencode(f"{key}/{path}")).digest()


def _image_set(root: Path, part: Labels, listing: Listing) -> ImageSet:
    paths = sorted(part, key=lambda path: _lot("order", path))
    number = {name: c for c, name in enumerate(listing.classes)}
    labels = torch.zeros((len(paths), len(listing.classes)), dtype=torch.bool)
    for i, path in enumerate(paths):
        labels[i, [number[label] for label in part[path]]] = True
    files = [root / path for path in paths]
    return list_image_files(files, labels=labels, classes=listing.classes, ids=tuple(paths))
