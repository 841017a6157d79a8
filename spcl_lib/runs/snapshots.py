"""Snapshots: the maps and running averages of a few training images after every epoch.

They show how supervision appears where no label was, and how a crop's target changes while the
network learns. With `RunConfig.snapshots` = K, the first K training images are followed. These
tensors are recorded after every epoch, as uint8 (a probability p becomes round(255 * p)):

    maps      (E, K, C, G, G)  the network's own score maps of the whole images, every method
    heatmaps  (E, K, C, W, W)  the running averages, for methods that keep them; W = 1 for CL and EN
    seen      (E, K, W, W)     the cells of the running averages that have been seen

They take E * K * (C * (G * G + W * W) + W * W) bytes. On scenes (24 epochs, 64 images, 12 classes,
G = 8, W = 16), this is 6.3 MB, and 2.5 % of the time of a training step on one core. Snapshots do
not change the training: they draw no random numbers, and the metrics have the same bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from spcl_lib.bank import HeatmapBank
from spcl_lib.config import RunConfig
from spcl_lib.data.image_set import ImageSet
from spcl_lib.evaluate import predict_maps
from spcl_lib.methods import Method, title_of
from spcl_lib.model import SpatialClassifier, normalise
from spcl_lib.runs.store import FinishedRun, Run, explain_content, read_tensors
from spcl_lib.system import ranks
from spcl_lib.system.errors import UserError
from spcl_lib.system.files import atomic_write
from spcl_lib.system.shapes import require_tensor
from spcl_lib.system.weights import save_tensors
from spcl_lib.train import maps_of_crops, maps_of_features
from spcl_lib.views import Views

FILE = "snapshots.safetensors"
_AT_ONCE = 8  # views that the network predicts at once


class Recorder:
    """Takes the snapshots of a run; the recorder's state is part of the checkpoint.

    Args:
        images: (N, 3, S, S) uint8, the training images.
        config: the run's configuration; `snapshots` is the number of followed images.
    """

    def __init__(self, images: Tensor, config: RunConfig) -> None:
        self.images, self.config = images[: config.snapshots], config
        self.taken: dict[str, list[Tensor]] = {}

    def record(self, model: nn.Module, method: Method) -> None:
        """Adds one snapshot, at the end of an epoch."""
        found = {}
        if method.bank is not None:
            heatmaps, seen = map(ranks.merge, method.bank.stored(slice(len(self.images))))
            found = {"heatmaps": heatmaps.cpu(), "seen": seen.cpu()}
        maps = predict_maps(model, self.images, self.config.eval_side, self.config.amp)
        found = {"maps": method.pooling.heat(maps)} | found
        found = {k: v.clone() if v.dtype == torch.bool else as_bytes(v) for k, v in found.items()}
        for name, tensor in found.items():
            self.taken.setdefault(name, []).append(tensor)

    def save(self, folder: Path) -> None:
        """Writes the file of a finished run."""
        with atomic_write(folder / FILE) as temporary:
            save_tensors(
                {name: torch.stack(parts) for name, parts in self.taken.items()}, temporary
            )

    def state_dict(self) -> dict[str, list[Tensor]]:
        """All snapshots so far."""
        return {name: list(parts) for name, parts in self.taken.items()}

    def load_state_dict(self, state: dict[str, list[Tensor]]) -> None:
        """Restores what `state_dict` gave."""
        self.taken = {name: list(parts) for name, parts in state.items()}


def as_bytes(values: Tensor) -> Tensor:
    """Probabilities as uint8, where 255 means 1; values that are uint8 already are copied."""
    if values.dtype == torch.uint8:
        return values.clone()
    return (values.float() * 255).round().to(torch.uint8).contiguous()


@dataclass(frozen=True)
class Snapshots:
    """The snapshots of a finished run.

    Attributes:
        maps: (E, K, C, G, G) uint8.
        heatmaps: (E, K, C, W, W) uint8, or None for a method without running averages.
        seen: (E, K, W, W) bool, or None.
    """

    maps: Tensor
    heatmaps: Tensor | None
    seen: Tensor | None

    def __len__(self) -> int:
        return len(self.maps)

    def bank(self, epoch: int) -> HeatmapBank:
        """The running averages of the K images as they were after `epoch` epochs (1 to E).

        Raises:
            ValueError: there is no such epoch, or the method keeps no running averages.
        """
        if self.heatmaps is None:
            raise ValueError("this method keeps no running averages")
        if not 1 <= epoch <= len(self):
            raise ValueError(f"epoch must be in 1..{len(self)}; got {epoch}")
        return HeatmapBank.of(self.heatmaps[epoch - 1], self.seen[epoch - 1])


def load_snapshots(folder: Path) -> Snapshots:
    """Reads the snapshots from a finished run's folder.

    Raises:
        UserError: the run has none, or the file cannot be read.
    """
    file = folder / FILE
    if not file.is_file():
        raise UserError(
            f"'{folder}' has no snapshots; train with --set snapshots=64 (images to follow)"
        )
    stored = read_tensors(file)
    with explain_content(file):
        maps, (heatmaps, seen) = stored.pop("maps"), (None, None)
        require_tensor("maps", maps, ("E", "K", "C", "G", "G"), "uint8")
        if stored:
            heatmaps, seen = stored["heatmaps"], stored["seen"]
            require_tensor("heatmaps", heatmaps, (*maps.shape[:3], "W", "W"), "uint8")
            require_tensor("seen", seen, (*maps.shape[:2], *heatmaps.shape[3:]), "bool")
        return Snapshots(maps, heatmaps, seen)


@dataclass(frozen=True)
class Trace:
    """The records of a finished run about a few training images.

    Attributes:
        name: name of the run, for the list of runs.
        data: the images with full labels, and with regions if they are known. They are only for
            display; the training never saw them.
        observed: (n, C) bool, the single labels.
        epochs: E numbers of finished epochs, ascending.
        heatmaps: (E, n, C, W, W) uint8, the running averages after these epochs.
        seen: (E, n, W, W) bool, the cells that had been seen.
        model: the trained network.
        config: the run's configuration.
        averaged: False if the method keeps no heatmaps with cells. Then `heatmaps` are the
            network's score maps of the whole images after these epochs.
    """

    name: str
    data: ImageSet
    observed: Tensor
    epochs: Sequence[int]
    heatmaps: Tensor
    seen: Tensor
    model: SpatialClassifier
    config: RunConfig
    averaged: bool = True

    def bank(self, epoch: int, image: int) -> HeatmapBank:
        """The running averages of one image after `epochs[epoch]` epochs, as a bank of one."""
        one = slice(image, image + 1)
        return HeatmapBank.of(self.heatmaps[epoch, one], self.seen[epoch, one])

    @torch.no_grad()
    def predict(self, image: int, views: Views) -> Tensor:
        """The finished network's score maps of views of one image, as the training makes them.

        Args:
            image: number of the image in the trace.
            views: B views of it.

        Returns:
            (B, C, G, G) logits.
        """
        whole = self.data.images[image : image + 1]
        if self.config.trained == "head":
            whole = self.model.features(normalise(whole))
        parts = [views[i : i + _AT_ONCE] for i in range(0, len(views), _AT_ONCE)]
        predict = maps_of_features if self.config.trained == "head" else maps_of_crops
        maps = [
            predict(self.model, whole.expand(len(p), *whole.shape[1:]), p, self.config)
            for p in parts
        ]
        return torch.cat(maps)

    def region(self, image: int) -> Tensor | None:
        """(C, S, S) bool, the pixels of each class in an image; None if they are not known."""
        try:
            return self.data.regions(torch.tensor([image]))[0]
        except ValueError:
            return None

    def hidden(self) -> Tensor:
        """(n, C) bool, the classes that are in the image but were never labelled."""
        return self.data.labels & ~self.observed

    def most_corrected(self) -> list[int]:
        """The images, ordered by how much of the unlabelled classes their heatmaps found."""
        found = self.heatmaps[-1].flatten(2).amax(2).float() / 255  # (n, C)
        return (found * self.hidden()).sum(1).argsort(descending=True, stable=True).tolist()


def load_trace(config: RunConfig, data_root: str | Path | None = None) -> Trace:
    """The trace of a finished run.

    A method without heatmaps (AN, CL, EN, Full) shows the network's score maps of the whole images
    after every epoch instead. Heatmaps would be averages of such maps. A run that followed no image
    (`snapshots` = 0) has one epoch to show, the last one, of its first images.

    Args:
        config: configuration of the run.
        data_root: see `paths.data_root`.

    Raises:
        UserError: the run is not finished, or its data are missing or damaged.
    """
    return trace_of(Run.of(config, data_root).load(objects=True))


def trace_of(run: FinishedRun) -> Trace:
    """See `load_trace`; the run is loaded already, by `Run.load`."""
    followed = load_snapshots(run.folder) if run.config.snapshots else _last_epoch(run)
    first = torch.arange(followed.maps.shape[1])
    averaged = followed.heatmaps is not None and followed.heatmaps.shape[-1] > 1
    heatmaps = followed.heatmaps if averaged else followed.maps
    seen = followed.seen if averaged else torch.ones_like(heatmaps[:, :, 0], dtype=torch.bool)
    last = run.config.epochs
    return Trace(
        f"{title_of(run.config.method)}, seed {run.config.seed}", run.train.subset(first),
        run.observed[first], range(last - len(followed) + 1, last + 1), heatmaps, seen, run.model,
        run.config, averaged,
    )  # fmt: skip


_SHOWN = 64  # images of a run that followed none


def _last_epoch(run: FinishedRun) -> Snapshots:
    """What the snapshots of the last epoch would be."""
    images = run.train.images[:_SHOWN]
    maps = predict_maps(run.model, images, run.config.eval_side, run.config.amp)
    maps = as_bytes(run.model.pooling.heat(maps))
    if run.bank is None:
        return Snapshots(maps[None], None, None)
    heatmaps, seen = run.bank.stored(slice(len(images)))
    return Snapshots(maps[None], as_bytes(heatmaps)[None], seen.clone()[None])
