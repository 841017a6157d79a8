"""Computes the features of whole images once, for runs that train only the head."""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
import re
import sys
import zlib
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
    continues at the next image. If the file is damaged, it is computed again.

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
    with lock_file(file):
        if not _is_sound(file, needed):
            what = f"the features of {len(data):,} images"
            require_space(file.parent, needed, what)
            with explain_refusals(file):
                _compute(model, data, config, math.prod(shape), file)
    count = len(data) * math.prod(shape)
    stored = torch.from_file(str(file), shared=False, size=count, dtype=_DTYPE)
    return replace(data, images=FeatureMaps(stored.view(len(data), *shape)))


def _is_sound(file: Path, size: int) -> bool:
    """Whether the file is there, with the given number of bytes, and without damage."""
    try:
        check_sealed(file, size)
        return True
    except FileNotFoundError:
        return False
    except DamagedError as error:
        set_aside(file, error)
        return False


def _feature_shape(model: SpatialClassifier, side: int) -> tuple[int, int, int]:
    with torch.no_grad():
        device = next(model.parameters()).device
        features = model.eval().features(normalise(torch.zeros(1, 3, side, side, device=device)))
    return *features.shape[2:], features.shape[1]


def _feature_file(model: SpatialClassifier, data: ImageSet, config: RunConfig) -> Path:
    low = isinstance(autocast(choose_device(), config.amp), torch.autocast)
    version = fingerprint(
        [sys.modules[SpatialClassifier.__module__], _digest(model.features), config.dilation, low,
         config.content, data.ids, config.image_side]
    )  # fmt: skip
    backbone = re.sub(r"[^\w.-]", "-", config.backbone)  # timm:NAME is no name of a file everywhere
    parts = ("features", config.dataset, backbone, str(len(data)), version)
    return paths.cache() / ("-".join(parts) + ".bin")


def _digest(model: nn.Module) -> str:
    digest = hashlib.sha256()
    for tensor in model.state_dict().values():
        digest.update(tensor.cpu().contiguous().numpy())
    return digest.hexdigest()


@torch.no_grad()
def _compute(
    model: SpatialClassifier, data: ImageSet, config: RunConfig, numbers: int, file: Path
) -> None:
    """Writes the features of the images in order, `numbers` values per image.

    A note keeps the size and the checksum of every chunk. After a stop, or even a power cut, only
    chunks that are as they were written count.
    """
    part, note = file.with_suffix(".part"), file.with_suffix(".part-sums")
    size = numbers * _DTYPE.itemsize
    device = next(model.parameters()).device
    backbone = merge_normalisation(model.features).to(memory_format=torch.channels_last)
    sound, bytes_done = _sound_chunks(part, note)
    note.write_text("".join(sound))
    with open(part, "ab") as handle, open(note, "a", buffering=1) as notes:
        done = bytes_done // size
        handle.truncate(bytes_done)
        chunks = torch.arange(done, len(data)).split(_BATCH)
        bar = tqdm(
            total=len(data), initial=done, desc="computing features", unit="image", mininterval=1
        )
        for chunk in chunks:
            with autocast(device, config.amp):
                features = backbone(normalise(data.images[chunk].to(device)))
            cells = features.permute(0, 2, 3, 1).to("cpu", _DTYPE).contiguous()  # (B, G, G, D)
            content = cells.view(torch.uint8).numpy().tobytes()
            handle.write(content)
            handle.flush()
            notes.write(f"{len(content)} {zlib.crc32(content)}\n")
            bar.update(len(chunk))
        bar.close()
        handle.flush()
        os.fsync(handle.fileno())
    seal(part)
    part.replace(file)
    note.unlink()


def _sound_chunks(part: Path, note: Path) -> tuple[list[str], int]:
    """The lines of the note whose chunks are in the file as they were written, and their bytes."""
    lines, done = [], 0
    with contextlib.suppress(OSError, ValueError), open(part, "rb") as handle:
        for line in note.read_text().splitlines(keepends=True):
            count, crc32 = map(int, line.split())
            if zlib.crc32(handle.read(count)) != crc32:
                break
            lines.append(line)
            done += count
        left = part.stat().st_size - done
        if lines and left > int(lines[0].split()[0]):  # a stop tears one chunk, not more
            text = f"spcl: '{part}' is damaged; {left:,} of its bytes are computed again"
            print(text, flush=True)
    return lines, done
