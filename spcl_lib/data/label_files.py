"""Reads CSV files of labels; an error in a line names the line."""

from __future__ import annotations

import contextlib
import csv
import io
import os
import re
import unicodedata
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from spcl_lib.system.errors import UserError
from spcl_lib.system.files import read_list

Box = tuple[float, ...]  # x0, y0, x1, y1 as fractions of the image


@dataclass(frozen=True)
class LabelRow:
    """Labels of one image, and the number of their line.

    `objects` has the label and the box of every object; None if the file has no boxes.
    """

    labels: frozenset[str]
    line: int
    objects: tuple[tuple[str, Box], ...] | None = None


def read_label_file(root: Path, name: str, column: str) -> dict[str, LabelRow]:
    """Rows of a CSV file by image path, in the order of the file.

    The file is UTF-8, with or without a byte order mark. All line endings are allowed. Fields with
    commas need quotes. Repeated lines are dropped.

    Args:
        root: the file and the paths in it are relative to this folder.
        name: name of the file.
        column: "label" for one label per image; "labels" for any number, with "|" between them.
            With "labels", a third column "boxes" may give a box for each label: "x0 y0 x1 y1" as
            fractions of the image, with "|" between boxes. Then each object has its own label.

    Raises:
        UserError: the file is missing or malformed, or names an image that is not in the folder.
    """
    file = root / name
    rows: dict[str, LabelRow] = {}
    (_, header), *records = _records(file, column)
    for line, fields in records:
        where = f"'{file}', line {line}"
        if len(fields) != len(header):
            raise UserError(
                f"{where}: {len(fields)} fields; expected {','.join(header)} (quote fields with "
                "commas)"
            )
        path = _existing(root, fields[0], where)
        names = _labels(fields[1], column, where)
        objects = _objects(names, fields[2], where) if len(header) == 3 else None
        row = LabelRow(frozenset(names), line, objects)
        if path in rows and (rows[path].labels, rows[path].objects) != (row.labels, objects):
            raise UserError(
                f"{where}: '{path}' has other labels in line {rows[path].line}; give every image "
                "one line" + (", with one label" if column == "label" else "")
            )
        rows.setdefault(path, row)
    if not rows:
        raise UserError(f"'{file}' names no image; expected lines of path,{column}")
    return rows


def column_of(file: Path) -> str:
    """Whether a file has one label per image ("label") or all of them ("labels").

    A file that cannot be read counts as "labels"; `read_label_file` says what is wrong with it.
    """
    with contextlib.suppress(OSError):
        start = read_list(file).decode("utf-8-sig", "replace").lstrip().split("\n", 1)[0]
        if [field.strip() for field in start.split(",")] == ["path", "label"]:
            return "label"
    return "labels"


def compose_accents(text: str) -> str:
    """A name with accents in one form; file systems and editors use different forms."""
    return unicodedata.normalize("NFC", text)


def _records(file: Path, column: str) -> list[tuple[int, list[str]]]:
    """Line numbers and fields of the header and of all lines that are not empty."""
    try:
        text = read_list(file).decode("utf-8-sig")
    except OSError as error:
        raise UserError(
            f"label file '{file}' cannot be read ({error.strerror}); its name is a path below "
            "the data root"
        ) from error
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise UserError(f"'{file}', line {line}: no UTF-8 text; save it as CSV UTF-8") from error
    reader = csv.reader(io.StringIO(text, newline=None), strict=True)  # any line ending
    try:
        records = [(reader.line_num, fields) for fields in reader if any(fields)]
    except csv.Error as error:
        raise UserError(f"'{file}', line {reader.line_num}: {error}; check its quotes") from error
    header = [field.strip() for field in records[0][1]] if records else []
    _check_header(file, header, column)
    return [(1, header), *records[1:]]


def _check_header(file: Path, fields: list[str], column: str) -> None:
    if fields == ["path", column] or fields == ["path", "labels", "boxes"] and column == "labels":
        return
    other = next((mark for mark in ";\t" if any(mark in field for field in fields)), None)
    if other is not None:
        name = {";": "semicolons", "\t": "tabs"}[other]
        raise UserError(f"'{file}' separates its fields by {name}; save it with commas")
    raise UserError(
        f"'{file}', line 1: unknown header '{','.join(fields)}'; expected path,{column}"
    )


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
    try:
        x0, y0, x1, y1 = box = tuple(float(number) for number in text.split())
    except ValueError:
        x0 = y0 = x1 = y1 = -1.0
        box = ()
    if not (0 <= x0 < x1 <= 1 and 0 <= y0 < y1 <= 1):
        raise UserError(
            f"{where}: box '{text.strip()}'; expected x0 y0 x1 y1 as fractions of the image, with "
            "0 <= x0 < x1 <= 1 and 0 <= y0 < y1 <= 1"
        )
    return box


def _existing(root: Path, text: str, where: str) -> str:
    """The path of an image below the folder, in the spelling of the file system."""
    path = PurePosixPath(text)
    if path.is_absolute() or ".." in path.parts or re.match(r"[A-Za-z]:[\\/]|\\", text):
        raise UserError(f"{where}: '{text}' leads out of '{root}'; write paths below that folder")
    for form in (None, "NFC", "NFD"):
        spelt = path.as_posix() if form is None else unicodedata.normalize(form, path.as_posix())
        if os.path.isfile(root / spelt):  # unlike Path.is_file it takes names of any length
            return spelt
    hint = "; write '/' between folders" if "\\" in text else ""
    raise UserError(f"{where}: image '{text}' is not in '{root}'{hint}")
