"""Measures speed: the training step of every method, and the input of images."""

from __future__ import annotations

import statistics
import tempfile
import time
import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torchvision import transforms
from torchvision.datasets.folder import default_loader

from spcl_lib.config import RunConfig
from spcl_lib.data.cache import write_squares
from spcl_lib.data.draws import draw_labels, single_label_draw
from spcl_lib.data.image_set import ImageSet
from spcl_lib.data.images import ImageFiles, Images, LazyImages
from spcl_lib.methods import Method
from spcl_lib.model import MEAN, STD, normalise
from spcl_lib.runs.features import inputs_of
from spcl_lib.runs.network import build_network
from spcl_lib.runs.settings import methods_of
from spcl_lib.runs.splits import identify_data, load_splits
from spcl_lib.system import paths
from spcl_lib.system.machine import choose_device, count_cores
from spcl_lib.system.randomness import keyed_generator
from spcl_lib.train import (
    batches_of_epoch,
    make_optimizer,
    read_ahead,
    sample_views,
    train_step,
)


def step_seconds(
    config: RunConfig, data_root: str | Path | None, steps: int, warm_up: int = 5
) -> dict[str, list[float]]:
    """Seconds of every training step, for every method.

    The methods take turns, so a slower machine affects all of them. Consistency is active in all
    timed steps. All methods get the same batches.

    Args:
        config: gives the data set, network and batch size; the method has no effect.
        data_root: see `paths.data_root`.
        steps: timed steps per method.
        warm_up: steps before the timed ones.
    """
    data, labels, parts = _prepare(config, data_root, methods_of(config.dataset))
    seconds: dict[str, list[float]] = {name: [] for name in parts}
    for step in range(warm_up + steps):
        for name, (model, optimizer, method) in parts.items():
            clock = time.perf_counter()
            _step(model, optimizer, method, data.images, labels, config, step)
            if step >= warm_up:
                seconds[name].append(time.perf_counter() - clock)
    return seconds


_Learner = tuple[nn.Module, torch.optim.Optimizer, Method]


def _prepare(
    config: RunConfig, data_root: str | Path | None, methods: Sequence[str]
) -> tuple[ImageSet, Tensor, dict[str, _Learner]]:
    """The training data and their observed labels, and what every method trains."""
    config = identify_data(config, data_root)
    data, _ = load_splits(config, data_root)
    labels = draw_labels(data, config.draw, config.label_seed)
    network, _ = build_network(config, len(data.classes), data_root)
    data = inputs_of(network.to(choose_device()), data, config)
    parts = {}
    for name in methods:
        model, _ = build_network(config, len(data.classes), data_root)
        model = model.to(choose_device(), memory_format=torch.channels_last).train()
        method = Method(name, len(data), len(data.classes), config.settings, labels=labels)
        parts[name] = (model, _optimizer(model, config), method)
    return data, labels, parts


def _step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    method: Method,
    images: Images,
    labels: Tensor,
    config: RunConfig,
    number: int,
) -> None:
    """The training step with this number, on a random batch; consistency is active."""
    order = torch.randperm(len(labels), generator=keyed_generator("bench", number))
    train_step(
        model, optimizer, method, images, labels, order[: config.batch], config,
        float(config.epochs - 1), keyed_generator("bench views", number),
    )  # fmt: skip


class _Stopwatch:
    """Gives the time between the calls of a step's parts to these parts."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def credit(self, part: str) -> None:
        """Gives the time since the last call to a part."""
        if choose_device().type == "cuda":
            torch.cuda.synchronize()
        now = time.perf_counter()
        self.seconds[part] = self.seconds.get(part, 0.0) + now - self._last
        self._last = now

    def watch(self, owner: object, name: str, part: str, before: str) -> None:
        """Times a method of an object; `before` is the part that its caller has just done."""
        call = getattr(owner, name)

        def timed(*arguments: Any, **options: Any) -> Any:
            self.credit(before)
            result = call(*arguments, **options)
            self.credit(part)
            return result

        setattr(owner, name, timed)


class _WatchedImages:
    """Images whose reading is timed."""

    def __init__(self, images: Images, watch: _Stopwatch) -> None:
        self.read, self._count = images.__getitem__, len(images)
        watch.watch(self, "read", "read images", "rest")

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, which: Tensor) -> Tensor:
        return self.read(which)


def step_parts(
    config: RunConfig, data_root: str | Path | None, method: str, steps: int, warm_up: int = 5
) -> dict[str, float]:
    """Seconds of a training step by its parts, the mean of `steps` steps.

    Args:
        config: gives the data set, network and batch size.
        data_root: see `paths.data_root`.
        method: a key of METHODS.
        steps: timed steps.
        warm_up: steps before the timed ones.
    """
    data, labels, parts = _prepare(config, data_root, [method])
    model, optimizer, learner = parts[method]
    watch = _Stopwatch()
    images = _WatchedImages(data.images, watch)
    # A network sees crops, but a head alone sees whole images, and its score maps are cropped.
    watch.watch(model, "forward", "network", "crop")
    watch.watch(model, "classify", "network", "rest")
    watch.watch(learner, "loss", "loss", "crop")
    if learner.bank is not None:
        watch.watch(learner.bank, "read", "read heatmaps", "loss")
        watch.watch(learner.bank, "update", "update heatmaps", "rest")
    watch.watch(optimizer, "step", "optimizer", "gradient")
    for number in range(warm_up + steps):
        if number == warm_up:
            watch.credit("rest")
            watch.seconds.clear()
        _step(model, optimizer, learner, images, labels, config, number)
    watch.credit("rest")
    rest = watch.seconds.pop("rest")
    return {part: taken / steps for part, taken in (watch.seconds | {"rest": rest}).items()}


def _optimizer(model: nn.Module, config: RunConfig) -> torch.optim.Optimizer:
    return make_optimizer(model, config.lr, config.head_lr_factor, config.weight_decay)


def bench(config: RunConfig, data_root: str | Path | None, steps: int) -> int:
    """Prints every method's median step time, its median ratio to AN's, and the parts of a step."""
    seconds = step_seconds(config, data_root, steps)
    print(
        f"{config.dataset}, profile {config.profile}: batch {config.batch}, crops of "
        f"{config.crop_side} px, {torch.get_num_threads()} thread(s), {steps} steps in turn"
    )
    print(f"{'method':8} {'ms/step':>8} {'x AN':>6}")
    for name, times in seconds.items():
        ratio = statistics.median(t / a for t, a in zip(times, seconds["an"], strict=True))
        print(f"{name:8} {1000 * statistics.median(times):8.1f} {ratio:6.2f}")
    for name in ("an", "en_scl"):
        if name in seconds:
            _print_parts(name, step_parts(config, data_root, name, steps))
    return 0


def _print_parts(method: str, seconds: dict[str, float]) -> None:
    whole = sum(seconds.values())
    print(f"where a step of {method} goes: ms, share")
    for part, taken in seconds.items():
        print(f"{part:16} {1000 * taken:8.1f} {100 * taken / whole:5.1f} %")


_MOST = 1000  # images to read; enough to measure a rate
_EPOCHS = 10  # passes over the cache, because one pass is short


def bench_input(config: RunConfig, data_root: str | Path | None, steps: int) -> int:
    """Prints the images/s of every way from a file to the network, and of the training step.

    The system keeps files in memory after the first read. This helps all ways equally.

    Args:
        config: gives the data set, crops, network and batch size.
        data_root: see `paths.data_root`.
        steps: training steps to time.
    """
    if config.dataset == "scenes":
        print("scenes are drawn, not read: there are no files to measure")
        return 0
    config = identify_data(config, data_root)
    data, _ = load_splits(config, data_root)
    data = data.subset(torch.arange(min(len(data), _MOST)))
    rates = input_rates(data.files, config)
    need = step_rate(data, config, data_root, steps)
    print(
        f"{config.dataset}, profile {config.profile}: {len(data):,} images, squares of "
        f"{config.image_side} px, batches of {config.batch} crops of {config.crop_side} px, "
        f"{count_cores()} core(s), {torch.get_num_threads()} thread(s)"
    )
    print(f"{'':42} images/s  x AN's step")
    for name, rate in (rates | {"AN's training step": need}).items():
        print(f"{name:42} {rate:8.1f} {rate / need:12.2f}")
    return 0


def input_rates(files: Sequence[Path], config: RunConfig) -> dict[str, float]:
    """Images/s of each way from a file to a batch of normalised crops on the device."""
    batches = batches_of_epoch(len(files), config.batch, 0, 0)
    rates = {"torchvision Dataset + DataLoader": torchvision_rate(files, config)}
    plain = LazyImages(ImageFiles(files, config.image_side), torch.arange(len(files)))
    rates["files, batch by batch, without a cache"] = _rate(_crops(plain, batches, config))
    paths.cache().mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=paths.cache(), prefix="bench-") as folder:
        path = Path(folder) / "images.npy"
        clock = time.perf_counter()
        write_squares(files, config.image_side, "into the cache", path)
        rates["files into the cache, the first time"] = len(files) / (time.perf_counter() - clock)
        cached = torch.from_numpy(np.load(path, mmap_mode="c"))
        rates["cache, batch by batch"] = _rate(_crops(cached, batches * _EPOCHS, config))
    return rates


def _crops(images: Images, batches: Sequence[Tensor], config: RunConfig) -> Iterator[Tensor]:
    """Batches as `train_step` makes them."""
    device = choose_device()
    for step, indices in enumerate(batches):
        read_ahead(images, batches[step + 1] if step + 1 < len(batches) else None)
        views = sample_views(len(indices), config, keyed_generator("bench", step))
        crops = views.to(device).crop(images[indices].to(device), config.crop_side)
        yield normalise(crops)


def torchvision_rate(files: Sequence[Path], config: RunConfig) -> float:
    """Images/s of a plain Dataset and DataLoader with the same transforms, one worker per core.

    It times the second epoch, after the workers have started.
    """
    ratio = (1 / config.ratio_max, config.ratio_max)
    transform = transforms.Compose([
        transforms.RandomResizedCrop(config.crop_side, (config.scale_min, config.scale_max), ratio),
        transforms.RandomHorizontalFlip(config.flip),
        transforms.ToTensor(),
        transforms.Normalize(MEAN, STD),
    ])  # fmt: skip
    loader = torch.utils.data.DataLoader(
        _PlainFiles(files, transform), config.batch, shuffle=True,
        num_workers=count_cores(), persistent_workers=True,
    )  # fmt: skip
    device = choose_device()
    with warnings.catch_warnings():  # Python 3.12 warns of forks in a process with threads
        warnings.simplefilter("ignore", DeprecationWarning)
        _rate(loader)
        return _rate(batch.to(device) for batch in loader)


class _PlainFiles(torch.utils.data.Dataset):
    """Reads images as torchvision's ImageFolder does, but from any files and without labels."""

    def __init__(self, files: Sequence[Path], transform: transforms.Compose) -> None:
        self.files, self.transform = files, transform

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Tensor:
        return self.transform(default_loader(self.files[index]))


def step_rate(data: ImageSet, config: RunConfig, data_root: str | Path | None, steps: int) -> float:
    """Images/s of AN's training step on one batch in memory."""
    count, classes = min(config.batch, len(data)), len(data.classes)
    device = choose_device()
    model, _ = build_network(config, classes, data_root)
    model = model.to(device, memory_format=torch.channels_last)
    optimizer = _optimizer(model, config)
    method = Method("an", count, classes, config.settings)
    indices = torch.arange(count)
    images = inputs_of(model, data.subset(indices), config).images[:]
    model.train()
    labels = single_label_draw(data.labels[:count], config.label_seed)

    def taken(number: int) -> Iterator[Tensor]:
        for step in range(number):
            chance = keyed_generator("an", step)
            train_step(model, optimizer, method, images, labels, indices, config, 0.5, chance)
            yield images

    _rate(taken(2))  # to warm up
    return _rate(taken(steps))


def _rate(batches: Iterable[Tensor]) -> float:
    clock, count = time.perf_counter(), 0
    for batch in batches:
        count += len(batch)
    if choose_device().type == "cuda":
        torch.cuda.synchronize()
    return count / (time.perf_counter() - clock)
