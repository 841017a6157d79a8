"""A user's own images, in class folders or CSV files: `folder` has one label each, `table` all."""

import contextlib
import csv
import hashlib
import io
import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path, PurePosixPath
from unicodedata import normalize

import torch

from spcl_lib.data.image_set import ImageSet, list_image_files
from spcl_lib.data.images import ENDINGS, HEIF
from spcl_lib.system.errors import UserError, unknown_name

HELD_OUT = 0.2  # share of every class that is held out from training, to evaluate on
_COMPARED = 50_000  # in larger sets, identical files are not looked for
_SPLIT_NAMES = {"train", "training", "val", "valid", "validation", "test"}
_DATA_SETS = {"VOCdevkit", "coco", "coco18", "imagenet"}
Rows = Mapping[str, tuple[str, ...]]  # labels by the path of the image below the folder


def find_images(folder: Path) -> tuple[list[str], str]:
    """Sorted paths of all images below a folder, with "/", and a note about other files or "".

    Hidden files are left out. A link directly in the folder may lead to a folder elsewhere; deeper
    ones are not followed, because they could lead back.
    """
    found, others = [], Counter()
    for top in folder.iterdir():
        for file in top.rglob("*") if top.is_dir() else [top]:
            path, ending = file.relative_to(folder), file.suffix.lower()
            if any(part.startswith(".") for part in path.parts) or file.is_dir():
                continue
            if ending in ENDINGS and (file.is_file() or file.is_symlink()):  # no pipe
                found.append(path.as_posix())
            elif ending != ".csv":  # lists of labels
                others[ending or "without ending"] += 1
    kinds = ", ".join(f"{n:,} {ending}" for ending, n in others.most_common(5))
    advice = "; for .heic: pip install pillow-heif" if others.keys() & set(HEIF) else ""
    note = f"{others.total():,} files are left out: {kinds}{advice}"
    return sorted(found), note if others else ""


def _class_folders(root: Path, full: Rows) -> tuple[Rows, list[str]]:
    """Training images with their folder as label, and notes about files that are left out.

    If all images of a folder are in `full`, it is no class: it holds the evaluation's images.
    """
    below, others = find_images(root)
    found = {path.split("/")[0] for path in below if "/" in path}
    if found and {name.lower() for name in found} <= _SPLIT_NAMES:
        raise UserError(f"'{root}' holds the folders {', '.join(sorted(found))}, which look like "
                        "splits, not classes; point --data-root at one of them")  # fmt: skip
    if known := found & _DATA_SETS:
        raise UserError(f"'{root}' holds {', '.join(sorted(known))}, which are no classes; name "
                        "one: --dataset voc2007, coco2014, imagenet, ...")  # fmt: skip
    left = [path for path in below if path not in full]
    # File systems and editors write accents in different forms; NFC is one of them.
    rows = {path: (normalize("NFC", path.split("/")[0]),) for path in left if "/" in path}
    beside = len(left) - len(rows)
    stray = f"{beside} images directly in '{root}' are in no class folder, and are left out"
    folders = {top.name for top in root.iterdir() if top.is_dir() and top.name[0] != "."}
    empty = "no class, because no image can be found in them: " + ", ".join(sorted(folders - found))
    return rows, [others, stray if beside else "", empty if folders - found else ""]


def list_folder_splits(
    root: Path, labels: str = "", full_labels: str = "", report: str = "test"
) -> tuple[ImageSet, ImageSet]:
    """The images to train on, with single labels, and those to report on, in a random order.

    `labels` and `full_labels` are CSV files below the folder. Without `labels`, every class has a
    folder of images. Images with full labels are never trained on. If there are none, a fixed fifth
    of every class is held out and evaluated against its single labels: a label that nobody gave
    counts as wrong, so the true metrics are higher. `report="val"` takes a fifth of the training
    images in any case, and "train" reports on all of them again.
    """
    full = read_label_file(root / full_labels, root)[0] if full_labels else {}
    if labels:
        single, notes = read_label_file(root / labels, root, single=True)[0], []
        _refuse_shared(single, full, root / full_labels)
    else:
        single, notes = _class_folders(root, full)
    classes = _classes_of(single, root / labels)
    _check_known(full, classes, root / full_labels)
    if report == "train":
        train = held = single
    else:
        train, held = (single, full) if full else _hold_out(single, root, "test")
        train, held = _hold_out(train, root, "val") if report == "val" else (train, held)
    train, held = ({path: rows[path] for path in _by_lot("order", rows)} for rows in (train, held))
    return _image_sets(root, train, held, classes, notes)


def _note_twins(root: Path, train: Rows, held: Rows) -> str:
    """A note about identical files with other labels, or to train and to report on, or ""."""
    place = {path: ("report", labels) for path, labels in held.items()}
    place |= {path: ("train", labels) for path, labels in train.items()}
    by_size, twins = defaultdict(list), defaultdict(list)
    for path in place if len(place) <= _COMPARED else ():
        with contextlib.suppress(OSError):  # the decoding reports what cannot be read
            by_size[os.path.getsize(root / path)].append(path)
    for path in (path for paths in by_size.values() if len(paths) > 1 for path in paths):
        with contextlib.suppress(OSError):
            twins[hashlib.sha256((root / path).read_bytes()).digest()].append(path)
    wrong = [paths for paths in twins.values() if len({place[path] for path in paths}) > 1]
    if not wrong:
        return ""
    one, other = wrong[0][:2]
    return (
        "photographs that are there twice, with other labels or to train and to report on: "
        f"{len(wrong):,}, such as '{one}' and '{other}'; keep one of each"
    )


def list_table(root: Path) -> tuple[ImageSet, ImageSet]:
    """Lists the images of train.csv and val.csv in the order of the files; none is read yet."""
    train, _ = read_label_file(root / "train.csv", root)
    val, is_single = read_label_file(root / "val.csv", root)
    if is_single:
        raise UserError(f"'{root / 'val.csv'}' needs path,labels, with all labels of an image; for "
                        "single labels alone: --dataset folder --set labels=FILE.csv")  # fmt: skip
    _refuse_shared(train, val, root / "val.csv")
    classes = _classes_of(train, root / "train.csv")
    _check_known(val, classes, root / "val.csv")
    return _image_sets(root, train, val, classes)


def list_labelled(root: Path, file: Path, classes: tuple[str, ...]) -> tuple[ImageSet, bool]:
    """Lists images with their labels among C classes; and whether each has only one label."""
    rows, is_single = read_label_file(file, root)
    _check_known(rows, classes, file)
    return _image_set(root, rows, classes), is_single


def _refuse_shared(rows: Rows, others: Rows, other_file: Path) -> None:
    for path in sorted(rows.keys() & others.keys()):
        raise UserError(f"'{path}' is also in '{other_file}', which must not be trained on")


def _classes_of(rows: Rows, where: Path) -> tuple[str, ...]:
    """The sorted labels; two that differ in nothing but case are a mistake."""
    classes = sorted({name for labels in rows.values() for name in labels})
    if "|" in "".join(classes):
        raise UserError(f"'{where}' has a class with '|' in its name, which separates labels")
    for one, other in pairwise(sorted(classes, key=str.casefold)):
        if one.casefold() == other.casefold():
            raise UserError(f"'{where}' has the classes '{one}' and '{other}', which differ in "
                            "nothing but upper and lower case; give them one name")  # fmt: skip
    if len(classes) < 2:
        names = f"only the class '{classes[0]}'" if classes else "no labelled image"
        raise UserError(f"'{where}' holds {names}; it needs two classes or more, as folders of "
                        "images or in a CSV file of path,label")  # fmt: skip
    return tuple(classes)


def _check_known(rows: Rows, classes: tuple[str, ...], file: Path) -> None:
    for name in dict.fromkeys(name for labels in rows.values() for name in labels):
        if name not in classes:
            raise unknown_name(f"class in '{file}':", name, classes)
    if rows and not any(rows.values()):
        raise UserError(f"'{file}' gives no image a label; there is nothing to evaluate on")


def _hold_out(single: Rows, root: Path, key: str) -> tuple[Rows, Rows]:
    """Splits the training images: first those that stay, then a fixed share of every class.

    The choice depends on the paths only. So when images are added, few old images change sides.
    """
    by_class = defaultdict(list)
    for path in _by_lot(key, single):
        by_class[single[path]].append(path)
    held = {p for paths in by_class.values() for p in paths[: round(HELD_OUT * len(paths))]}
    if not held:
        raise UserError(
            f"'{root}' has too few images to hold some out: at least one class needs "
            "3 (4 with report=val), or give images with full labels: --set full_labels=FILE"
        )
    rest = {path: labels for path, labels in single.items() if path not in held}
    return rest, {path: single[path] for path in held}


def _by_lot(key: str, paths: Iterable[str]) -> list[str]:
    """The paths in a fixed random order; a place depends on no machine and on no other image."""
    return sorted(paths, key=lambda path: hashlib.sha256(os.fsencode(f"{key}/{path}")).digest())


def _image_sets(
    root: Path, train: Rows, held: Rows, classes: tuple[str, ...], notes: Sequence[str] = ()
) -> tuple[ImageSet, ImageSet]:
    notes = tuple(filter(None, [*notes, _note_twins(root, train, held)]))
    return replace(_image_set(root, train, classes), notes=notes), _image_set(root, held, classes)


def _image_set(root: Path, rows: Rows, classes: tuple[str, ...]) -> ImageSet:
    labels = torch.zeros((len(rows), len(classes)), dtype=torch.bool)
    for row, own in zip(labels, rows.values(), strict=True):
        row[[classes.index(name) for name in own]] = True
    files = [root / path for path in rows]
    return list_image_files(files, labels=labels, classes=classes, ids=tuple(rows))


def read_label_file(file: Path, root: Path, single: bool = False) -> tuple[Rows, bool]:
    """The labels of images, by path below `root`; and whether the header says one label each.

    The file is CSV in UTF-8, with or without a byte order mark. Its header is `path,label`, for one
    label per image, or `path,labels`, for any number, with "|" between them.

    `single` demands one label per image.
    """
    rows: dict[str, tuple[str, ...]] = {}
    header, records = _records(file)
    for line, fields in records:
        where = f"'{file}', line {line}"
        if len(fields) != 2:
            raise UserError(f"{where}: {len(fields)} fields; expected {','.join(header)} (quote "
                            "fields with commas)")  # fmt: skip
        path = fields[0].replace("\\", "/")
        # One image has one path, also where the file names it from the top of the disk.
        path = PurePosixPath(os.path.relpath(root / path, root)).as_posix()
        if not os.path.isfile(root / path):  # unlike Path.is_file it takes names of any length
            raise UserError(f"{where}: image '{fields[0]}' is not in '{root}'")
        names = fields[1].split("|") if fields[1].strip() else []
        labels = tuple(normalize("NFC", name.strip()) for name in names)
        if "" in labels or ((single or header[1] == "label") and len(labels) != 1):
            raise UserError(f"{where}: '{fields[1]}' where {header[1]} must be")
        if set(rows.setdefault(path, labels)) != set(labels):
            raise UserError(f"{where}: '{path}' has other labels in an earlier line; a header "
                            "path,labels allows all in one line, as a|b")  # fmt: skip
    if not rows:
        raise UserError(f"'{file}' names no image; expected lines of {','.join(header)}")
    return rows, header[1] == "label"


def _records(file: Path) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """The header; line numbers and fields of all other lines that are not empty."""
    try:
        text = file.read_text(encoding="utf-8-sig")
        reader = csv.reader(io.StringIO(text, newline=None))  # any line ending
        records = [(reader.line_num, fields) for fields in reader if any(fields)]
    except OSError as error:
        raise UserError(f"label file '{file}' cannot be read ({error.strerror})") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"'{file}' is no CSV file in UTF-8 ({error}); save it as one") from error
    header = [name.strip() for name in records[0][1]] if records else []
    if header not in (["path", "label"], ["path", "labels"]):
        raise UserError(f"'{file}', line 1: unknown header '{','.join(header)}'; expected "
                        "path,label or path,labels, separated by commas")  # fmt: skip
    return header, records[1:]
