"""The training loop, in plain PyTorch."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer
from tqdm import tqdm  # not tqdm.auto: its notebook bars cannot be switched off (TQDM_DISABLE)

from spcl_lib.config import RunConfig
from spcl_lib.methods import Method
from spcl_lib.model import Images, SpatialClassifier, autocast, normalise
from spcl_lib.system import ranks
from spcl_lib.system.errors import UserError
from spcl_lib.system.randomness import keyed_generator
from spcl_lib.views import Views


@dataclass
class Progress:
    """The state of a training. A resume also needs the model, the optimiser and the method."""

    epoch: int = 0  # epochs done
    step: int = 0  # batches done in the current epoch
    loss_sum: float = 0.0  # of those batches
    seconds: float = 0.0  # training time so far, over all interruptions
    history: list[dict[str, float]] = field(default_factory=list)  # a row per finished epoch


def batches_of_epoch(num_images: int, batch: int, seed: int, epoch: int) -> list[list[int]]:
    """A random order of all images, or of this rank's, cut into batches of nearly equal size.

    The batches of all ranks together have about `batch` images.
    """
    own = torch.arange(ranks.rank(), num_images, ranks.count())
    generator = _generator_of_rank("order", seed, epoch)
    order = own[torch.randperm(len(own), generator=generator)]
    # Each rank has an image in every batch: the mean loss of none would be no number.
    count = min(math.ceil(num_images / batch), num_images // ranks.count())
    return [part.tolist() for part in order.tensor_split(count)]


def _generator_of_rank(*key: object) -> torch.Generator:
    return keyed_generator(*key, *((ranks.rank(),) if ranks.count() > 1 else ()))


def learning_rate(done: float, warmup: float) -> float:
    """One-cycle schedule: factor of the highest rate after the share `done` of all steps.

    It rises from 1/25 along a cosine during the share `warmup`, then falls to 0 along another.
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
) -> Optimizer:
    """AdamW; the 1x1 convolution learns `head_factor` times as fast as the backbone.

    Labels that a method learns do not decay, and learn ten times as fast, as in ROLE's paper.
    """
    groups = [
        {"params": [p for p in model.features.parameters() if p.requires_grad], "factor": 1.0},
        {"params": list(model.head.parameters()), "factor": head_factor},
    ]
    if labels := list(labels):
        groups.append({"params": labels, "factor": 10.0, "weight_decay": 0.0})
    return AdamW(groups, lr=lr, weight_decay=weight_decay)


def set_learning_rates(optimizer: Optimizer, lr: float, done: float, warmup: float) -> None:
    """Sets the rate of every group after the share `done` of all steps; lr: the highest rate."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["factor"] * learning_rate(done, warmup)


def sample_views(count: int, config: RunConfig, generator: torch.Generator) -> Views:
    """`count` random views with the crops and flips of a configuration."""
    scale, ratio = (config.scale_min, config.scale_max), (1 / config.ratio_max, config.ratio_max)
    return Views.sample(count, scale, ratio, config.flip, generator)


def maps_of_views(
    model: SpatialClassifier, images: Tensor, views: Views, config: RunConfig
) -> Tensor:
    """Score-map logits f (B, C, G, G) float32 of views of whole images, or of their features.

    A 1x1 convolution and a crop give the same result in both orders. So with features the head
    comes first, and the crop reads C maps instead of D features.
    """
    if config.trained == "head":
        with autocast(images.device, config.amp):
            maps = model.classify(images)
        return views.crop(maps.float(), config.grid_of_crop(images.shape[-1]))
    crops = views.crop(images, config.crop_side)
    with autocast(images.device, config.amp):
        return model(normalise(crops)).float()


def train_step(
    model: SpatialClassifier,
    optimizer: Optimizer,
    method: Method,
    batch: tuple[Tensor, Tensor, Tensor],
    config: RunConfig,
    epochs_done: float,
    generator: torch.Generator,
) -> float:
    """One step on a batch: images or features, labels (B, C), numbers (B,); gives the loss."""
    device = next(model.parameters()).device
    images, labels, indices = batch
    set_learning_rates(optimizer, config.lr, epochs_done / config.epochs, config.warmup)
    views = sample_views(len(indices), config, generator).to(device)
    maps = maps_of_views(model, images.to(device), views, config)
    loss = method.loss(maps, labels.to(device), indices, views, epochs_done)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    ranks.average_gradients(model.parameters())
    optimizer.step()
    if not math.isfinite(value := loss.item()):  # before it changes the running averages
        when, lower = f"epoch {int(epochs_done) + 1}", f"--set lr={config.lr / 10:g}"
        raise UserError(f"the loss became {value} in {when}; lower the learning rate: {lower}")
    method.update(maps, indices, views, epochs_done)
    return value


def train(
    model: SpatialClassifier,
    optimizer: Optimizer,
    method: Method,
    images: Images,
    labels: Tensor,
    config: RunConfig,
    progress: Progress | None = None,
    on_step: Callable[[Progress], None] = lambda progress: None,
    on_epoch: Callable[[Progress], dict[str, float]] = lambda progress: {},
) -> Progress:
    """Trains until `config.epochs` epochs are done; all ranks call it with the same arguments.

    `labels` (N, C) are those of `methods.visible_labels`, and `progress` is the state to continue
    from. `on_step` is called after every step. When an epoch ends, `on_epoch` is called first, and
    the history gets the values that it returns.
    """
    progress = progress or Progress()
    model.train()
    while progress.epoch < config.epochs:
        order = batches_of_epoch(len(images), config.batch, config.seed, progress.epoch)
        for numbers in _progress_bar(order, progress, config):
            indices = torch.tensor(numbers)
            batch = images[indices], labels[indices], indices
            clock = time.perf_counter()
            generator = _generator_of_rank("views", config.seed, progress.epoch, progress.step)
            epochs_done = progress.epoch + progress.step / len(order)
            loss = train_step(model, optimizer, method, batch, config, epochs_done, generator)
            progress.loss_sum += loss
            progress.step += 1
            progress.seconds += time.perf_counter() - clock
            if progress.step < len(order):
                on_step(progress)
        method.end_epoch(progress.epoch)
        progress.epoch += 1
        row = {"epoch": progress.epoch, "loss": progress.loss_sum / len(order)}
        progress.step, progress.loss_sum = 0, 0.0
        progress.history.append(row | on_epoch(progress))
        on_step(progress)
    return progress


def _progress_bar(order: list[list[int]], progress: Progress, config: RunConfig) -> tqdm:
    """The batches of the epoch that are not done yet, with a bar on rank 0."""
    return tqdm(
        order[progress.step :],
        desc=f"{config.method} epoch {progress.epoch + 1}/{config.epochs}",
        initial=progress.step, total=len(order), leave=False, mininterval=1,
        **({"disable": True} if ranks.rank() else {}),
    )  # fmt: skip
