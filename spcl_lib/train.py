"""The training loop, in plain PyTorch."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm  # not tqdm.auto: its notebook bars cannot be switched off (TQDM_DISABLE)

from spcl_lib.config import RunConfig
from spcl_lib.methods import Method
from spcl_lib.model import Images, SpatialClassifier, autocast, normalise
from spcl_lib.system import ranks
from spcl_lib.system.errors import UserError
from spcl_lib.system.randomness import keyed_generator
from spcl_lib.system.replicas import replicate
from spcl_lib.views import Views


@dataclass
class Progress:
    """The state of a training. A resume also needs the model, the optimiser and the method.

    Attributes:
        epoch: epochs done.
        step: batches done in the current epoch.
        loss_sum: sum of the losses of those batches.
        seconds: training time so far, over all interruptions.
        history: one row per finished epoch.
    """

    epoch: int = 0
    step: int = 0
    loss_sum: float = 0.0
    seconds: float = 0.0
    history: list[dict[str, float]] = field(default_factory=list)


def batches_of_epoch(num_images: int, batch: int, seed: int, epoch: int) -> tuple[Tensor, ...]:
    """A random order of all images, cut into batches of nearly equal size.

    With several ranks: of this rank's images, by their places among them, in as many batches. The
    batches of all ranks together have about `batch` images, up to one per rank more.
    """
    generator = keyed_generator("order", seed, epoch, *_rank_key())
    order = torch.randperm(len(ranks.numbers(num_images)), generator=generator)
    return order.tensor_split(math.ceil(num_images / batch))


def _rank_key() -> tuple[int, ...]:
    """What distinguishes this rank's random numbers; nothing without other ranks."""
    return (ranks.rank(),) if ranks.count() > 1 else ()


def learning_rate(done: float, warmup: float) -> float:
    """One-cycle schedule: factor of the highest rate after the share `done` of all steps.

    The factor rises from 1/25 along a cosine during the share `warmup`, then falls to 0 along a
    cosine.
    """
    if done < warmup:
        return 1 - (1 - 1 / 25) * (1 + math.cos(math.pi * done / warmup)) / 2
    return (1 + math.cos(math.pi * (done - warmup) / max(1 - warmup, 1e-9))) / 2


def make_optimizer(
    model: nn.Module,
    lr: float,
    head_factor: float,
    weight_decay: float,
    labels: Sequence[Tensor] = (),
) -> torch.optim.Optimizer:
    """AdamW; the 1x1 convolution learns `head_factor` times as fast as the backbone.

    The estimated labels of a method learn ten times as fast, as in ROLE's paper, and do not decay.
    """
    groups = [
        {"params": [p for p in model.features.parameters() if p.requires_grad], "factor": 1.0},
        {"params": list(model.head.parameters()), "factor": head_factor},
    ]
    if labels:
        groups.append({"params": list(labels), "factor": 10.0, "weight_decay": 0.0})
    return torch.optim.AdamW(groups, lr=lr, weight_decay=weight_decay)


def set_learning_rates(
    optimizer: torch.optim.Optimizer, lr: float, done: float, warmup: float
) -> None:
    """Sets the rate of every group after the share `done` of all steps; lr: the highest rate."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["factor"] * learning_rate(done, warmup)


def descend(optimizer: torch.optim.Optimizer, loss: Tensor) -> float:
    """Changes the weights by one step down the gradient of a loss; returns the loss."""
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()
    return loss.item()


def sample_views(count: int, config: RunConfig, generator: torch.Generator) -> Views:
    """`count` random views with the crops and flips of a configuration."""
    scale, ratio = (config.scale_min, config.scale_max), (1 / config.ratio_max, config.ratio_max)
    return Views.sample(count, scale, ratio, config.flip, generator)


def predict_views(
    model: SpatialClassifier, images: Tensor, views: Views, config: RunConfig
) -> Tensor:
    """Score-map logits f (B, C, G, G) float32 of views.

    If only the head is trained, `images` are the features of the whole images. A 1x1 convolution
    and a crop give the same result in both orders. So the head comes first, and the crop reads C
    maps instead of D features. A network that sees the crop itself would see it larger.

    Args:
        model: gives score maps.
        images: whole images (B, 3, S, S) uint8, or their features (B, D, G', G').
        views: B views of them.
        config: the run's configuration.
    """
    if images.is_floating_point():
        with autocast(images.device, config.amp):
            maps = model.classify(images)
        return views.crop(maps.float(), config.grid_of_crop(images.shape[-1]))
    crops = views.crop(images, config.crop_side)
    with autocast(images.device, config.amp):
        return model(normalise(crops)).float()


def train_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    method: Method,
    images: Images,
    labels: Tensor,
    indices: Tensor,
    config: RunConfig,
    epochs_done: float,
    generator: torch.Generator,
) -> float:
    """One step on the images at `indices` (B,); arguments as in `train`. Returns the loss.

    With several ranks, each makes the step on its images, `indices` being places among those, and
    the model is a replica. The loss is that of the whole batch.

    Raises:
        UserError: the loss is not finite.
    """
    device = next(model.parameters()).device
    set_learning_rates(optimizer, config.lr, epochs_done / config.epochs, config.warmup)
    views = sample_views(len(indices), config, generator).to(device)
    numbers = ranks.numbers_at(indices)
    shown = images[numbers].to(device), views, config
    replicated = isinstance(model, DistributedDataParallel)
    maps = model(*shown) if replicated else predict_views(model, *shown)  # (B, C, G, G)
    loss = method.loss(maps, labels[numbers].to(device), indices, views, epochs_done)
    value = descend(optimizer, loss)
    if not math.isfinite(value):  # stop before the loss changes the running averages
        raise UserError(
            f"the loss became {value} in epoch {int(epochs_done) + 1}; "
            f"lower the learning rate: --set lr={config.lr / 10:g}"
        )
    method.update(maps.detach(), indices, views, epochs_done)
    return value


class _ViewPredictor(nn.Module):
    """`predict_views` as a module, because DistributedDataParallel wraps only modules."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor, views: Views, config: RunConfig) -> Tensor:
        return predict_views(self.model, images, views, config)


def train(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    method: Method,
    images: Images,
    labels: Tensor,
    config: RunConfig,
    progress: Progress | None = None,
    after_step: Callable[[Progress], None] = lambda progress: None,
    after_epoch: Callable[[Progress], dict[str, float]] = lambda progress: {},
) -> Progress:
    """Trains until `config.epochs` epochs are done.

    With several ranks, all call this with the same images and labels; each trains on its own.

    Args:
        model: SpatialClassifier, on its device.
        optimizer: with one "factor" per parameter group.
        method: loss and running averages.
        images: (N, 3, S, S) uint8; read batch by batch.
        labels: (N, C) labels that the method may see: see `methods.visible_labels`.
        config: the run's configuration.
        progress: the state to continue from; None to start.
        after_step: called after every step (to save a checkpoint).
        after_epoch: called after every epoch; the history gets the values that it returns.

    Returns:
        The final progress with the history.
    """
    progress = progress or Progress()
    model.train()
    network = replicate(_ViewPredictor(model)) if ranks.count() > 1 else model
    while progress.epoch < config.epochs:
        batches = batches_of_epoch(len(images), config.batch, config.seed, progress.epoch)
        if progress.step == 0:
            method.begin_epoch(progress.epoch, ranks.part(labels))
        bar = tqdm(
            batches[progress.step :],
            desc=f"{config.method} epoch {progress.epoch + 1}/{config.epochs}",
            initial=progress.step, total=len(batches), leave=False, mininterval=1,
            **({"disable": True} if ranks.rank() else {}),
        )  # fmt: skip
        for indices, following in zip_longest(bar, batches[progress.step + 1 :]):
            read_ahead(images, None if following is None else ranks.numbers_at(following))
            clock = time.perf_counter()
            epochs_done = progress.epoch + progress.step / len(batches)
            key = config.seed, progress.epoch, progress.step, *_rank_key()
            generator = keyed_generator("views", *key)
            loss = train_step(
                network, optimizer, method, images, labels, indices, config, epochs_done, generator
            )
            progress.loss_sum += loss
            progress.step += 1
            progress.seconds += time.perf_counter() - clock
            if progress.step < len(batches):
                after_step(progress)
        method.end_epoch(progress.epoch + 1, ranks.part(labels))
        _finish_epoch(progress, len(batches), after_epoch)
        after_step(progress)
    return progress


def _finish_epoch(
    progress: Progress, steps: int, after_epoch: Callable[[Progress], dict[str, float]]
) -> None:
    progress.epoch += 1
    row = {"epoch": progress.epoch, "loss": progress.loss_sum / steps}
    progress.step, progress.loss_sum = 0, 0.0
    progress.history.append(row | after_epoch(progress))


def read_ahead(images: Images, indices: Tensor | None) -> None:
    """Announces the images of the following batch: `LazyImages` reads them in the background."""
    if indices is not None and hasattr(images, "expect"):
        images.expect(indices)
