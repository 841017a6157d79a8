"""One run, from configuration to metrics.json. A run can stop at any moment and resume later."""

import contextlib
import datetime
import math
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from spcl_lib.config import RunConfig
from spcl_lib.data.draws import draw_labels
from spcl_lib.data.image_set import ImageSet
from spcl_lib.evaluate import (
    evaluate_scores,
    mean_average_precision,
    precision_recall,
    predict_scores,
)
from spcl_lib.methods import METHODS, Method, bytes_of_averages, visible_labels
from spcl_lib.model import SpatialClassifier
from spcl_lib.pooling import TEST_POOLINGS
from spcl_lib.runs.checkpoint import Checkpoint, remove_checkpoints
from spcl_lib.runs.evaluation import choose_threshold
from spcl_lib.runs.features import inputs_of
from spcl_lib.runs.network import build_network, checksum_of
from spcl_lib.runs.predictor import one_sided
from spcl_lib.runs.snapshots import Recorder
from spcl_lib.runs.splits import identify_data, load_splits, report_labels
from spcl_lib.runs.store import REPEAT, Metrics, Run, write_metrics
from spcl_lib.system import ranks
from spcl_lib.system.checksums import DamagedError
from spcl_lib.system.files import atomic_write, lock_folder
from spcl_lib.system.machine import choose_device, count_cores, describe_machine
from spcl_lib.system.weights import save_tensors
from spcl_lib.train import Progress, make_optimizer, train

Listener = Callable[[Progress], None]
FEW_STEPS = 200  # on 300 photographs of COCO, twice the usual epochs give REN + SCL 4 points


def run(
    config: RunConfig,
    data_root: str | Path | None = None,
    force: bool = False,
    on_epoch: Listener = lambda progress: None,
) -> Metrics:
    """Trains and evaluates one configuration, unless its run is finished; gives its metrics.

    The run's folder holds config.json, the weights, the running averages (bank), the scores of the
    images in the report (report_images.txt names them, if they are a user's own), snapshots if
    there are some, and metrics.json, which comes last. With several ranks, all call this, each
    trains on its own images, and rank 0 writes the files.

    Args:
        config: the configuration.
        data_root: see `paths.data_root`.
        force: repeat a finished run. The repeat trains in a folder of its own. If it is stopped,
            the old run stays, and the next repeat goes on.
        on_epoch: called after every epoch, on rank 0; `progress.history[-1]` tells how it went.
    """
    own = Run.of(identify_data(config, data_root), data_root)
    with contextlib.ExitStack() as stack:
        stack.enter_context(_usual_threads())
        lock = lock_folder(own.folder, "training in")
        ranks.from_first(lambda: stack.enter_context(lock))
        # An earlier process may have stopped in the middle of this.
        ranks.from_first(lambda: _replace_by_repeat(own.folder))
        place = own.folder / REPEAT if force else own.folder
        metrics = None if force else ranks.from_first(lambda: own.metrics)
        while metrics is None:
            with contextlib.suppress(DamagedError):  # of a checkpoint, which has been put aside
                metrics = _train_and_report(own, place, on_epoch)
        ranks.from_first(lambda: _replace_by_repeat(own.folder))
        ranks.from_first(lambda: remove_checkpoints(own.folder))  # perhaps of an earlier process
    return metrics


def threads_of_a_run() -> int:
    """The threads of every run: OMP_NUM_THREADS, or one on a CPU.

    Another number changes the last bits of a sum. So it depends neither on the runs side by side
    nor on who starts a run: a stopped one may go on in another way.
    """
    usual = 1 if choose_device().type == "cpu" else count_cores()
    return int(os.environ.get("OMP_NUM_THREADS") or usual)


@contextlib.contextmanager
def _usual_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(threads_of_a_run())
    try:
        yield
    finally:
        torch.set_num_threads(before)


def print_epoch(config: RunConfig, progress: Progress) -> None:
    """Writes a line to stderr: which epoch has ended, its loss, and its mAP if there is one."""
    row, clock = progress.history[-1], time.strftime("%H:%M:%S")
    score = f", mAP {row['mAP']:.1f} %" if "mAP" in row else ""
    tqdm.write(
        f"{clock} {config.method} seed {config.seed}: epoch {row['epoch']} of {config.epochs}, "
        f"loss {row['loss']:.4f}{score}", file=sys.stderr,
    )  # fmt: skip


def _replace_by_repeat(folder: Path) -> None:
    """Puts the files of a finished repeat in the place of the old ones; this needs no space.

    metrics.json goes first and comes last. So a run with files of both never counts as finished.
    """
    place = folder / REPEAT
    if (place / "metrics.json").is_file():
        remove_checkpoints(place)
        (folder / "metrics.json").unlink(missing_ok=True)
        for file in sorted(place.glob("[!.]*"), key=lambda file: file.name == "metrics.json"):
            os.replace(file, folder / file.name)
        shutil.rmtree(place, ignore_errors=True)


# --- preparation ----------------------------------------------------------------------------------


def prepare(config: RunConfig, data_root: str | Path | None = None) -> None:
    """Makes the shared parts of runs (decoded images, features), and finds missing data early."""
    with _usual_threads():
        _prepare(identify_data(config, data_root), data_root)


@dataclass
class _Parts:
    """What a run trains and evaluates; `observed` (N, C) are the labels that the method may see."""

    config: RunConfig
    model: SpatialClassifier
    method: Method
    optimizer: torch.optim.Optimizer
    train: ImageSet
    report: ImageSet
    observed: Tensor
    recorder: Recorder | None
    pretrained: str  # the checksum of the backbone's first weights


def _prepare(config: RunConfig, data_root: str | Path | None) -> _Parts:
    train_set, report_set = load_splits(config, data_root)
    single = draw_labels(train_set, config.draw, config.label_seed)
    observed = visible_labels(config.method, train_set.labels, single)
    device = choose_device()
    model = build_network(config, len(train_set.classes), data_root)
    pretrained = checksum_of(model.features)[:8]
    model = model.to(device, memory_format=torch.channels_last)
    # Snapshots show the images, not the features.
    recorder = Recorder(train_set.images, config) if config.snapshots else None
    train_set, report_set = (inputs_of(model, part, config) for part in (train_set, report_set))
    needed = bytes_of_averages(config.method, *observed.shape, config.settings)
    fits = device.type == "cuda" and needed < torch.cuda.mem_get_info(device)[0] / 2
    method = Method(
        config.method, *observed.shape, config.settings, config.seed, observed, config.epochs,
        model.pooling, device if fits else "cpu",
    )  # fmt: skip
    optimizer = make_optimizer(
        model, config.lr, config.head_lr_factor, config.weight_decay, list(method.parameters())
    )
    return _Parts(
        config, model, method, optimizer, train_set, report_set, observed, recorder, pretrained
    )


# --- training and report --------------------------------------------------------------------------


def _train_and_report(own: Run, folder: Path, on_epoch: Listener) -> Metrics:
    began = time.perf_counter()
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False
    parts = _prepare(own.config, own.data_root)
    ranks.from_first(own.write_config)
    progress = _train(parts, folder, on_epoch)
    metrics, scores = _evaluate(parts)
    progress.history[-1]["mAP"] = metrics["mAP"]  # always the last epoch, never the best one
    metrics |= {
        "epochs": own.config.epochs, "history": progress.history,
        "train_seconds": round(progress.seconds, 2),
        "wall_seconds": round(time.perf_counter() - began, 2),
        "machine": describe_machine(choose_device()),
        "finished": datetime.date.today().isoformat(),
    }  # fmt: skip
    averages = {} if parts.method.bank is None else parts.method.bank.tensors()
    bank = {name: part.cpu() for name, part in ranks.merge(averages).items()}
    files = {
        "weights": parts.model.state_dict(), "bank": bank, "scores": {"scores": scores},
        "snapshots": {} if parts.recorder is None else parts.recorder.tensors(),
    }  # fmt: skip
    names = parts.report.ids if own.config.dataset in ("folder", "table") else ()
    ranks.from_first(lambda: _write(folder, files, names, metrics))
    return metrics


def _train(parts: _Parts, folder: Path, on_epoch: Listener) -> Progress:
    """Trains from the last checkpoint on."""
    config, model, method, report = parts.config, parts.model, parts.method, parts.report
    recorder = parts.recorder
    more = {} if recorder is None else {"snapshots": recorder}
    checkpoint = Checkpoint(
        folder, config, model=model, optimizer=parts.optimizer, method=method, **more
    )
    progress = checkpoint.load()

    def after_epoch(progress: Progress) -> dict[str, float]:
        if recorder is not None:
            recorder.record(model, method)
        if progress.epoch % config.eval_every or progress.epoch == config.epochs:
            return {}
        # In the training's precision, because it only shows the course; the end is in float32.
        (scores,) = predict_scores(
            model, report.images, config.eval_side, [model.pooling], config.amp
        )
        return {"mAP": _mean(scores, report)}

    def after_step(progress: Progress) -> None:
        checkpoint.after_step(progress)
        if ranks.rank() == 0 and progress.step == 0:
            on_epoch(progress)

    return train(
        model, parts.optimizer, method, parts.train.images, parts.observed, config,
        progress, after_step, after_epoch,
    )  # fmt: skip


def _evaluate(parts: _Parts) -> tuple[Metrics, Tensor]:
    """What the final network gives: its part of metrics.json, and its scores (N, C)."""
    config, model, report = parts.config, parts.model, parts.report
    poolings = [model.pooling, *TEST_POOLINGS]
    own, *others = predict_scores(model, report.images, config.eval_side, poolings)
    by_pooling = {str(p): _mean(o, report) for p, o in zip(TEST_POOLINGS, others, strict=True)}
    threshold = choose_threshold(model, parts.train.images, config)
    metrics = evaluate_scores(own, report.labels, report.classes, report.ignored)
    if config.dataset == "imagenet" and config.report == "test":  # the name that ReaL uses
        metrics["real_accuracy"] = metrics["top1_accuracy"]
    return metrics | {
        "mAP_by_pooling": by_pooling,
        "dataset": config.dataset, "profile": config.profile, "method": config.method,
        "seed": config.seed, "config": config.flat(), "classes": list(report.classes),
        "train_images": len(parts.train), "report_images": len(report),
        "pretrained": parts.pretrained, "report_labels": report_labels(config),
        "threshold": threshold,
        "at_threshold": precision_recall(own >= threshold, report.labels, report.ignored),
        "warnings": [*one_sided(own >= threshold, report.classes), *_short(config, parts.train)],
    }, own  # fmt: skip


def _short(config: RunConfig, data: ImageSet) -> list[str]:
    """Warnings: a training that ends before the heatmaps count; a layer that made few steps."""
    found, epochs, start = [], config.epochs, config.settings.start
    spec = METHODS[config.method]
    if (spec.consistency or spec.row.reads_averages) and start >= epochs:
        found.append(f"warning: averages count after {start} epochs; this run made {epochs}")
    steps = epochs * math.ceil(len(data) / config.batch)
    if steps < FEW_STEPS and config.trained == "head":  # on fixed features it needs many
        enough = f"--set epochs={math.ceil(epochs * FEW_STEPS / steps)}"
        found.append(f"warning: {steps} steps are few; more epochs are often better: {enough}")
    return found


def _mean(scores: Tensor, data: ImageSet) -> float:
    return mean_average_precision(scores, data.labels, data.ignored)


def _write(
    folder: Path, files: Mapping[str, Mapping[str, Tensor]], names: Sequence[str], metrics: Metrics
) -> None:
    """Writes the results; metrics.json comes last, so that a run with it is complete."""
    (folder / "metrics.json").unlink(missing_ok=True)  # of an earlier run with other settings
    for name, tensors in files.items():
        if tensors:
            with atomic_write(folder / f"{name}.safetensors") as temporary:
                save_tensors(tensors, temporary)
    if names:
        with atomic_write(folder / "report_images.txt") as temporary:
            temporary.write_bytes(os.fsencode("".join(f"{name}\n" for name in names)))
    write_metrics(folder, metrics)
