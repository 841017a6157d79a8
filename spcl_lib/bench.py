"""What a training step costs: every method against AN, in one run, step by step in turn."""

from __future__ import annotations

import statistics
import time
from pathlib import Path

import torch

from spcl_lib.config import RunConfig, methods_of
from spcl_lib.data import draw_labels, load_splits
from spcl_lib.experiment import build_model
from spcl_lib.losses import Method
from spcl_lib.train import chance, make_optimizer, train_step


def step_seconds(
    config: RunConfig, data_root: str | Path | None, steps: int, warm_up: int = 5
) -> dict[str, list[float]]:
    """Seconds of every training step, for every method.

    The methods take turns, so that a machine that slows down slows all of them. Consistency is
    active in all timed steps, and the batches are the same for all.

    Args:
        config: data set, network and batch size; its method does not matter.
        data_root: see `paths.data_root`.
        steps: timed steps per method.
        warm_up: untimed steps before.
    """
    data, _ = load_splits(config, data_root)
    labels = draw_labels(data, config.draw, config.label_seed)
    parts = {}
    for name in methods_of(config.dataset):
        model, _ = build_model(config, len(data.classes), data_root)
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        model = model.to(device, memory_format=torch.channels_last)
        method = Method(name, len(data), len(data.classes), config.method_settings())
        parts[name] = (model.train(), make_optimizer(model, config), method)
    seconds: dict[str, list[float]] = {name: [] for name in parts}
    for step in range(warm_up + steps):
        order = torch.randperm(len(data), generator=chance("bench", step))
        indices = order[: config.batch]
        for name, (model, optimizer, method) in parts.items():
            clock = time.perf_counter()
            train_step(
                model, optimizer, method, data.images, labels, indices, config,
                float(config.epochs - 1), chance("bench views", step),
            )  # fmt: skip
            if step >= warm_up:
                seconds[name].append(time.perf_counter() - clock)
    return seconds


def bench(config: RunConfig, data_root: str | Path | None, steps: int) -> int:
    """Prints the median step of every method and its ratio to AN's, step by step."""
    seconds = step_seconds(config, data_root, steps)
    print(
        f"{config.dataset}, profile {config.profile}: batch {config.batch}, crops of "
        f"{config.crop_side} px, {torch.get_num_threads()} thread(s), {steps} steps in turn"
    )
    print(f"{'method':8} {'ms/step':>8} {'x AN':>6}")
    for name, times in seconds.items():
        ratio = statistics.median(t / a for t, a in zip(times, seconds["an"], strict=True))
        print(f"{name:8} {1000 * statistics.median(times):8.1f} {ratio:6.2f}")
    return 0
