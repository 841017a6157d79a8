"""A user's own images: `folder` has one label each, `table` has all labels.

Labels come from class folders, or from CSV files. An error in a line names the line.
"""

from __future__ import annotations

import contextlib
import csv
import difflib
import hashlib
import io
import os
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

import torch

from spcl_lib.data.image_set import ImageSet, list_image_files
from spcl_lib.data.images import PACKAGES, endings
from spcl_lib.data.objects import Boxes
from spcl_lib.system.errors import UserError
from spcl_lib.system.files import read_list

TRAIN, VAL = "train.csv", "val.csv"
HELD_OUT = 0.2  # share of every class that is held out from training, to evaluate on
_SPLIT_NAMES = {"train", "training", "val", "valid", "validation", "test"}
_COMPARED = 50_000  # in larger folders, identical files are not looked for
Box = tuple[float, ...]  # x0, y0, x1, y1 as fractions of the image


@dataclass(frozen=True)
class LabelRow:
    """Labels of one image, and the number of their line; 0 if a folder gives the label.

    `objects` has the label and the box of every object; None if the file has no boxes.
    """

    labels: frozenset[str]
    line: int = 0
    objects: tuple[tuple[str, Box], ...] | None = None


Rows = Mapping[str, LabelRow]  # by path of the image below the folder

# --- files of a folder ----------------------------------------------------------------------------


def find_images(folder: Path) -> tuple[list[str], str]:
    """Sorted paths of all images below a folder, with "/", and a note about other files or "".

    Hidden files are left out. A link may lead to a folder elsewhere. But no folder is read twice:
    its images would appear under two names, and a link to a parent would never end.

    Raises:
        UserError: a folder cannot be read.
    """
    found, others, root = [], Counter(), folder.resolve()
    known = {root, *root.parents}
    for here, folders, files in os.walk(folder, onerror=_stop, followlinks=True):
        folders[:] = [
            name for name in sorted(folders)
            if not name.startswith(".") and _is_new(Path(here, name), root, known)
        ]  # fmt: skip
        for file in (Path(here, name) for name in files if not name.startswith(".")):
            if file.suffix.lower() in endings():
                found.append(file.relative_to(folder).as_posix())
            else:
                others[file.suffix.lower()] += 1
    return sorted(found), _note_others(others)


def _is_new(folder: Path, root: Path, known: set[Path]) -> bool:
    """Whether a folder has not been read under another name; it is known from now on."""
    real = folder.resolve()
    new = real not in known and not (folder.is_symlink() and real.is_relative_to(root))
    known.add(real)
    return new


def _stop(error: OSError) -> None:
    raise UserError(f"folder '{error.filename}' cannot be read ({error.strerror})") from error


def _note_others(others: Counter[str]) -> str:
    others.pop(".csv", 0)  # lists of labels
    packages = {PACKAGES[ending] for ending in others if ending in PACKAGES}
    advice = f"; for some of them: pip install {' '.join(sorted(packages))}" if packages else ""
    kinds = ", ".join(f"{n:,} {ending or 'without ending'}" for ending, n in others.most_common(5))
    dots = ", ..." if len(others) > 5 else ""
    return f"{others.total():,} files are left out: {kinds}{dots}{advice}" if others else ""


# --- a folder with single labels ------------------------------------------------------------------


def list_folder_splits(
    root: Path, labels: str = "", full_labels: str = "", report: str = "test"
) -> tuple[ImageSet, ImageSet]:
    """The images to train on, with single labels, and the images to report on; none is read yet.

    Images with full labels are reported on. If there are none, a fixed fifth of every class is held
    out from training and evaluated against its single labels. Then a label that nobody gave counts
    as wrong, so the true metrics are higher.

    Args:
        root: the folder.
        labels: CSV file of `path,label`, as a path below the folder; empty if the images of every
            class lie in a folder with its name, at any depth.
        full_labels: CSV file of `path,labels`, as a path below the folder; empty if there is none.
            Labels look like `cat|dog`, and are empty if the image shows none of the classes. Its
            images are for the evaluation. They are never trained on, wherever they lie.
        report: "val" replaces the report images by a fifth of the training images, so that the
            report images are not touched. "train" holds no image out: all are trained on, and
            reported on again, which says nothing about other images.

    Returns:
        Both sets are in a fixed random order, which mixes the classes.

    Raises:
        UserError: a label file or a folder cannot be used; the message names the line or folder.
    """
    full = read_label_file(root, full_labels, "labels") if full_labels else {}
    if labels:
        single, notes = read_label_file(root, labels, "label"), []
        _refuse_shared(single, full, root / labels, root / full_labels)
    else:
        single, notes = _class_folders(root, full)
    classes = _classes_of(single, root / labels)
    if len(classes) < 2:
        names = f"only the class '{classes[0]}'" if classes else "no labelled image"
        raise UserError(
            f"'{root / labels}' holds {names}; two classes or more are needed: a folder of images "
            "for every class, or a CSV file of path,label with --set labels=FILE"
        )
    _check_known(full, classes, root / full_labels, "no training image has the label")
    if full and not any(row.labels for row in full.values()):
        raise UserError(f"'{root / full_labels}' gives no image a label; nothing to evaluate on")
    train, held = _split(root, single, full, report)
    if report == "train":
        notes.append(f"report=train: the {len(train):,} images that are trained on are reported on "
                     "again; the metrics say nothing about other images")  # fmt: skip
    notes += _note_twins(root, train, {} if report == "train" else held)
    first, second = (
        _image_set(root, {path: rows[path] for path in _by_lot("order", rows)}, classes)
        for rows in (train, held)
    )
    return replace(first, notes=tuple(f"folder: {note}" for note in notes if note)), second


def _class_folders(root: Path, full: Rows) -> tuple[Rows, list[str]]:
    """Training images with their folder as label, and notes about files that are left out.

    If all images of a folder are in `full`, it is no class: it holds the evaluation's images.
    """
    below, others = find_images(root)
    found = {path.split("/")[0] for path in below if "/" in path}
    folders = {f.name for f in root.iterdir() if f.is_dir() and not f.name.startswith(".")}
    for name in sorted(folders - found):
        raise UserError(
            f"class folder '{root / name}' holds no image that can be read"
            f"{f' ({others})' if others else ''}, or links to a folder that is read under another "
            "name; remove it, or list the images in a CSV file: --set labels=FILE"
        )
    if found and {name.lower() for name in found} <= _SPLIT_NAMES:
        raise UserError(
            f"'{root}' holds the folders {', '.join(sorted(found))}, which look like splits, not "
            f"classes; point --data-root at one of them"
        )
    evaluated = {compose_accents(path) for path in full}
    left = [path for path in below if compose_accents(path) not in evaluated]
    inside = [path for path in left if "/" in path]
    beside = len(left) - len(inside)
    stray = f"{beside} images directly in '{root}' are in no class folder, and are left out"
    rows = {path: LabelRow(frozenset({compose_accents(path.split("/")[0])})) for path in inside}
    return rows, [others, stray if beside else ""]


def _refuse_shared(rows: Rows, others: Rows, file: Path, other_file: Path) -> None:
    for path in sorted(rows.keys() & others.keys()):
        raise UserError(
            f"image '{path}' is in '{other_file}' (line {others[path].line}) and in '{file}' (line "
            f"{rows[path].line}); evaluation images must not be trained on: remove one line"
        )


def _classes_of(rows: Rows, where: Path) -> tuple[str, ...]:
    """The sorted labels; two that differ in nothing but case are a mistake."""
    first: dict[str, str] = {}
    lines = {name: (row.line, path) for path, row in rows.items() for name in row.labels}
    for name in sorted(lines):
        same = first.setdefault(name.casefold(), name)
        if same != name:
            places = [f"'{n}' (line {line})" if line else f"'{n}' (folder of '{path}')"
                      for n in (same, name) for line, path in [lines[n]]]  # fmt: skip
            raise UserError(
                f"'{where}' has the classes {' and '.join(places)}, which differ in nothing but "
                "upper and lower case; give them one name, or names that differ"
            )
        if "|" in name:
            raise UserError(f"class '{name}' in '{where}': '|' separates labels; rename it")
    return tuple(sorted(lines))


def _check_known(rows: Rows, classes: Sequence[str], file: Path, flaw: str) -> None:
    for row in rows.values():
        for name in sorted(row.labels - set(classes)):
            close = difflib.get_close_matches(name, classes, n=1)
            hint = f" Did you mean '{close[0]}'?" if close else ""
            raise UserError(f"'{file}', line {row.line}: {flaw} '{name}'.{hint} "
                            f"Classes: {', '.join(classes)[:500]}")  # fmt: skip


def _split(root: Path, single: Rows, full: Rows, report: str) -> tuple[Rows, Rows]:
    """The images to train on, and to report on."""
    if report == "train":
        return single, single
    train, held = (single, full) if full else _hold_out(single, root, "test")
    return _hold_out(train, root, "val") if report == "val" else (train, held)


def _hold_out(single: Rows, root: Path, key: str) -> tuple[Rows, Rows]:
    """Splits the training images: first those that stay, then a fixed share of every class.

    The choice depends on the paths only. So when images are added, few old images change sides.
    If a class has one or two images, all stay.
    """
    by_class = defaultdict(list)
    for path in _by_lot(key, single):
        by_class[single[path].labels].append(path)
    held = {p for paths in by_class.values() for p in paths[: round(HELD_OUT * len(paths))]}
    if not held:
        raise UserError(
            f"'{root}' has too few images to hold some out: at least one class needs "
            "3 (4 with report=val), or give images with full labels: --set full_labels=FILE"
        )
    rest = {path: row for path, row in single.items() if path not in held}
    return rest, {path: single[path] for path in held}


def _by_lot(key: str, paths: Iterable[str]) -> list[str]:
    """The paths in a fixed random order; a place depends on no machine and on no other image."""
    return sorted(paths, key=lambda path: hashlib.sha256(os.fsencode(f"{key}/{path}")).digest())


def _note_twins(root: Path, train: Rows, held: Rows) -> list[str]:
    """Notes about identical files: with other labels, or in training and in the report."""
    if len(train) > _COMPARED:
        return []
    by_size, twins = defaultdict(list), defaultdict(list)
    for path in sorted({*train, *held}):
        with contextlib.suppress(OSError):  # the decoding names what cannot be read
            by_size[os.path.getsize(root / path)].append(path)
    for path in (path for paths in by_size.values() if len(paths) > 1 for path in paths):
        if os.path.isfile(root / path):  # a pipe would never end
            with contextlib.suppress(OSError), open(root / path, "rb") as handle:
                twins[hashlib.file_digest(handle, "sha256").digest()].append(path)
    groups = [paths for paths in twins.values() if len(paths) > 1]
    given = [{train[path].labels for path in paths if path in train} for paths in groups]
    places = [{path in held for path in paths} for paths in groups]
    found = {
        "with different labels": [g for g, labels in zip(groups, given, strict=True)
                                  if len(labels) > 1],
        "both trained on and reported on": [g for g, place in zip(groups, places, strict=True)
                                            if len(place) > 1],
    }  # fmt: skip
    return [f"photographs that are identical, {what}: {len(same):,}, such as "
            f"{' and '.join(repr(path) for path in same[0][:2])}; keep one of each"
            for what, same in found.items() if same]  # fmt: skip


# --- tables with all labels -----------------------------------------------------------------------


def list_table(root: Path) -> tuple[ImageSet, ImageSet]:
    """Lists the images of train.csv and val.csv in the order of the files; none is read yet.

    Each file has the header `path,labels`, or `path,labels,boxes`, see `read_label_file`. The
    classes are the sorted labels of train.csv.

    Raises:
        UserError: a file is missing or malformed, an image is in both files, there are fewer than
            two classes, or val.csv has a label that train.csv does not have.
    """
    train, val = (read_label_file(root, name, "labels") for name in (TRAIN, VAL))
    _refuse_shared(train, val, root / TRAIN, root / VAL)
    classes = _classes_of(train, root / TRAIN)
    if len(classes) < 2:
        raise UserError(f"'{root / TRAIN}' has {len(classes)} labels; two or more are needed")
    _check_known(val, classes, root / VAL, f"no image of {TRAIN} has")
    notes = tuple(f"table: {note}" for note in _note_twins(root, train, val))
    return replace(_image_set(root, train, classes), notes=notes), _image_set(root, val, classes)


def list_labelled(root: Path, file: Path, column: str, classes: tuple[str, ...]) -> ImageSet:
    """Lists images with their labels among the classes of a trained network; none is read yet.

    Args:
        root: folder of the images.
        file: CSV file as in `list_table`, with paths below `root`.
        column: "labels", or "label" for one label per image.
        classes: C names.

    Raises:
        UserError: the file is missing or malformed, or has a label that is not among the classes.
    """
    rows = read_label_file(root, str(file.absolute()), column)
    _check_known(rows, classes, file, "the run has no class")
    return _image_set(root, rows, classes)


def _image_set(root: Path, rows: Rows, classes: tuple[str, ...]) -> ImageSet:
    number = {name: c for c, name in enumerate(classes)}
    labels = torch.zeros((len(rows), len(classes)), dtype=torch.bool)
    for i, row in enumerate(rows.values()):
        labels[i, [number[name] for name in row.labels]] = True
    files, boxes = [root / path for path in rows], _boxes(rows, number)
    return list_image_files(files, labels=labels, classes=classes, ids=tuple(rows), boxes=boxes)


def _boxes(rows: Rows, number: Mapping[str, int]) -> Boxes | None:
    """The objects of all images; None if the file has no boxes."""
    if any(row.objects is None for row in rows.values()):
        return None
    found = [(i, number[name], box) for i, row in enumerate(rows.values())
             for name, box in row.objects]  # fmt: skip
    images, labels, corners = zip(*found, strict=True) if found else ((), (), ())
    box = torch.tensor(corners, dtype=torch.float32).view(-1, 4)
    return Boxes(torch.tensor(images).long(), torch.tensor(labels).long(), box)


# --- CSV files ------------------------------------------------------------------------------------


def read_label_file(root: Path, name: str, column: str) -> dict[str, LabelRow]:
    """Rows of a CSV file by image path, in the order of the file.

    The file is UTF-8, with or without a byte order mark. All line endings are allowed. Fields with
    commas need quotes. Repeated lines are dropped.

    Args:
        root: the file and the paths in it are relative to this folder.
        name: name of the file.
        column: "label" for one label per image; "labels" for any number, with "|" between them.
            With "labels", a third column "boxes" may give a box for each label: "x0 y0 x1 y1" as
            fractions of the image as it is seen (turned by its EXIF data), with "|" between boxes.
            Then each object has its own label.

    Raises:
        UserError: the file is missing or malformed, or names an image that is not in the folder.
    """
    file = root / name
    rows: dict[str, LabelRow] = {}
    header, records = _records(file, column)
    for line, fields in records:
        where = f"'{file}', line {line}"
        if len(fields) != len(header):
            raise UserError(f"{where}: {len(fields)} fields; expected {','.join(header)} (quote "
                            "fields with commas)")  # fmt: skip
        path = _existing(root, fields[0], where)
        names = _labels(fields[1], column, where)
        objects = _objects(names, fields[2], where) if len(header) == 3 else None
        row = LabelRow(frozenset(names), line, objects)
        if rows.setdefault(path, row) != replace(row, line=rows[path].line):
            raise UserError(
                f"{where}: '{path}' has other labels in line {rows[path].line}; give every image "
                "one line" + (", with one label" if column == "label" else "")
            )
    if not rows:
        raise UserError(f"'{file}' names no image; expected lines of path,{column}")
    return rows


def column_of(file: Path) -> str:
    """Whether a file has one label per image ("label") or all; also all if it cannot be read."""
    with contextlib.suppress(OSError):
        start = read_list(file).decode("utf-8-sig", "replace").lstrip().split("\n", 1)[0]
        if [field.strip() for field in start.split(",")] == ["path", "label"]:
            return "label"
    return "labels"


def compose_accents(text: str) -> str:
    """A name with accents in one form; file systems and editors use different forms."""
    return unicodedata.normalize("NFC", text)


def _records(file: Path, column: str) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """The header; line numbers and fields of all other lines that are not empty."""
    try:
        text = read_list(file).decode("utf-8-sig")
        reader = csv.reader(io.StringIO(text, newline=None), strict=True)  # any line ending
        records = [(reader.line_num, fields) for fields in reader if any(fields)]
    except OSError as error:
        raise UserError(
            f"label file '{file}' cannot be read ({error.strerror}); its name is a path below "
            "the data root"
        ) from error
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise UserError(f"'{file}', line {line}: no UTF-8 text; save it as CSV UTF-8") from error
    except csv.Error as error:
        raise UserError(f"'{file}', line {reader.line_num}: {error}; check its quotes") from error
    header = [field.strip() for field in records[0][1]] if records else []
    if header != ["path", column] and (header, column) != (["path", "labels", "boxes"], "labels"):
        other = next((mark for mark in ";\t" if any(mark in field for field in header)), "")
        kind = {";": " separated by semicolons", "\t": " separated by tabs", "": ""}[other]
        raise UserError(f"'{file}', line 1: unknown header '{','.join(header)}'{kind}; expected "
                        f"path,{column}, separated by commas")  # fmt: skip
    return header, records[1:]


def _labels(text: str, column: str, where: str) -> list[str]:
    if column == "labels" and not text.strip():
        return []  # the image shows none of the classes
    names = text.split("|") if column == "labels" else [text]
    labels = [compose_accents(name.strip()) for name in names]
    if "" in labels:
        raise UserError(f"{where}: a label is empty")
    return labels


def _objects(labels: list[str], text: str, where: str) -> tuple[tuple[str, Box], ...]:
    """The label and the box of every object."""
    parts = text.split("|") if text.strip() else []
    if len(parts) != len(labels):
        raise UserError(f"{where}: {len(labels)} labels and {len(parts)} boxes; give one for each")
    return tuple(zip(labels, (_box(part, where) for part in parts), strict=True))


def _box(text: str, where: str) -> Box:
    with contextlib.suppress(ValueError):
        x0, y0, x1, y1 = box = tuple(float(number) for number in text.split())
        if 0 <= x0 < x1 <= 1 and 0 <= y0 < y1 <= 1:
            return box
    raise UserError(
        f"{where}: box '{text.strip()}'; expected x0 y0 x1 y1 as fractions of the image, with "
        "0 <= x0 < x1 <= 1 and 0 <= y0 < y1 <= 1"
    )


def _existing(root: Path, text: str, where: str) -> str:
    """The path of an image below the folder, in the spelling of the file system."""
    path = PurePosixPath(text)
    if path.is_absolute() or ".." in path.parts or re.match(r"[A-Za-z]:[\\/]|\\", text):
        raise UserError(f"{where}: '{text}' leads out of '{root}'; write paths below that folder")
    for form in ("", "NFC", "NFD"):
        spelt = unicodedata.normalize(form, path.as_posix()) if form else path.as_posix()
        if os.path.isfile(root / spelt):  # unlike Path.is_file it takes names of any length
            return spelt
    hint = "; write '/' between folders" if "\\" in text else ""
    raise UserError(f"{where}: image '{text}' is not in '{root}'{hint}")
