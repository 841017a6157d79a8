"""The checkpoint of a run: a stopped run continues from it to the same result."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import math
import os
import time
from pathlib import Path
from typing import Any

import torch

from spcl_lib.config import RunConfig
from spcl_lib.methods import Method
from spcl_lib.model import SpatialClassifier
from spcl_lib.runs.snapshots import Recorder
from spcl_lib.system import ranks
from spcl_lib.system.checksums import DamagedError, load_saved, raise_if_sound
from spcl_lib.system.errors import UserError
from spcl_lib.system.files import atomic_write
from spcl_lib.train import Progress


def _seconds(variable: str, default: float) -> float:
    text = os.environ.get(variable) or str(default)
    with contextlib.suppress(ValueError):
        if 0 <= float(text) < math.inf:
            return float(text)
    raise UserError(
        f"the environment variable {variable} must be a number of seconds, 0 or more; got '{text}'"
    )


# A stopped run loses at most this time, and at most one epoch. The import reports a wrong value.
CHECKPOINT_SECONDS = _seconds("SPCL_CHECKPOINT_SECONDS", 30.0)
_SHORT_SECONDS = 3.0  # a shorter epoch does not get its own save


_LONGEST_SHARE = 0.1  # of the time of a run, to save checkpoints
_NAMES = ("checkpoint.pt", "checkpoint.previous.pt")  # the newest first


class Checkpoint:
    """Saves and restores everything that a run needs to continue, in one atomic file.

    The checkpoint before the newest is kept, too. It replaces the newest if that is damaged.

    With several ranks, rank 0 writes what all of them keep about their images; every rank reads it.

    Args:
        folder: folder of the run.
        config: configuration of the run.
        model: the network.
        optimizer: its optimiser.
        method: loss and running averages.
        recorder: the snapshots, if the run takes some.
    """

    def __init__(
        self,
        folder: Path,
        config: RunConfig,
        model: SpatialClassifier,
        optimizer: torch.optim.Optimizer,
        method: Method,
        recorder: Recorder | None = None,
    ) -> None:
        self.files, self.config = [folder / name for name in _NAMES], config
        self.parts = {"model": model, "optimizer": optimizer, "method": method}
        if recorder is not None:
            self.parts["snapshots"] = recorder
        self.saved, self.cost = time.monotonic(), 0.0

    def after_step(self, progress: Progress) -> bool:
        """Saves at the end of an epoch, and during an epoch after CHECKPOINT_SECONDS.

        A short epoch does not get its own save, because the save would take longer than the epoch.
        The end of the training always gets one, because the results are not written yet. If a save
        takes long, the next one waits longer: it takes a tenth of the time at most.

        Returns:
            Whether this call has saved.
        """
        wait = CHECKPOINT_SECONDS if progress.step else min(_SHORT_SECONDS, CHECKPOINT_SECONDS)
        if wait:
            wait = max(wait, self.cost / _LONGEST_SHARE)
        due = ranks.from_first(
            lambda: time.monotonic() - self.saved >= wait or progress.epoch == self.config.epochs
        )
        if due:
            self.save(progress)
        return due

    def save(self, progress: Progress) -> None:
        """Writes the file; the old files stay until the new one is complete on disk."""
        began = time.monotonic()
        state = {name: part.state_dict() for name, part in self.parts.items()}
        state |= {
            "config": self.config.flat(),
            "progress": dataclasses.asdict(progress),
            "rng": torch.get_rng_state(),
        }
        for name in ("method", "optimizer"):  # each rank knows its own images
            state[name] = ranks.merge_all(state[name])
        ranks.from_first(lambda: self._write(state))
        self.saved = time.monotonic()
        self.cost = self.saved - began

    def _write(self, state: dict[str, Any]) -> None:
        newest, previous = self.files
        with atomic_write(newest) as temporary:
            with open(temporary, "wb") as handle:
                torch.save(state, handle)  # a zip, with a checksum of every part
                handle.flush()
                os.fsync(handle.fileno())
            with contextlib.suppress(FileNotFoundError):
                os.replace(newest, previous)

    def load(self) -> Progress:
        """Restores all parts and returns the progress; a new progress without a checkpoint.

        Raises:
            DamagedError: the checkpoint was damaged, and has been put aside. Some parts may be
                restored and others not: build all of them again, and call this again.
        """
        progress = ranks.from_first(self._load)  # finds any damage; then the others may read it
        if ranks.rank() > 0 and progress != Progress():
            self._load()
        return progress

    def _load(self) -> Progress:
        file = next((file for file in self.files if file.exists()), None)
        if file is None:
            return Progress()
        try:
            state = load_saved(file, mmap=True)  # heatmaps may be larger than the memory
            if RunConfig.from_flat(state["config"]) != self.config:
                name = file.parent.name
                print(f"{name}: the checkpoint is of another configuration; starting")
                return Progress()
            for name, part in self.parts.items():
                own = state[name] if name == "method" else copy.deepcopy(state[name])
                part.load_state_dict(own)  # an optimiser keeps the tensors that it gets
            torch.set_rng_state(state["rng"])
            return Progress(**state["progress"])
        except UserError:
            raise
        except Exception as error:  # each part raises kinds of its own for a state that is not its
            raise_if_sound(error)
            self._put_aside(file, error)
            raise DamagedError(str(error)) from error

    def _put_aside(self, file: Path, error: Exception) -> None:
        aside = file.with_name(f"{file.name}.damaged")
        os.replace(file, aside)
        is_one_left = any(file.exists() for file in self.files)
        then = "goes on from the one before" if is_one_left else "starts again"
        reason = str(error).strip().partition("\n")[0]
        print(
            f"spcl: the checkpoint '{file}' is damaged or of another version of spcl "
            f"({type(error).__name__}: {reason}); the run {then}. The file is kept as "
            f"'{aside.name}'",
            flush=True,
        )


def remove_checkpoints(folder: Path) -> None:
    """Removes the checkpoints of a run."""
    for name in _NAMES:
        (folder / name).unlink(missing_ok=True)
