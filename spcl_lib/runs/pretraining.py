"""Pretrains the scenes' backbone on single-object images of other glyphs.

The paper starts from ImageNet features. This step replaces them if nothing can be downloaded. It
matters: a network with random weights predicts noise at first, and consistency with noise does
harm.
"""

from __future__ import annotations

import hashlib
import sys
import zlib
from dataclasses import dataclass
from pathlib import Path

import PIL
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm  # not tqdm.auto: its notebook bars cannot be switched off (TQDM_DISABLE)

from spcl_lib.data import scenes
from spcl_lib.data.cache import make_once, say_damaged
from spcl_lib.model import SpatialClassifier, autocast, normalise, small_resnet
from spcl_lib.pooling import MEAN_POOLING
from spcl_lib.system import paths
from spcl_lib.system.checksums import DamagedError
from spcl_lib.system.files import atomic_write, lock_file
from spcl_lib.system.fingerprints import fingerprint
from spcl_lib.system.machine import use_one_thread
from spcl_lib.system.randomness import keyed_generator
from spcl_lib.system.weights import save_weights
from spcl_lib.train import batches_of_epoch, descend, make_optimizer, set_learning_rates
from spcl_lib.views import Views

_HELD_OUT = 1000


@dataclass(frozen=True)
class Schedule:
    """Settings of the pretraining.

    Attributes:
        batch: images in a step.
        rate: highest learning rate.
        warmup: share of the steps in which the learning rate rises.
        head_factor: learning rate of the classifier, divided by that of the backbone.
        least_crop: least area of a crop.
    """

    batch: int
    rate: float
    warmup: float
    head_factor: float
    least_crop: float


_LONG = Schedule(batch=64, rate=3e-3, warmup=0.2, head_factor=1.0, least_crop=0.5)
# A few passes need many small steps, a classifier that learns fast, and whole images. With 4,000
# images and 4 epochs, 34 % of the held-out images are right instead of 8 %, in 1.6 times the time.
_SHORT = Schedule(batch=16, rate=2e-3, warmup=0.3, head_factor=10.0, least_crop=1.0)
_SHORT_BELOW = 40_000  # images x epochs


def schedule_for(images: int, epochs: int) -> Schedule:
    """The short schedule if few images are shown in all epochs, else the long one."""
    return _SHORT if images * epochs < _SHORT_BELOW else _LONG


def pretrained_backbone(images: int, epochs: int, amp: str = "auto") -> tuple[Path, float]:
    """File with the pretrained small_resnet, and its accuracy; trains it if it is not cached.

    Args:
        images: training images of `PRETRAIN_GLYPHS`.
        epochs: passes over them.
        amp: see `model.autocast`.

    Returns:
        A safetensors file that `build_backbone` reads, and the top-1 accuracy in percent on 1,000
        held-out images of the same glyphs.
    """
    in_bfloat16 = isinstance(autocast(torch.device("cpu"), amp), torch.autocast)
    sources = fingerprint((sys.modules[__name__], PIL.__version__, torch.__version__, in_bfloat16))
    path = paths.cache() / f"small_resnet-glyphs-{images}x{epochs}-{sources}.safetensors"
    note = path.with_suffix(".accuracy")
    with lock_file(path):
        accuracy = _noted_accuracy(path, note)
        if accuracy is None:
            with use_one_thread():  # else the weights would depend on the number of cores
                backbone, accuracy = _pretrain(images, epochs, amp)
            with atomic_write(path) as temporary:
                save_weights(backbone, temporary)
            noted = f"{accuracy:.2f} {_sha256(path)}"
            with atomic_write(note) as temporary:
                temporary.write_text(f"{noted} {zlib.crc32(noted.encode()):08x}\n")
    return path, float(f"{accuracy:.2f}")


def _noted_accuracy(path: Path, note: Path) -> float | None:
    """The accuracy of the cached weights; None if they are missing or damaged."""
    try:
        accuracy, sha256, *crc32 = note.read_text().split()
        if crc32 not in ([], [f"{zlib.crc32(f'{accuracy} {sha256}'.encode()):08x}"]):
            raise DamagedError(f"the checksum of '{note.name}' is wrong")
        if sha256 != _sha256(path):
            raise DamagedError("its SHA-256 is not the noted one")
        return float(accuracy)
    except FileNotFoundError:
        return None
    except (ValueError, DamagedError) as error:
        say_damaged(path, error)
        return None


def _sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def glyph_data(images: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Training and held-out images (N, 3, 32, 32) uint8 and their glyph numbers (N,)."""

    def make() -> dict[str, Tensor]:
        x, y = scenes.make_glyphs(images, seed=0)
        held_x, held_y = scenes.make_glyphs(_HELD_OUT, seed=1)
        return {"x": x, "y": y, "held_x": held_x, "held_y": held_y}

    data = make_once("glyphs", make, scenes, PIL.__version__, images)
    return data["x"], data["y"], data["held_x"], data["held_y"]


def _pretrain(images: int, epochs: int, amp: str) -> tuple[nn.Module, float]:
    x, y, held_x, held_y = glyph_data(images)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = SpatialClassifier(small_resnet(), 128, len(scenes.PRETRAIN_GLYPHS))
    model = model.to(memory_format=torch.channels_last)
    plan = schedule_for(images, epochs)
    optimizer = make_optimizer(model, plan.rate, plan.head_factor, weight_decay=1e-2)
    batches = [b for epoch in range(epochs) for b in batches_of_epoch(images, plan.batch, 0, epoch)]
    bar = tqdm(batches, desc="pretraining the scenes' backbone", mininterval=1)
    for step, indices in enumerate(bar):  # not bar.n, which stays 0 if the bar is hidden
        set_learning_rates(optimizer, plan.rate, step / len(batches), plan.warmup)
        scale = (plan.least_crop, 1.0)
        views = Views.sample(len(indices), scale, generator=keyed_generator("glyphs", step))
        with autocast(torch.device("cpu"), amp):
            maps = model(normalise(views.crop(x[indices], x.shape[-1])))
        descend(optimizer, F.cross_entropy(MEAN_POOLING(maps.float()), y[indices]))
    model.eval()
    with torch.no_grad():
        right = MEAN_POOLING(model(normalise(held_x))).argmax(1) == held_y
    return model.features, 100 * right.double().mean().item()
