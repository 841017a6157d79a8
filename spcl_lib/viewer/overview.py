"""Draws the README's figure: a training image whose crop has lost the labelled object."""

from __future__ import annotations

import io
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from spcl_lib.bank import HeatmapBank
from spcl_lib.config import RunConfig
from spcl_lib.data.draws import draw_labels
from spcl_lib.data.image_set import ImageSet
from spcl_lib.pooling import MEAN_POOLING
from spcl_lib.runs.notebooks import reduce_colours
from spcl_lib.runs.splits import load_splits
from spcl_lib.runs.store import run_folder
from spcl_lib.system.files import atomic_write
from spcl_lib.system.randomness import keyed_generator
from spcl_lib.viewer import figures
from spcl_lib.views import Views


def write_overview(config: RunConfig, path: Path) -> Path:
    """Draws the figure from a finished run on scenes whose method keeps heatmaps.

    Args:
        config: configuration of the run.
        path: PNG file to write.
    """
    data, _ = load_splits(config, None)
    observed = draw_labels(data, config.draw, config.label_seed)
    stored = load_file(run_folder(config) / "bank.safetensors")
    bank = HeatmapBank.of(stored["heatmaps"], stored["seen"])
    image, view = _telling_example(data, observed, bank)
    index = torch.tensor([image])
    given = int(observed[image].int().argmax())
    hidden = _most_present(data, observed, bank, image)
    target, _ = bank.read(index, view, 12)
    figure = figures.overview(
        data.images[image], view, view.crop(data.images[index], 64)[0],
        bank.heatmaps[image, [given, hidden]].float() / 255, target[0, hidden],
        data.classes[given], data.classes[hidden],
    )  # fmt: skip
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    with atomic_write(path) as temporary:
        temporary.write_bytes(reduce_colours(buffer.getvalue()))
    return path


def _telling_example(data: ImageSet, observed: Tensor, bank: HeatmapBank) -> tuple[int, Views]:
    """Chooses an image and a view whose crop has lost the labelled class and shows another.

    The heatmaps of the chosen image are the most certain: of the labelled class in the image, and
    of an unlabelled class in the crop.
    """
    views = Views.sample(len(data), (0.25, 0.5), flip=0.0, generator=keyed_generator("overview"))
    values = torch.arange(1, len(data.classes) + 1).view(1, -1, 1, 1)
    masks = data.class_map[:, None] == values  # (N, C, S, S)
    shown = (masks & views.visible(masks.shape[-1])).sum((2, 3)) / masks.sum((2, 3)).clamp(min=1)
    lost = (shown * observed).sum(1) == 0
    other = ((shown > 0.95) & ~observed & data.labels).sum(1) == 1
    indices = torch.arange(len(data))
    heat = bank.heatmaps.float().div(255)  # (N, C, W, W)
    sure = heat.amax((2, 3))
    in_crop = MEAN_POOLING.presence(*bank.read(indices, views, 12))
    score = (sure * observed).sum(1) + (in_crop * (shown > 0.95) * ~observed).amax(1)
    best = int(score.masked_fill(~(lost & other), -1).argmax())
    return best, views[best : best + 1]


def _most_present(data: ImageSet, observed: Tensor, bank: HeatmapBank, image: int) -> int:
    """The unlabelled class of the image whose heatmap has the highest value."""
    candidates = data.labels[image] & ~observed[image]
    return int(bank.heatmaps[image].amax((1, 2)).int().masked_fill(~candidates, -1).argmax())
