"""Snapshots: the maps and running averages of the first K training images after every epoch.

They are uint8 (a probability p becomes round(255 * p)), 6.3 MB for 64 scenes and 24 epochs:

    maps      (E, K, C, G, G)  the network's own score maps of the whole images, every method
    heatmaps  (E, K, C, W, W)  the running averages, for methods that keep them; W = 1 for CL and EN
    seen      (E, K, W, W)     the cells of the running averages that have been seen

They do not change the training: they draw no random numbers, and the metrics have the same bits.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from spcl_lib.bank import HeatmapBank
from spcl_lib.config import RunConfig
from spcl_lib.data.image_set import ImageSet
from spcl_lib.evaluate import predict_maps
from spcl_lib.methods import Method, title_of
from spcl_lib.model import SpatialClassifier, normalise
from spcl_lib.runs.store import FinishedRun, Run
from spcl_lib.system import ranks
from spcl_lib.system.weights import load_tensors
from spcl_lib.train import maps_of_views
from spcl_lib.views import Views

FILE = "snapshots.safetensors"
_AT_ONCE = 8  # views that the network predicts at once
_SHOWN = 64  # images of a run that followed none


class Recorder:
    """Takes the snapshots of a run, of images (N, 3, S, S) uint8; it is part of the checkpoint."""

    def __init__(self, images: Tensor, config: RunConfig) -> None:
        self.images, self.side = images[: config.snapshots], config.eval_side
        self.taken: dict[str, list[Tensor]] = {}

    def record(self, model: SpatialClassifier, method: Method) -> None:
        """Adds one snapshot, at the end of an epoch."""
        for name, tensor in _take(model, method.bank, self.images, self.side).items():
            self.taken.setdefault(name, []).append(tensor)

    def tensors(self) -> dict[str, Tensor]:
        """All snapshots, for the file of a finished run."""
        return {name: torch.stack(parts) for name, parts in self.taken.items()}

    def state_dict(self) -> dict[str, list[Tensor]]:
        """All snapshots so far."""
        return self.taken

    def load_state_dict(self, state: dict[str, list[Tensor]]) -> None:
        """Restores what `state_dict` gave."""
        self.taken = state


def _take(
    model: SpatialClassifier, bank: HeatmapBank | None, images: Tensor, side: int
) -> dict[str, Tensor]:
    """One snapshot of the first images (K, 3, S, S)."""
    maps = model.pooling.heat(predict_maps(model, images, side))
    found = {"maps": as_bytes(maps)}
    if bank is not None:
        heatmaps, seen = map(ranks.merge, bank.stored(slice(len(images))))
        found |= {"heatmaps": as_bytes(heatmaps.cpu()), "seen": seen.cpu().clone()}
    return found


def as_bytes(values: Tensor) -> Tensor:
    """Probabilities as uint8, where 255 means 1; values that are uint8 already are copied."""
    if values.dtype == torch.uint8:
        return values.clone()
    return (values.float() * 255).round().to(torch.uint8).contiguous()


@dataclass(frozen=True)
class Trace:
    """The records of a finished run about a few training images.

    A method without heatmaps (AN, CL, EN, Full) has the network's score maps of the whole images
    after every epoch instead. Heatmaps would be averages of such maps.
    """

    name: str
    data: ImageSet  # with full labels and regions, for display; the training never saw them
    observed: Tensor  # (n, C) bool, the single labels
    epochs: Sequence[int]  # E numbers of finished epochs, ascending
    heatmaps: Tensor  # (E, n, C, W, W) uint8, after these epochs
    seen: Tensor  # (E, n, W, W) bool, the cells that had been seen
    model: SpatialClassifier  # the trained network
    config: RunConfig
    averaged: bool = True  # whether the heatmaps are running averages

    @torch.no_grad()
    def predict(self, image: int, views: Views) -> Tensor:
        """The finished network's score maps (B, C, G, G) of B views of one image, in float32."""
        config, whole = self.config.replace(amp="off"), self.data.images[image : image + 1]
        if config.trained == "head":
            whole = self.model.features(normalise(whole))
        parts = [views[i : i + _AT_ONCE] for i in range(0, len(views), _AT_ONCE)]
        maps = [
            maps_of_views(self.model, whole.expand(len(part), -1, -1, -1), part, config)
            for part in parts
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
    """The trace of a finished run, from its configuration; see `trace_of`."""
    return trace_of(Run.of(config, data_root).load(objects=True))


def trace_of(run: FinishedRun) -> Trace:
    """The trace of a finished run; one that followed no image shows the last epoch of some."""
    config = run.config
    if config.snapshots:
        taken = load_tensors(run.folder / FILE)
    else:
        last = _take(run.model, run.bank, run.train.images[:_SHOWN], config.eval_side)
        taken = {name: tensor[None] for name, tensor in last.items()}
    maps = taken["maps"]
    averaged = "heatmaps" in taken and taken["heatmaps"].shape[-1] > 1
    heatmaps = taken["heatmaps"] if averaged else maps
    seen = taken["seen"] if averaged else torch.ones_like(maps[:, :, 0], dtype=torch.bool)
    first, count = torch.arange(maps.shape[1]), config.epochs
    return Trace(
        f"{title_of(config.method)}, seed {config.seed}", run.train.subset(first),
        run.observed[first], range(count - len(maps) + 1, count + 1), heatmaps, seen, run.model,
        config, averaged,
    )  # fmt: skip
