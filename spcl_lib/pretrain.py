"""Pretraining of the scenes' backbone on single-object images of other glyphs.

The paper starts from ImageNet features; this step stands in for them where nothing can be
downloaded. It is part of the setting, not a detail: from random weights the early predictions are
noise, and consistency with noise does harm.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn
from tqdm import tqdm  # not tqdm.auto: its notebook bars cannot be switched off (TQDM_DISABLE)

from spcl_lib import paths
from spcl_lib.data import scenes
from spcl_lib.data.cache import fingerprint, locked, once, replacing
from spcl_lib.model import (
    SpatialClassifier,
    autocast,
    normalised,
    pooled,
    save_weights,
    small_resnet,
)
from spcl_lib.train import batches_of_epoch, chance, learning_rate
from spcl_lib.views import Views

_HELD_OUT = 1000


@dataclass(frozen=True)
class Schedule:
    """How to learn.

    Attributes:
        batch: images in a step.
        rate: highest learning rate.
        warmup: share of the steps over which the learning rate rises.
        head_factor: the classifier learns so many times as fast as the backbone.
        least_crop: least area of a crop.
    """

    batch: int
    rate: float
    warmup: float
    head_factor: float
    least_crop: float


_LONG = Schedule(batch=64, rate=3e-3, warmup=0.2, head_factor=1.0, least_crop=0.5)
# A few passes need many small steps, a classifier that is quick, and whole images. Measured on
# 4,000 images x 4: 34 % of the held-out ones right against 8 %, in 1.6 times the time.
_SHORT = Schedule(batch=16, rate=2e-3, warmup=0.3, head_factor=10.0, least_crop=1.0)
_SHORT_BELOW = 40_000  # images shown in all


def schedule_for(images: int, epochs: int) -> Schedule:
    """The long schedule, or the short one where few images are shown."""
    return _SHORT if images * epochs < _SHORT_BELOW else _LONG


def pretrained_backbone(images: int, epochs: int, amp: str = "auto") -> tuple[Path, float]:
    """File with the pretrained small_resnet and its accuracy; trains it if it is not cached.

    Args:
        images: training images of `PRETRAIN_GLYPHS`.
        epochs: passes over them.
        amp: see `model.autocast`.

    Returns:
        A safetensors file that `build_backbone` reads, and the top-1 accuracy in percent on 1,000
        held-out images of the same glyphs.
    """
    sources = fingerprint((scenes, amp, sys.modules[__name__]))
    path = paths.cache() / f"small_resnet-glyphs-{images}x{epochs}-{sources}.safetensors"
    note = path.with_suffix(".accuracy")
    with locked(path):
        if not (path.exists() and note.exists()):
            with single_thread():
                backbone, accuracy = _pretrain(images, epochs, amp)
            with replacing(note) as temporary:
                temporary.write_text(f"{accuracy:.2f}\n")
            with replacing(path) as temporary:
                save_weights(backbone, temporary)
    load_file(path)  # a damaged cache is noticed here
    return path, float(note.read_text())


@contextmanager
def single_thread() -> Iterator[None]:
    """Runs its block with one thread: how many share a sum changes its last bits.

    All runs on scenes begin with this backbone, so it must not depend on the machine's cores.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def glyph_data(images: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Training and held-out images (N, 3, 32, 32) uint8 and their glyph numbers (N,)."""

    def make() -> dict[str, Tensor]:
        x, y = scenes.make_glyphs(images, seed=0)
        held_x, held_y = scenes.make_glyphs(_HELD_OUT, seed=1)
        return {"x": x, "y": y, "held_x": held_x, "held_y": held_y}

    data = once("glyphs", make, scenes, images)
    return data["x"], data["y"], data["held_x"], data["held_y"]


def _pretrain(images: int, epochs: int, amp: str) -> tuple[nn.Module, float]:
    x, y, held_x, held_y = glyph_data(images)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = SpatialClassifier(small_resnet(), 128, len(scenes.PRETRAIN_GLYPHS))
    model = model.to(memory_format=torch.channels_last)
    plan = schedule_for(images, epochs)
    groups = [
        {"params": list(model.features.parameters()), "factor": 1.0},
        {"params": list(model.head.parameters()), "factor": plan.head_factor},
    ]
    optimizer = torch.optim.AdamW(groups, lr=plan.rate, weight_decay=1e-2)
    batches = [b for epoch in range(epochs) for b in batches_of_epoch(images, plan.batch, 0, epoch)]
    bar = tqdm(batches, desc="pretraining the scenes' backbone", mininterval=1)
    for step, indices in enumerate(bar):  # not bar.n: a hidden bar does not count
        rate = plan.rate * learning_rate(step / len(batches), plan.warmup)
        for group in optimizer.param_groups:
            group["lr"] = rate * group["factor"]
        scale = (plan.least_crop, 1.0)
        views = Views.sample(len(indices), scale, generator=chance("glyphs", step))
        with autocast(torch.device("cpu"), amp):
            maps = model(normalised(views.crop(x[indices], x.shape[-1])))
        loss = F.cross_entropy(pooled(maps.float()), y[indices])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
    model.eval()
    with torch.no_grad():
        right = pooled(model(normalised(held_x))).argmax(1) == held_y
    return model.features, 100 * right.double().mean().item()
