"""One run, from configuration to metrics.json. A run can stop at any moment and resume later."""

from __future__ import annotations

import contextlib
import datetime
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from spcl_lib.config import RunConfig
from spcl_lib.data.draws import draw_labels
from spcl_lib.data.image_set import ImageSet
from spcl_lib.evaluate import (
    evaluate_scores,
    mean_average_precision,
    precision_recall,
    predict_scores,
)
from spcl_lib.methods import Method, bytes_of_averages, visible_labels
from spcl_lib.model import SpatialClassifier
from spcl_lib.pooling import TEST_POOLINGS, Pooling
from spcl_lib.runs.checkpoint import Checkpoint, remove_checkpoints
from spcl_lib.runs.evaluation import choose_threshold
from spcl_lib.runs.features import inputs_of
from spcl_lib.runs.network import build_network
from spcl_lib.runs.predictor import one_sided
from spcl_lib.runs.progress import Listener, write_history
from spcl_lib.runs.snapshots import Recorder
from spcl_lib.runs.splits import Splits, identify_data, load_splits, report_labels
from spcl_lib.runs.store import (
    REPEAT,
    Metrics,
    Run,
    add_to_summary,
    metrics_with_sum,
    run_folder,
)
from spcl_lib.system import paths, ranks
from spcl_lib.system.checksums import DamagedError
from spcl_lib.system.errors import UserError
from spcl_lib.system.files import atomic_write, lock_folder, write_json
from spcl_lib.system.machine import choose_device, describe_machine
from spcl_lib.system.weights import save_tensors, save_weights
from spcl_lib.train import Progress, make_optimizer, train


def _ignore(progress: Progress) -> None:
    pass


def run(
    config: RunConfig,
    data_root: str | Path | None = None,
    force: bool = False,
    on_step: Listener = _ignore,
    on_epoch: Listener = _ignore,
) -> Metrics:
    """Trains and evaluates one configuration, unless its run is finished.

    The run's folder holds config.json, history.csv (one row per epoch), weights.safetensors,
    bank.safetensors (the running averages, for methods that have them), scores.safetensors (of the
    images in the report; report_images.txt names them for a user's own folder),
    snapshots.safetensors (if the configuration has snapshots) and metrics.json, which comes last.
    During the run, checkpoint.pt holds the state for a resume.

    A repeat trains in a folder of its own, and replaces the old run when it has finished. If it is
    stopped, the old run stays, and the next repeat goes on.

    With several ranks, all call this, each trains on its own images, and rank 0 writes the files.
    They are those of one process, and metrics.json says how many processes trained.

    Args:
        config: the configuration.
        data_root: see `paths.data_root`.
        force: start again even if the run is finished.
        on_step: called with the progress after every step, on rank 0.
        on_epoch: called after every epoch; `progress.history[-1]` tells how it went. After the last
            epoch it is called when the final evaluation is done.

    Returns:
        The content of metrics.json.

    Raises:
        UserError: the data or weights are missing or damaged, or another process does this run.
    """
    config = identify_data(config, data_root)
    own = Run(config, run_folder(config), data_root)
    folder = own.folder
    with contextlib.ExitStack() as stack:
        lock = lock_folder(folder, "training in")
        ranks.from_first(lambda: stack.enter_context(lock))
        metrics, place = ranks.from_first(lambda: _begin(own, force))
        if metrics is None:
            metrics = _train(config, data_root, place, on_step, on_epoch)
            ranks.from_first(lambda: _end_repeat(folder))
        # An earlier process may have stopped after the metrics and before this line. So finished
        # runs also come here.
        ranks.from_first(lambda: remove_checkpoints(folder))
    ranks.from_first(lambda: add_to_summary(own))
    return metrics


def _begin(own: Run, force: bool) -> tuple[Metrics | None, Path]:
    """The metrics if the run is finished, and the folder in which it trains if it is not."""
    _replace_by_repeat(own.folder)  # an earlier process may have stopped in the middle of this
    return (None, own.folder / REPEAT) if force else (own.metrics, own.folder)


def _train(
    config: RunConfig,
    data_root: str | Path | None,
    folder: Path,
    on_step: Listener,
    on_epoch: Listener,
) -> Metrics:
    """Trains and evaluates in `folder`; a damaged checkpoint costs the steps that followed it."""
    while True:
        with contextlib.suppress(DamagedError):  # `Checkpoint.load` has put it aside, and says so
            return _train_and_evaluate(config, data_root, folder, on_step, on_epoch)


# --- repeats --------------------------------------------------------------------------------------

def _replace_by_repeat(folder: Path) -> None:
    """Puts the files of a finished repeat in the place of the old ones; this needs no space.

    metrics.json goes first and comes last. So a run with files of both never counts as finished.
    """
    place = folder / REPEAT
    if not (place / "metrics.json").is_file():
        return
    remove_checkpoints(place)
    (folder / "metrics.json").unlink(missing_ok=True)
    new = [file for file in place.iterdir() if not file.name.startswith(".")]
    for file in sorted(new, key=lambda file: file.name == "metrics.json"):
        os.replace(file, folder / file.name)
    shutil.rmtree(place, ignore_errors=True)


def _end_repeat(folder: Path) -> None:
    _replace_by_repeat(folder)
    shutil.rmtree(folder / REPEAT, ignore_errors=True)  # it repeats a run that is replaced


# --- before the training --------------------------------------------------------------------------


def prepare(config: RunConfig, data_root: str | Path | None = None) -> None:
    """Makes the shared parts of runs (decoded images, backbone), and finds missing data early."""
    config = identify_data(config, data_root)
    train_set, report_set = load_splits(config, data_root)
    model = build_network(config, len(train_set.classes), data_root)
    for part in (train_set, report_set):
        inputs_of(model.to(choose_device()), part, config)


_DATA_SETTINGS = (
    "dataset", "content", "draw", "report", "train_images", "eval_images", "difficult",
    "unannotated", "damaged", "labels", "full_labels", "image_side",
)  # fmt: skip
_loaded: dict[object, Splits] = {}


def _load_once(config: RunConfig, data_root: str | Path | None) -> Splits:
    """The splits of a run; keeps those of this process's previous run if they are the same."""
    places = data_root, paths.cache(), paths.cache_limit()
    key = (*places, *(getattr(config, name) for name in _DATA_SETTINGS))
    if key not in _loaded:
        _loaded.clear()
        _loaded[key] = load_splits(config, data_root)
    return _loaded[key]


@dataclass
class _Parts:
    """What a run trains and evaluates.

    Attributes:
        model: the network, on its device.
        method: loss and running averages.
        optimizer: of both.
        train: the images to train on, or their features.
        report: the images to report on, or their features.
        observed: (N, C), the labels that the method may see.
        recorder: the snapshots, if the run takes some.
    """

    model: SpatialClassifier
    method: Method
    optimizer: torch.optim.Optimizer
    train: ImageSet
    report: ImageSet
    observed: Tensor
    recorder: Recorder | None


def _build(config: RunConfig, data_root: str | Path | None) -> _Parts:
    train_set, report_set = _load_once(config, data_root)
    single = draw_labels(train_set, config.draw, config.label_seed)
    observed = visible_labels(config.method, train_set.labels, single)
    device = choose_device()
    model = build_network(config, len(train_set.classes), data_root)
    model = model.to(device, memory_format=torch.channels_last)
    # Snapshots show the images, not the features.
    recorder = Recorder(train_set.images, config) if config.snapshots else None
    train_set, report_set = (inputs_of(model, part, config) for part in (train_set, report_set))
    method = Method(
        config.method, *observed.shape, config.settings, config.seed, observed, config.epochs,
        model.pooling, _home_of_averages(config, observed.shape, device),
    )  # fmt: skip
    optimizer = make_optimizer(
        model, config.lr, config.head_lr_factor, config.weight_decay, list(method.parameters())
    )
    return _Parts(model, method, optimizer, train_set, report_set, observed, recorder)


def _train_and_evaluate(
    config: RunConfig,
    data_root: str | Path | None,
    folder: Path,
    on_step: Listener,
    on_epoch: Listener,
) -> Metrics:
    began = time.perf_counter()
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False
    parts = _build(config, data_root)
    # The run has its data, weights and memory. What is there belongs to no finished run.
    ranks.from_first(lambda: (folder / "metrics.json").unlink(missing_ok=True))
    ranks.from_first(Run.of(config, data_root).write_config)
    progress = _train_to_the_end(config, folder, parts, on_step, on_epoch)
    metrics, scores = _evaluate(config, parts)
    progress.history[-1]["mAP"] = metrics["mAP"]  # always the last epoch, never the best one
    metrics |= {
        "epochs": config.epochs, "history": progress.history,
        "train_seconds": round(progress.seconds, 2),
        "wall_seconds": round(time.perf_counter() - began, 2),
        "machine": describe_machine(choose_device()),
        "finished": datetime.date.today().isoformat(),
    }  # fmt: skip
    averages = {} if parts.method.bank is None else parts.method.bank.tensors()
    bank = {name: part.cpu() for name, part in ranks.merge_all(averages).items()}
    ranks.from_first(lambda: _write(folder, parts, bank, scores, metrics))
    if ranks.rank() == 0:
        on_epoch(progress)
    return metrics


def _train_to_the_end(
    config: RunConfig, folder: Path, parts: _Parts, on_step: Listener, on_epoch: Listener
) -> Progress:
    """Trains from the last checkpoint on, and tells the listeners, of all epochs but the last."""
    model, method, recorder = parts.model, parts.method, parts.recorder
    checkpoint = Checkpoint(folder, config, model, parts.optimizer, method, recorder)
    progress = checkpoint.load()
    # This replaces the history of an earlier run.
    ranks.from_first(lambda: write_history(folder, progress.history))

    def after_epoch(progress: Progress) -> dict[str, float]:
        if recorder is not None:
            recorder.record(model, method)
        if progress.epoch % config.eval_every or progress.epoch == config.epochs:
            return {}
        (scores,) = _predict(model, parts.report, config, [model.pooling])
        return {"mAP": _mean(scores, parts.report)}

    def after_step(progress: Progress) -> None:
        saved = checkpoint.after_step(progress)
        if saved and progress.step == 0:  # the history must not run ahead of the checkpoint
            ranks.from_first(lambda: write_history(folder, progress.history))
        if ranks.rank() == 0:
            on_step(progress)
            if progress.step == 0 and progress.epoch < config.epochs:
                on_epoch(progress)

    return train(
        model, parts.optimizer, method, parts.train.images, parts.observed, config,
        progress, after_step, after_epoch,
    )  # fmt: skip


def _evaluate(config: RunConfig, parts: _Parts) -> tuple[Metrics, dict[str, Tensor]]:
    """What the final network gives: its part of metrics.json, and its scores by pooling."""
    model, report = parts.model, parts.report
    found = _predict(model, report, config, [model.pooling, *TEST_POOLINGS])
    scores = dict(zip(["scores", *map(str, TEST_POOLINGS)], found, strict=True))
    own, by_pooling = scores["scores"], map(str, TEST_POOLINGS)
    threshold = choose_threshold(model, parts.train.images, config)
    metrics = evaluate_scores(own, report.labels, report.classes, report.ignored)
    if config.dataset == "imagenet" and config.report == "test":  # the name that ReaL uses
        metrics["real_accuracy"] = metrics["top1_accuracy"]
    return metrics | {
        "mAP_by_pooling": {name: _mean(scores[name], report) for name in by_pooling},
        "dataset": config.dataset, "profile": config.profile, "method": config.method,
        "seed": config.seed, "config": config.flat(), "classes": list(report.classes),
        "train_images": len(parts.train), "report_images": len(report),
        "report_labels": report_labels(config), "threshold": threshold,
        "at_threshold": precision_recall(own >= threshold, report.labels, report.ignored),
        "warnings": one_sided(own >= threshold, report.classes),
    }, scores  # fmt: skip


def _write(
    folder: Path,
    parts: _Parts,
    bank: Mapping[str, Tensor],
    scores: Mapping[str, Tensor],
    metrics: Metrics,
) -> None:
    """Writes the results; metrics.json comes last, so that a run with it is complete."""
    write_history(folder, metrics["history"])
    with atomic_write(folder / "weights.safetensors") as temporary:
        save_weights(parts.model, temporary)
    if bank:
        with atomic_write(folder / "bank.safetensors") as temporary:
            save_tensors(bank, temporary)
    if parts.recorder is not None:
        parts.recorder.save(folder)
    with atomic_write(folder / "scores.safetensors") as temporary:
        save_tensors(scores, temporary)
    if metrics["dataset"] in ("folder", "table"):
        with atomic_write(folder / "report_images.txt") as temporary:
            names = "".join(f"{name}\n" for name in parts.report.ids)
            temporary.write_bytes(os.fsencode(names))
    write_json(folder / "metrics.json", metrics_with_sum(metrics))


def _home_of_averages(
    config: RunConfig, shape: torch.Size, device: torch.device
) -> torch.device | str:
    """The GPU of the network, if it can hold the running averages; else the CPU."""
    if device.type == "cuda":
        needed = bytes_of_averages(config.method, *shape, config.settings)
        if needed < torch.cuda.mem_get_info(device)[0] / 2:
            return device
    return "cpu"


def _predict(
    model: SpatialClassifier, data: ImageSet, config: RunConfig, poolings: Sequence[Pooling]
) -> list[Tensor]:
    """The scores (M, C) of all images."""
    found = predict_scores(model, data.images, config.eval_side, poolings, "off")
    if not all(bool(scores.isfinite().all()) for scores in found):
        raise UserError(
            "the network's scores are no numbers any more; lower the learning rate: "
            f"--set lr={config.lr / 10:g}"
        )
    return found


def _mean(scores: Tensor, data: ImageSet) -> float:
    return mean_average_precision(scores, data.labels, data.ignored)
