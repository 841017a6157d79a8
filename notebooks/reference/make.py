"""Makes the files of this folder again: `python notebooks/reference/make.py backbone`."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from spcl_lib.data import scenes
from spcl_lib.model import SpatialClassifier, autocast, normalise, small_resnet
from spcl_lib.pooling import MEAN_POOLING
from spcl_lib.system.files import atomic_write
from spcl_lib.system.randomness import keyed_generator
from spcl_lib.system.weights import save_tensors
from spcl_lib.train import batches_of_epoch, descend, make_optimizer, set_learning_rates
from spcl_lib.views import Views

HERE = Path(__file__).resolve().parent
BATCH, RATE, WARMUP, LEAST_CROP = 64, 3e-3, 0.2, 0.5


def backbone(
    file: Path = HERE / "small_resnet.safetensors", images: int = 10_000, epochs: int = 12
) -> float:
    """Trains the scenes' backbone on single glyphs that are none of the scenes' classes.

    The paper starts from ImageNet's features. These take their place where nothing can be
    downloaded. It matters: a network with random weights predicts noise at first, and consistency
    with noise does harm. One thread takes about a minute.

    Args:
        file: gets the backbone's weights, in float16.
        images: training images.
        epochs: passes over them.

    Returns:
        The top-1 accuracy, in percent, on 1,000 other images of the same glyphs.
    """
    torch.set_num_threads(1)  # else the last bits would depend on the number of cores
    torch.manual_seed(0)
    model = SpatialClassifier(small_resnet(), 128, len(scenes.PRETRAIN_GLYPHS))
    model = model.to(memory_format=torch.channels_last)
    _train_on_glyphs(model, *scenes.make_glyphs(images, seed=0), epochs)
    weights = {k: v.half() if v.is_floating_point() else v
               for k, v in model.features.state_dict().items()}  # fmt: skip
    with atomic_write(file) as temporary:
        save_tensors(weights, temporary)
    others, glyphs = scenes.make_glyphs(1000, seed=1)
    with torch.no_grad():
        right = MEAN_POOLING(model.eval()(normalise(others))).argmax(1) == glyphs
    return 100 * right.double().mean().item()


def _train_on_glyphs(model: nn.Module, images: Tensor, glyphs: Tensor, epochs: int) -> None:
    optimizer = make_optimizer(model, RATE, head_factor=1.0, weight_decay=1e-2)
    batches = [b for e in range(epochs) for b in batches_of_epoch(len(images), BATCH, 0, e)]
    for step, indices in enumerate(tqdm(batches, desc="training the scenes' backbone")):
        set_learning_rates(optimizer, RATE, step / len(batches), WARMUP)
        generator = keyed_generator("glyphs", step)
        views = Views.sample(len(indices), (LEAST_CROP, 1.0), generator=generator)
        with autocast(torch.device("cpu"), "auto"):
            maps = model(normalise(views.crop(images[indices], images.shape[-1])))
        descend(optimizer, F.cross_entropy(MEAN_POOLING(maps.float()), glyphs[indices]))


if __name__ == "__main__":
    if sys.argv[1:] != ["backbone"]:
        sys.exit(__doc__)
    print(f"{backbone():.1f} % of other glyph images are right")
