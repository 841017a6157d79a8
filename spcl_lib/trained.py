"""A finished run, loaded: its network, its data, its running averages, and what it followed."""

from __future__ import annotations

from collections.abc import Sequence
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
from spcl_lib.results import label
from spcl_lib.snapshots import load_snapshots


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
        options = f"--dataset {config.dataset} --method {config.method} --seed {config.seed}"
        raise UserError(
            f"the run '{run_folder(config)}' is not finished; train it first: python -m spcl_lib "
            f"run {options} --profile {config.profile}, with the same --set as here"
        )
    train, report = splits or load_splits(config, data_root)
    untrained = replace(config, weights="none")  # only the shape is needed here
    model, _ = build_model(untrained, len(train.classes), data_root)
    folder = run_folder(config)
    model.load_state_dict(_read(folder / "weights.safetensors"))
    observed = draw_labels(train, config.draw, config.label_seed)
    stored = folder / "bank.safetensors"
    bank = HeatmapBank.of(**_read(stored)) if stored.is_file() else None
    return Trained(config, metrics, model.eval(), train, report, observed, bank)


@dataclass(frozen=True)
class Trace:
    """What a finished run left of a few training images.

    Attributes:
        name: of the run, for the list of runs.
        data: the images, with full labels and, where known, regions (for the eye only: training
            has never seen them).
        observed: (n, C) bool, the single labels.
        epochs: E numbers of epochs done, ascending.
        heatmaps: (E, n, C, W, W) uint8, the running averages after these epochs.
        seen: (E, n, W, W) bool, the cells that had been seen.
        model: the finished network.
        crop_side: side of the crops that it was trained on, in pixels.
    """

    name: str
    data: ImageSet
    observed: Tensor
    epochs: Sequence[int]
    heatmaps: Tensor
    seen: Tensor
    model: SpatialClassifier
    crop_side: int

    def bank(self, epoch: int, image: int) -> HeatmapBank:
        """The running averages of one image after `epochs[epoch]` epochs, as a bank of one."""
        one = slice(image, image + 1)
        return HeatmapBank.of(self.heatmaps[epoch, one], self.seen[epoch, one])

    def region(self, image: int) -> Tensor | None:
        """(C, S, S) bool, where each class is in an image; None where that is not known."""
        try:
            return self.data.regions(torch.tensor([image]))[0]
        except ValueError:
            return None

    def hidden(self) -> Tensor:
        """(n, C) bool: the classes that are there, but were never labelled."""
        return self.data.labels & ~self.observed

    def most_corrected(self) -> list[int]:
        """The images, first those whose heatmaps found most of what nobody labelled."""
        found = self.heatmaps[-1].flatten(2).amax(2).float() / 255  # (n, C)
        return (found * self.hidden()).sum(1).argsort(descending=True, stable=True).tolist()


def load_trace(config: RunConfig, data_root: str | Path | None = None) -> Trace:
    """The trace of a finished run that followed some images (`snapshots` above 0).

    A method without heatmaps (AN, CL, EN, Full) shows the network's own score maps of the whole
    images after every epoch instead: what its heatmaps would be made of.

    Args:
        config: of the run.
        data_root: see `paths.data_root`.

    Raises:
        UserError: the run is not finished, or has no snapshots.
    """
    run = load_run(config, data_root, load_splits(config, data_root, objects=True))
    kept = load_snapshots(run.folder)
    first = torch.arange(kept.maps.shape[1])
    spatial = kept.heatmaps is not None and kept.heatmaps.shape[-1] > 1
    heatmaps = kept.heatmaps if spatial else kept.maps
    seen = kept.seen if spatial else torch.ones_like(kept.maps[:, :, 0], dtype=torch.bool)
    return Trace(
        f"{label(config.method)}, seed {config.seed}", run.train.subset(first),
        run.observed[first], range(1, len(kept) + 1), heatmaps, seen, run.model,
        config.crop_side,
    )  # fmt: skip


def _read(file: Path) -> dict[str, Tensor]:
    try:
        return load_file(file)
    except Exception as error:  # safetensors raises many kinds for a damaged file
        raise UserError(f"'{file}' cannot be read ({error}); run it again with --force") from error
