"""The checkpoint of a run: a stopped run continues from it to the same result."""

import copy
import dataclasses
import os
import time
from pathlib import Path
from typing import Any

import torch

from spcl_lib.config import RunConfig
from spcl_lib.system import ranks
from spcl_lib.system.checksums import DamagedError, load_saved, put_aside, raise_if_sound
from spcl_lib.system.files import atomic_write
from spcl_lib.train import Progress

# A stopped run loses at most this time; more if a save takes over 3 seconds (large banks), so that
# saving takes a tenth of the time at most.
CHECKPOINT_SECONDS = float(os.environ.get("SPCL_CHECKPOINT_SECONDS") or 30)
_NAMES = ("checkpoint.pt", "checkpoint.previous.pt")  # the newest first


class Checkpoint:
    """Saves and restores everything that a run needs to continue, in one atomic file.

    `parts` are the model, the optimizer, the method, and more. The checkpoint before the newest is
    kept, too. It replaces the newest if that is damaged. With several ranks, rank 0 writes what all
    of them keep about their images; every rank reads it.
    """

    def __init__(self, folder: Path, config: RunConfig, **parts: Any) -> None:
        self.files, self.config = [folder / name for name in _NAMES], config
        self.parts, self.saved, self.cost = parts, time.monotonic(), 0.0

    def after_step(self, progress: Progress) -> None:
        """Saves when it is time, and at the end: the results are not written yet."""
        wait = CHECKPOINT_SECONDS * max(1.0, self.cost / 3)
        is_due = ranks.from_first(
            lambda: time.monotonic() - self.saved >= wait or progress.epoch == self.config.epochs
        )
        if is_due:
            self.save(progress)

    def save(self, progress: Progress) -> None:
        """Writes the file; the old files stay until the new one is complete on disk."""
        began = time.monotonic()
        state = {name: part.state_dict() for name, part in self.parts.items()}
        for name in ("method", "optimizer"):  # each rank knows its own images
            state[name] = ranks.merge(state[name])
        state["config"], state["rng"] = self.config.flat(), torch.get_rng_state()
        state["progress"] = dataclasses.asdict(progress)
        ranks.from_first(lambda: self._write(state))
        self.saved = time.monotonic()
        self.cost = self.saved - began

    def _write(self, state: dict[str, Any]) -> None:
        newest, previous = self.files
        with atomic_write(newest) as temporary:
            with open(temporary, "wb") as handle:  # with a path, torch would not report a full disk
                torch.save(state, handle)  # a zip, with a checksum of every part
            if newest.exists():
                os.replace(newest, previous)

    def load(self) -> Progress:
        """Restores all parts and returns the progress; a new progress without a checkpoint.

        After a DamagedError, a damaged checkpoint has been put aside, and some parts may have been
        restored: build all of them again, and call this again.
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
            saved = RunConfig.from_flat(state["config"])  # snapshots do not change a training
            if saved != self.config.replace(snapshots=self.config.snapshots or saved.snapshots):
                raise DamagedError("it is of another configuration")
            for name, part in self.parts.items():
                own = state[name] if name == "method" else copy.deepcopy(state[name])
                part.load_state_dict(own)  # an optimiser keeps the tensors that it gets
            torch.set_rng_state(state["rng"])
            return Progress(**state["progress"])
        except Exception as error:  # each part raises kinds of its own for a state that is not its
            raise_if_sound(error)
            put_aside(file, error)
            raise DamagedError(str(error)) from error


def remove_checkpoints(folder: Path) -> None:
    """Removes the checkpoints of a run."""
    for name in _NAMES:
        (folder / name).unlink(missing_ok=True)
