"""Files of predictions: CSV, JSON or Parquet, with a row per image."""

from __future__ import annotations

import contextlib
import csv
import glob
import io
import json
import os
import re
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import IO

from torch import Tensor

from spcl_lib.system.errors import UserError
from spcl_lib.system.files import atomic_write, parse_json, remove_stale
from spcl_lib.system.paths import real_path

FORMATS = ("csv", "json", "parquet")
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")  # with these a spreadsheet starts a formula
_START = 2**22  # bytes; a file without a line end must not fill the memory

# Writes the row of an image: its path, its scores (C,) and its labels.
WriteRow = Callable[[str, Tensor, Sequence[str]], None]


def format_of(out: Path, given: str | None) -> str:
    """The format that is given, else the one that the name ends with, else "csv".

    Raises:
        UserError: it is parquet, and a package that writes it is missing.
    """
    ending = out.suffix.lower().removeprefix(".")
    form = given or (ending if ending in FORMATS else "csv")
    if form == "parquet":
        try:
            import pandas  # noqa: F401
            import pyarrow  # noqa: F401
        except ImportError as error:
            raise UserError(
                f"--format parquet needs the package '{error.name}': pip install pandas pyarrow; "
                "or take --format csv"
            ) from error
    return form


def check_place(out: Path, form: str, force: bool) -> None:
    """Refuses a place where something else than predictions of this format would be lost."""
    kind = {"csv": "CSV", "json": "JSON", "parquet": "Parquet"}[form]
    if out.is_dir():
        raise UserError(f"'{out}' is a folder; give the name of a {kind} file")
    if not os.path.lexists(out):
        return
    if not out.is_file():
        raise UserError(f"'{out}' is no regular file; give the name of a {kind} file")
    if not (force or out.stat().st_size == 0 or _HOLDS[form](out)):
        raise UserError(
            f"'{out}' exists and holds no predictions; give another name, or --force to replace it"
        )


@contextlib.contextmanager
def open_predictions(out: Path, form: str, classes: Sequence[str]) -> Iterator[WriteRow]:
    """Gives a function that writes a row; the file appears when all rows are written.

    Args:
        out: the file; what is there is replaced.
        form: one of FORMATS.
        classes: C names.
    """
    out = real_path(out)  # a link stays a link
    remove_stale(out.parent, f".{glob.escape(out.name)}")
    with atomic_write(out) as temporary, _WRITERS[form](temporary, classes) as write:
        yield write


# --- CSV ------------------------------------------------------------------------------------------


def columns(classes: Sequence[str]) -> list[str]:
    """Header of a CSV or Parquet file: path, the classes, labels.

    If a class has the name of another column, it gets a number, such as "path (2)".
    """
    names = ["path"]
    for name in map(plain, classes):
        column, number = name, 2
        while column in (*names, "labels"):
            column, number = f"{name} ({number})", number + 1
        names.append(column)
    return [*names, "labels"]


@contextlib.contextmanager
def _csv(file: Path, classes: Sequence[str]) -> Iterator[WriteRow]:
    # File names that are not valid text are written unchanged.
    with open(file, "w", encoding="utf-8", errors="surrogateescape", newline="") as handle:
        writer = csv.writer(handle, lineterminator="\n")
        writer.writerow(columns(classes))

        def write(name: str, scores: Tensor, labels: Sequence[str]) -> None:
            values = (f"{value:.4f}" for value in scores.tolist())
            writer.writerow([plain_path(name), *values, plain("|".join(labels))])

        yield write


def plain_path(name: str) -> str:
    """A path that a spreadsheet does not take for a formula; it means the same file."""
    return f"./{name}" if name.startswith(_FORMULA) else name


def plain(text: str) -> str:
    """A text that a spreadsheet does not take for a formula."""
    return f"'{text}" if text.startswith(_FORMULA) else text


def _holds_csv(file: Path) -> bool:
    """Whether the first two lines look like predictions."""
    with _open(file) as handle:
        start = handle.read(_START)
    try:
        rows = list(islice(csv.reader(io.StringIO(start, newline="")), 2))
    except csv.Error:
        return False
    if len(rows) < 2:
        return False
    header, row = rows
    are_scores = all(re.fullmatch(r"[01]\.\d{4}", text) for text in row[1:-1])
    ends = header[:1] + header[-1:]
    return len(header) == len(row) > 2 and ends == ["path", "labels"] and are_scores


# --- JSON -----------------------------------------------------------------------------------------

_KEYS = ["path", "scores", "labels"]


@contextlib.contextmanager
def _json(file: Path, classes: Sequence[str]) -> Iterator[WriteRow]:
    """A list with an object on each line, so that the rows need not fit into memory."""
    with open(file, "w", encoding="ascii") as handle:

        def write(name: str, scores: Tensor, labels: Sequence[str]) -> None:
            values = (round(value, 4) for value in scores.tolist())
            row = (name, dict(zip(classes, values, strict=True)), list(labels))
            handle.write(f"{'[' if handle.tell() == 0 else ','}\n")
            handle.write(json.dumps(dict(zip(_KEYS, row, strict=True))))

        yield write
        handle.write("\n]\n")


def _holds_json(file: Path) -> bool:
    """Whether the first row looks like a prediction."""
    with _open(file) as handle:
        if handle.readline(_START) != "[\n":
            return False
        line = handle.readline(_START)
    try:
        row = parse_json(line.rstrip("\n").removesuffix(","))
    except ValueError:
        return False
    return isinstance(row, dict) and list(row) == _KEYS


# --- Parquet --------------------------------------------------------------------------------------


@contextlib.contextmanager
def _parquet(file: Path, classes: Sequence[str]) -> Iterator[WriteRow]:
    """A column of float per class, and the labels as lists of texts."""
    import pandas as pd

    rows: list[list[object]] = []

    def write(name: str, scores: Tensor, labels: Sequence[str]) -> None:
        path = os.fsencode(name).decode("utf-8", "backslashreplace")
        rows.append([path, *scores.tolist(), list(labels)])

    yield write
    pd.DataFrame(rows, columns=columns(classes)).to_parquet(file, engine="pyarrow", index=False)


def _holds_parquet(file: Path) -> bool:
    import pyarrow.parquet

    try:
        names = pyarrow.parquet.read_schema(file).names
    except (OSError, ValueError):
        return False
    return len(names) > 2 and [names[0], names[-1]] == ["path", "labels"]


def _open(file: Path) -> IO[str]:
    return open(file, encoding="utf-8", errors="surrogateescape", newline="")


_WRITERS = {"csv": _csv, "json": _json, "parquet": _parquet}
_HOLDS = {"csv": _holds_csv, "json": _holds_json, "parquet": _holds_parquet}
