"""Computes the features of whole images once, for runs that train only the head."""

from __future__ import annotations

import hashlib
import math
import os
import re
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm import tqdm  # not tqdm.auto: its notebook bars cannot be switched off (TQDM_DISABLE)

from spcl_lib.config import RunConfig
from spcl_lib.data.cache import format_size, require_space, set_aside
from spcl_lib.data.image_set import ImageSet
from spcl_lib.model import SpatialClassifier, autocast, merge_normalisation, normalise
from spcl_lib.system import paths
from spcl_lib.system.checksums import DamagedError, check_sealed, seal
from spcl_lib.system.errors import UserError
from spcl_lib.system.files import explain_refusals, lock_file
from spcl_lib.system.fingerprints import fingerprint
from spcl_lib.system.machine import choose_device

VERSION = 1  # of the computation; another number makes all features again
_BATCH = 32
# bfloat16 needs as many bytes as float16, and the head computes in bfloat16. So a step needs no
# conversion, which halves its time.
_DTYPE = torch.bfloat16


class FeatureMaps:
    """Features of N images (N, D, G, G), used like a tensor of images.

    Args:
        cells: (N, G, G, D), contiguous, in memory or memory-mapped.
    """

    def __init__(self, cells: Tensor) -> None:
        self.cells, self.dtype = cells, cells.dtype
        self.shape = cells.permute(0, 3, 1, 2).shape

    def __len__(self) -> int:
        return len(self.cells)

    def __getitem__(self, which: slice | Tensor) -> Tensor:
        """The features at `which` (B, D, G, G), in channels-last order."""
        if isinstance(which, slice):
            chosen = self.cells[which]
        else:  # five times as fast as indexing four axes
            chosen = self.cells.flatten(1).index_select(0, which).view(-1, *self.cells.shape[1:])
        return chosen.permute(0, 3, 1, 2)


def inputs_of(model: SpatialClassifier, data: ImageSet, config: RunConfig) -> ImageSet:
    """The input of a run: features if only the head is trained, else the split itself."""
    return with_features(model, data, config) if config.trained == "head" else data


def with_features(model: SpatialClassifier, data: ImageSet, config: RunConfig) -> ImageSet:
    """The same split with features (N, D, G, G) in place of images.

    The features are memory-mapped from one file in the cache folder. A stopped computation
    continues. If the file is damaged, it is named, set aside and computed again.

    Args:
        model: the model whose backbone computes the features.
        data: a decoded split.
        config: configuration of the run; the file name depends on its `content`.

    Raises:
        UserError: the features would be larger than `paths.cache_limit`, or the disk is full.
    """
    shape = _feature_shape(model, config.image_side)  # (G, G, D)
    needed = len(data) * math.prod(shape) * _DTYPE.itemsize
    if needed > paths.cache_limit():
        raise UserError(
            f"the features of {len(data):,} images would take {format_size(needed)}, more than "
            f"{paths.CACHE_GB}={paths.cache_limit() / 1e9:g}. Set {paths.CACHE_GB} higher, take "
            "fewer images with --set train_images=N, or train the whole network with --profile cpu"
        )
    file = _feature_file(model, data, config)
    with lock_file(file), explain_refusals(file):
        try:
            check_sealed(file, needed)
        except (FileNotFoundError, DamagedError) as error:
            if isinstance(error, DamagedError):
                set_aside(file, error)
            require_space(file.parent, needed, f"the features of {len(data):,} images")
            _compute(model, data, config, file)
    count = len(data) * math.prod(shape)
    stored = torch.from_file(str(file), shared=False, size=count, dtype=_DTYPE)
    return replace(data, images=FeatureMaps(stored.view(len(data), *shape)))


def _feature_shape(model: SpatialClassifier, side: int) -> tuple[int, int, int]:
    with torch.no_grad():
        device = next(model.parameters()).device
        features = model.eval().features(normalise(torch.zeros(1, 3, side, side, device=device)))
    return *features.shape[2:], features.shape[1]


def _feature_file(model: SpatialClassifier, data: ImageSet, config: RunConfig) -> Path:
    low = isinstance(autocast(choose_device(), config.amp), torch.autocast)
    key = fingerprint(
        [VERSION, _digest(model.features), config.dilation, low, config.content, data.ids,
         config.image_side]
    )  # fmt: skip
    backbone = re.sub(r"[^\w.-]", "-", config.backbone)  # timm:NAME is no name of a file everywhere
    parts = ("features", config.dataset, backbone, str(len(data)), key)
    return paths.cache() / ("-".join(parts) + ".bin")


def _digest(model: nn.Module) -> str:
    digest = hashlib.sha256()
    for tensor in model.state_dict().values():
        digest.update(tensor.cpu().contiguous().numpy())
    return digest.hexdigest()


@torch.no_grad()
def _compute(model: SpatialClassifier, data: ImageSet, config: RunConfig, file: Path) -> None:
    """Writes the features of the images, batch by batch; the file gets its name at the end.

    Every batch is on the disk before the next one is written. So a stop, or even a power cut, can
    tear the last batch only, and this one is computed again.
    """
    part, device = file.with_suffix(".part"), next(model.parameters()).device
    backbone = merge_normalisation(model.features).to(memory_format=torch.channels_last)
    size = math.prod(_feature_shape(model, config.image_side)) * _DTYPE.itemsize
    with open(part, "ab") as handle:
        done = max(0, handle.tell() // (size * _BATCH) - 1) * _BATCH
        handle.truncate(done * size)
        bar = tqdm(
            total=len(data), initial=done, desc="computing features", unit="image", mininterval=1
        )
        for chunk in torch.arange(done, len(data)).split(_BATCH):
            with autocast(device, config.amp):
                features = backbone(normalise(data.images[chunk].to(device)))
            cells = features.permute(0, 2, 3, 1).to("cpu", _DTYPE).contiguous()  # (B, G, G, D)
            handle.write(cells.view(torch.uint8).numpy().tobytes())
            handle.flush()
            os.fsync(handle.fileno())
            bar.update(len(chunk))
        bar.close()
    seal(part)
    part.replace(file)
