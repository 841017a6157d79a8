"""What a run tells at the end of every epoch: history.csv, a line on stderr, TensorBoard's events.

A run calls back after every step and epoch; these are listeners for `run(on_epoch=...)`. The run
itself prints nothing, because its output may go into a notebook.
"""

from __future__ import annotations

import csv
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from tqdm import tqdm

from spcl_lib.config import RunConfig
from spcl_lib.system.errors import UserError
from spcl_lib.system.files import atomic_write
from spcl_lib.train import Progress

Listener = Callable[[Progress], None]
_COLUMNS = ("epoch", "loss", "mAP")  # mAP is empty in epochs without evaluation


def write_history(folder: Path, history: Sequence[Mapping[str, float]]) -> None:
    """Replaces history.csv in a run's folder, with a row for every finished epoch."""
    with (
        atomic_write(folder / "history.csv") as temporary,
        open(temporary, "w", newline="") as handle,
    ):
        writer = csv.DictWriter(handle, _COLUMNS)
        writer.writeheader()
        writer.writerows(history)


def line_printer(config: RunConfig) -> Listener:
    """Writes a line to stderr: which epoch has ended, its loss, and its mAP if there is one."""

    def write(progress: Progress) -> None:
        row, clock = progress.history[-1], time.strftime("%H:%M:%S")
        score = f", mAP {row['mAP']:.1f} %" if "mAP" in row else ""
        tqdm.write(
            f"{clock} {config.method} seed {config.seed}: epoch {row['epoch']} of {config.epochs}, "
            f"loss {row['loss']:.4f}{score}",
            file=sys.stderr,
        )

    return write


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

    def write(progress: Progress) -> None:
        nonlocal writer
        row = progress.history[-1]
        writer = writer or SummaryWriter(str(folder), purge_step=row["epoch"])
        for name in row.keys() & {"loss", "mAP"}:
            writer.add_scalar(name, row[name], row["epoch"])
        writer.flush()

    return write
