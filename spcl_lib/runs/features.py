"""Computes the features of whole images once, for runs that train only the head."""

import math
import re
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import PIL
import torch
from torch import Tensor
from tqdm import tqdm  # not tqdm.auto: its notebook bars cannot be switched off (TQDM_DISABLE)

from spcl_lib.config import RunConfig
from spcl_lib.data import images
from spcl_lib.data.cache import make_once, on_disk, stamp
from spcl_lib.data.image_set import ImageSet
from spcl_lib.model import SpatialClassifier, autocast, merge_normalisation, normalise
from spcl_lib.runs.network import checksum_of
from spcl_lib.system import paths
from spcl_lib.system.errors import UserError
from spcl_lib.system.machine import choose_device

VERSION = 1  # of the computation; another number makes all features again
_BATCH = 32
# bfloat16 needs as many bytes as float16, and the head computes in bfloat16. So a step needs no
# conversion, which halves its time.
_DTYPE = torch.bfloat16


class FeatureMaps:
    """Features of N images, indexed by (B,) as a tensor of images is; `cells` are (N, G, G, D)."""

    def __init__(self, cells: Tensor) -> None:
        self.cells = cells

    def __len__(self) -> int:
        return len(self.cells)

    def __getitem__(self, which: Tensor) -> Tensor:
        """The features at `which` (B, D, G, G), in channels-last order."""
        chosen = self.cells.flatten(1).index_select(0, which)  # faster than indexing four axes
        return chosen.view(-1, *self.cells.shape[1:]).permute(0, 3, 1, 2)


def inputs_of(model: SpatialClassifier, data: ImageSet, config: RunConfig) -> ImageSet:
    """The input of a run: the split itself, or with features if only the head is trained.

    The features (N, D, G, G) take the place of the images, memory-mapped from the cache. Those that
    would be larger than `paths.cache_limit` are refused.
    """
    if config.trained != "head":
        return data
    shape = (len(data), *_feature_shape(model, config.image_side))  # (N, G, G, D)
    needed = math.prod(shape) * _DTYPE.itemsize
    if needed > paths.cache_limit():
        raise UserError(
            f"the features need {needed / 1e9:.3g} GB, more than {paths.CACHE_GB}: set it higher, "
            "take fewer images (--set train_images=N), or train the whole network (--profile cpu)"
        )

    def make() -> dict[str, Tensor]:
        return {"cells": on_disk(_compute(model, data, config)).view(_DTYPE).view(shape)}

    backbone = re.sub(r"[^\w.-]", "-", config.backbone)  # timm:NAME is no name of a file everywhere
    name = f"features-{config.dataset}-{backbone}-{len(data)}"
    low = isinstance(autocast(choose_device(), config.amp), torch.autocast)
    sources = (VERSION, images.VERSION, PIL.__version__, checksum_of(model.features),
               config.dilation, low, config.content, data.ids, config.image_side,
               *map(stamp, data.files or ()))  # fmt: skip
    cells = make_once(name, make, *sources)["cells"]
    return replace(data, images=FeatureMaps(cells))


def _feature_shape(model: SpatialClassifier, side: int) -> tuple[int, int, int]:
    with torch.no_grad():
        device = next(model.parameters()).device
        features = model.eval().features(normalise(torch.zeros(1, 3, side, side, device=device)))
    return *features.shape[2:], features.shape[1]


@torch.no_grad()
def _compute(model: SpatialClassifier, data: ImageSet, config: RunConfig) -> Iterator[np.ndarray]:
    """Gives the features of the images as bytes, batch by batch."""
    device = next(model.parameters()).device
    backbone = merge_normalisation(model.features).to(memory_format=torch.channels_last)
    batches = torch.arange(len(data)).split(_BATCH)
    for batch in tqdm(batches, desc="computing features", mininterval=1):
        with autocast(device, config.amp):
            features = backbone(normalise(data.images[batch].to(device)))
        cells = features.permute(0, 2, 3, 1).to("cpu", _DTYPE).contiguous()  # (B, G, G, D)
        yield cells.view(torch.uint8).numpy()
