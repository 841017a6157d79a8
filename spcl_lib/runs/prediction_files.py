"""Files of predictions: CSV or JSON, with a row per image."""

from __future__ import annotations

import contextlib
import csv
import json
import re
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import IO

from torch import Tensor

from spcl_lib.system.errors import UserError
from spcl_lib.system.files import atomic_write
from spcl_lib.system.paths import real_path

FORMATS = ("csv", "json")
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")  # with these a spreadsheet starts a formula
_OPEN = {"encoding": "utf-8", "errors": "surrogateescape", "newline": ""}  # names as they are

# Writes the row of an image: its path, its scores (C,) and its labels.
WriteRow = Callable[[str, Tensor, Sequence[str]], None]


@contextlib.contextmanager
def open_predictions(out: Path, form: str, classes: Sequence[str]) -> Iterator[WriteRow]:
    """Gives a function that writes a row; the file appears when all rows are written.

    Args:
        out: the file; what is there is replaced.
        form: one of FORMATS.
        classes: C names.
    """
    writer = {"csv": _csv_writer, "json": _json_writer}[form]
    with (
        atomic_write(real_path(out)) as temporary,  # a link stays a link
        open(temporary, "w", **_OPEN) as handle,
        writer(handle, classes) as write,
    ):
        yield write


def check_place(out: Path, force: bool) -> None:
    """Refuses a place where something else than predictions would be lost."""
    if out.exists() and not out.is_file():
        raise UserError(f"'{out}' is no regular file; give the name of a CSV or JSON file")
    if out.is_file() and not force and not _holds_predictions(out):
        raise UserError(
            f"'{out}' exists and holds no predictions; give another name, or --force to replace it"
        )


def _holds_predictions(file: Path) -> bool:
    """Whether it is empty, or its first rows look like predictions."""
    with open(file, **_OPEN) as handle, contextlib.suppress(csv.Error):
        start = handle.read(12)
        if not start or start == '[\n{"path": "':
            return True
        handle.seek(0)
        header, row = [*islice(csv.reader(handle), 2), [], []][:2]
        scores = all(re.fullmatch(r"[01]\.\d{4}", text) for text in row[1:-1])
        ends = header[:1] + header[-1:] == ["path", "labels"]
        return ends and scores and len(header) == len(row) > 2
    return False


@contextlib.contextmanager
def _csv_writer(handle: IO[str], classes: Sequence[str]) -> Iterator[WriteRow]:
    writer = csv.writer(handle, lineterminator="\n")
    taken = ("path", "labels")
    writer.writerow(["path", *(f"{c} (class)" if c in taken else plain(c) for c in classes),
                     "labels"])  # fmt: skip

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


@contextlib.contextmanager
def _json_writer(handle: IO[str], classes: Sequence[str]) -> Iterator[WriteRow]:
    """A list with an object on each line, so that the rows need not fit into memory."""
    before = "[\n"

    def write(name: str, scores: Tensor, labels: Sequence[str]) -> None:
        nonlocal before
        values = (round(value, 4) for value in scores.tolist())
        row = {"path": name, "scores": dict(zip(classes, values, strict=True)), "labels": labels}
        handle.write(before + json.dumps(row))
        before = ",\n"

    yield write
    handle.write("\n]\n")
