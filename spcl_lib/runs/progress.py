"""Writes history.csv of a run, with a row for every finished epoch, and reads it during the run.

The file is written again after every epoch. So the command line, the scheduler's bar and people can
see how far a run is. The run itself prints nothing, because its output may go into a notebook.
"""

from __future__ import annotations

import contextlib
import csv
import io
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from tqdm import tqdm

from spcl_lib.config import RunConfig
from spcl_lib.runs.store import REPEAT
from spcl_lib.system.errors import UserError
from spcl_lib.system.files import atomic_write, read_list

_COLUMNS = ("epoch", "loss", "mAP")  # mAP is empty in epochs without evaluation
_LOOK_SECONDS = 0.5


def write_history(folder: Path, history: Sequence[Mapping[str, float]]) -> None:
    """Replaces history.csv in a run's folder."""
    with (
        atomic_write(folder / "history.csv") as temporary,
        open(temporary, "w", newline="") as handle,
    ):
        writer = csv.DictWriter(handle, _COLUMNS)
        writer.writeheader()
        writer.writerows(history)


class Follower:
    """Reads the history of a run that is about to start, and ignores an older history.

    Args:
        folder: folder of the run; a repeat writes its history in a folder below, until it ends.
    """

    def __init__(self, folder: Path) -> None:
        files = folder / REPEAT / "history.csv", folder / "history.csv"
        self._before = {file: _stamp(file) for file in files}

    def rows(self) -> list[dict[str, str]]:
        """All finished epochs, also those before an interruption; empty until the run trains."""
        for file, before in self._before.items():
            if _stamp(file) not in (None, before):
                return _read(file)
        return []


def _read(file: Path) -> list[dict[str, str]]:
    """The rows of a history; none if it is damaged: it is only shown, and soon written again."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError, csv.Error):
        rows = list(csv.DictReader(io.StringIO(read_list(file).decode(), newline=""), strict=True))
        for row in rows:
            int(row["epoch"]), float(row["loss"]), float(row["mAP"] or 0)
        return rows
    return []


def _stamp(file: Path) -> tuple[int, int] | None:
    with contextlib.suppress(OSError):
        status = file.stat()
        return status.st_ino, status.st_mtime_ns
    return None


Listener = Callable[[Mapping[str, str]], None]  # gets the rows of a history as they come


@contextlib.contextmanager
def tell_epochs(folder: Path, *listeners: Listener) -> Iterator[None]:
    """Tells the listeners of every epoch that the run in `folder` finishes in this block."""
    follower, done = Follower(folder), threading.Event()
    told = 0

    def tell() -> None:
        nonlocal told
        rows = follower.rows()
        for row in rows[told:]:
            for listener in listeners:
                listener(row)
        told = len(rows)

    def watch() -> None:
        while not done.wait(_LOOK_SECONDS):
            tell()

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        tell()


def line_printer(config: RunConfig) -> Listener:
    """Writes a line to stderr for every epoch of a run."""

    def write(row: Mapping[str, str]) -> None:
        clock = time.strftime("%H:%M:%S")
        tqdm.write(f"{clock} {describe_epoch(config, row)}", file=sys.stderr)

    return write


def describe_epoch(config: RunConfig, row: Mapping[str, str]) -> str:
    """Says which epoch of which run has ended, with its loss and its mAP if there is one."""
    score = f", mAP {float(row['mAP']):.1f} %" if row["mAP"] else ""
    return (
        f"{config.method} seed {config.seed}: epoch {row['epoch']} of {config.epochs}, "
        f"loss {float(row['loss']):.4f}{score}"
    )


def tensorboard_writer(folder: Path) -> Listener:
    """Writes loss and mAP of every epoch as TensorBoard's events.

    A run that goes on, or is repeated, replaces what its earlier process wrote of these epochs.

    Raises:
        UserError: TensorBoard is not installed, or the folder cannot be written.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise UserError("--tensorboard needs a package: pip install tensorboard") from error
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"'{folder}' cannot be written ({error.strerror})") from error
    writer = None

    def write(row: Mapping[str, str]) -> None:
        nonlocal writer
        epoch = int(row["epoch"])
        writer = writer or SummaryWriter(str(folder), purge_step=epoch)
        for name in ("loss", "mAP"):
            if row[name]:
                writer.add_scalar(name, float(row[name]), epoch)
        writer.flush()

    return write
