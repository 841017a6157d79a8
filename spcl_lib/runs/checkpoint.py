"""The checkpoint of a run: a stopped run continues from it to the same result."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import time
from pathlib import Path

import torch

from spcl_lib.config import RunConfig
from spcl_lib.methods import Method
from spcl_lib.model import SpatialClassifier
from spcl_lib.runs.snapshots import Recorder
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


class Checkpoint:
    """Saves and restores everything that a run needs to continue, in one atomic file."""

    def __init__(
        self,
        path: Path,
        config: RunConfig,
        model: SpatialClassifier,
        optimizer: torch.optim.Optimizer,
        method: Method,
        recorder: Recorder | None = None,
    ) -> None:
        self.path, self.config = path, config
        self.parts = {"model": model, "optimizer": optimizer, "method": method}
        if recorder is not None:
            self.parts["snapshots"] = recorder
        self.saved = time.monotonic()

    def after_step(self, progress: Progress) -> bool:
        """Saves at the end of an epoch, and during an epoch after CHECKPOINT_SECONDS.

        A short epoch does not get its own save, because the save would take longer than the epoch.
        The end of the training always gets one, because the results are not written yet.

        Returns:
            Whether this call has saved.
        """
        wait = CHECKPOINT_SECONDS if progress.step else min(_SHORT_SECONDS, CHECKPOINT_SECONDS)
        due = time.monotonic() - self.saved >= wait or progress.epoch == self.config.epochs
        if due:
            self.save(progress)
        return due

    def save(self, progress: Progress) -> None:
        """Writes the file; the old file stays until the new one is complete on disk."""
        state = {name: part.state_dict() for name, part in self.parts.items()}
        state |= {
            "config": self.config.flat(),
            "progress": dataclasses.asdict(progress),
            "rng": torch.get_rng_state(),
        }
        with atomic_write(self.path) as temporary, open(temporary, "wb") as handle:
            torch.save(state, handle)
            handle.flush()
            os.fsync(handle.fileno())
        self.saved = time.monotonic()

    def load(self) -> Progress:
        """Restores all parts and returns the progress; a new progress without a checkpoint."""
        if not self.path.exists():
            return Progress()
        state = torch.load(self.path, map_location="cpu", weights_only=True)
        if state["config"] != self.config.flat():
            print(f"{self.path.parent.name}: the checkpoint is of another configuration; starting")
            return Progress()
        for name, part in self.parts.items():
            part.load_state_dict(state[name])
        torch.set_rng_state(state["rng"])
        return Progress(**state["progress"])
