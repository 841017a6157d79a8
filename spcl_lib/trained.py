"""A finished run, loaded: its network, its data, and its running averages."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from spcl_lib.bank import HeatmapBank
from spcl_lib.config import RunConfig
from spcl_lib.data import ImageSet, draw_labels, load_splits
from spcl_lib.errors import UserError
from spcl_lib.evaluate import predict_maps
from spcl_lib.experiment import build_model, finished, run_folder
from spcl_lib.model import SpatialClassifier


@dataclass(frozen=True)
class Trained:
    """A finished run.

    Attributes:
        config: what was run.
        metrics: content of its metrics.json.
        model: the trained network, in evaluation mode.
        train: the images it was trained on.
        report: the images it was evaluated on.
        observed: (N, C) bool, the single labels of `train` (also for the method "full").
        bank: the running averages at the end of training; None for methods without.
    """

    config: RunConfig
    metrics: dict[str, object]
    model: SpatialClassifier
    train: ImageSet
    report: ImageSet
    observed: Tensor
    bank: HeatmapBank | None

    @property
    def folder(self) -> Path:
        """Where its files are."""
        return run_folder(self.config)

    @cached_property
    def grid(self) -> int:
        """G, cells along each side of the score maps of a training crop."""
        side = self.config.crop_side
        crop = torch.zeros((1, 3, side, side), dtype=torch.uint8)
        return predict_maps(self.model, crop, side, self.config.amp).shape[-1]


def load_run(
    config: RunConfig,
    data_root: str | Path | None = None,
    splits: tuple[ImageSet, ImageSet] | None = None,
) -> Trained:
    """Loads a finished run.

    Args:
        config: of the run.
        data_root: see `paths.data_root`.
        splits: what `load_splits` gives for this configuration, if it has been loaded already.

    Raises:
        UserError: the run is not finished, its files are damaged, or the data are missing.
    """
    metrics = finished(config)
    if metrics is None:
        raise UserError(f"the run '{run_folder(config)}' is not finished; train it first")
    train, report = splits or load_splits(config, data_root)
    untrained = replace(config, weights="none")  # only the shape is needed here
    model, _ = build_model(untrained, len(train.classes), data_root)
    folder = run_folder(config)
    model.load_state_dict(_read(folder / "weights.safetensors"))
    observed = draw_labels(train, config.draw, config.label_seed)
    stored = folder / "bank.safetensors"
    bank = HeatmapBank.of(**_read(stored)) if stored.is_file() else None
    return Trained(config, metrics, model.eval(), train, report, observed, bank)


def _read(file: Path) -> dict[str, Tensor]:
    try:
        return load_file(file)
    except Exception as error:  # safetensors raises many kinds for a damaged file
        raise UserError(f"'{file}' cannot be read ({error}); run it again with --force") from error
