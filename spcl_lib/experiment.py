"""One run, from configuration to metrics.json, that can be stopped at any moment and resumed."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import fcntl
import json
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import save_file

from spcl_lib import paths
from spcl_lib.checkpoint import Checkpoint
from spcl_lib.config import RunConfig, make_config
from spcl_lib.data import ImageSet, draw_labels, identified, load_splits, report_labels
from spcl_lib.data.cache import replacing, sweep
from spcl_lib.errors import UserError
from spcl_lib.evaluate import evaluate
from spcl_lib.history import write_history
from spcl_lib.losses import Method
from spcl_lib.machine import machine
from spcl_lib.model import SpatialClassifier, build_backbone, save_weights
from spcl_lib.predict import choose_threshold
from spcl_lib.pretrain import pretrained_backbone
from spcl_lib.snapshots import Recorder
from spcl_lib.summary import write_summary
from spcl_lib.train import Progress, make_optimizer, train

_DEFAULTS = dataclasses.asdict(RunConfig())
_LOCK_SECONDS = 20.0  # how long to wait for a process that still holds a run's folder


def run_folder(config: RunConfig) -> Path:
    """Folder of a run; a configuration that differs from its profile has a folder of its own.

    So have the runs on every state of a user's folder of images.
    """
    base = make_config(config.dataset, config.method, config.seed, config.profile)
    plain = config == dataclasses.replace(base, content=config.content)
    suffix = "" if plain else f"-{config.digest()}"
    group = "-".join(filter(None, (config.dataset, config.profile, config.content)))
    return paths.results() / group / f"{config.method}-seed{config.seed}{suffix}"


def finished(config: RunConfig) -> dict[str, object] | None:
    """The metrics of a finished run with exactly this configuration, else None.

    A setting that is newer than the run counts as having had its default value: every new
    setting's default keeps what was done before it.
    """
    path = run_folder(config) / "metrics.json"
    try:
        metrics = json.loads(path.read_text())
        return metrics if _DEFAULTS | metrics["config"] == dataclasses.asdict(config) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def run(
    config: RunConfig, data_root: str | Path | None = None, force: bool = False
) -> dict[str, object]:
    """Trains and evaluates one configuration, unless that is done already.

    The run's folder holds config.json, history.csv (which grows with every epoch),
    weights.safetensors, bank.safetensors (the running averages, for methods that have them),
    snapshots.safetensors (if asked for) and, written last, metrics.json. While it runs,
    checkpoint.pt holds all that is needed to go on.

    Args:
        config: what to run.
        data_root: see `paths.data_root`.
        force: start again even if it is finished.

    Returns:
        The content of metrics.json.

    Raises:
        UserError: the data or weights are missing or damaged, or another process is at this run.
    """
    config = identified(config, data_root)
    folder = run_folder(config)
    with _only_one(folder):
        metrics = None if force else finished(config)
        if metrics is None:
            metrics = _train_and_evaluate(config, data_root, folder, force)
        # For a run that was finished before, too: it may have been stopped just here.
        (folder / "checkpoint.pt").unlink(missing_ok=True)
    write_summary()
    return metrics


def prepare(config: RunConfig, data_root: str | Path | None = None) -> None:
    """Makes what runs share (decoded images, pretrained backbone) and finds missing data early."""
    train_set, _ = load_splits(config, data_root)
    _, accuracy = build_model(config, len(train_set.classes), data_root)
    if accuracy is not None:
        print(f"pretrained backbone: {accuracy:.1f} % of held-out glyphs right", flush=True)


def _train_and_evaluate(
    config: RunConfig, data_root: str | Path | None, folder: Path, force: bool
) -> dict[str, object]:
    began = time.perf_counter()
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False
    train_set, report_set = load_splits(config, data_root)
    single = draw_labels(train_set, config.draw, config.label_seed)
    observed = train_set.labels if config.method == "full" else single

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model, pretraining = build_model(config, len(train_set.classes), data_root)
    model = model.to(device, memory_format=torch.channels_last)
    optimizer = make_optimizer(model, config)
    method = Method(
        config.method, len(train_set), len(train_set.classes), config.method_settings(), config.seed
    )
    # Only now, when nothing is missing, does what was there before go away.
    for old in ("metrics.json", *(["checkpoint.pt"] if force else [])):
        (folder / old).unlink(missing_ok=True)
    write_json(folder / "config.json", dataclasses.asdict(config))
    recorder = Recorder(train_set.images, config) if config.snapshots else None
    checkpoint = Checkpoint(folder / "checkpoint.pt", config, model, optimizer, method, recorder)
    progress = checkpoint.load()
    write_history(folder, progress.history)  # from here on it is this run's

    def after_epoch(progress: Progress) -> dict[str, float]:
        if recorder is not None:
            recorder.record(model, method)
        due = progress.epoch % config.eval_every == 0 and progress.epoch < config.epochs
        return {"mAP": _mean_ap(model, report_set, config)} if due else {}

    def after_step(progress: Progress) -> None:
        checkpoint.after_step(progress)
        if progress.step == 0:  # after the checkpoint, so that it never tells more than is kept
            write_history(folder, progress.history)

    progress = train(
        model, optimizer, method, train_set.images, observed, config,
        progress, after_step, after_epoch,
    )  # fmt: skip
    metrics = evaluate(model, report_set, config.eval_side, config.amp)
    if config.dataset == "imagenet" and config.report == "test":  # ReaL's labels; its name for it
        metrics["real_accuracy"] = metrics["top1_accuracy"]
    progress.history[-1]["mAP"] = metrics["mAP"]  # the last epoch is the one reported, always

    write_history(folder, progress.history)
    with replacing(folder / "weights.safetensors") as temporary:
        save_weights(model, temporary)
    if method.bank is not None:
        with replacing(folder / "bank.safetensors") as temporary:
            save_file({"heatmaps": method.bank.heatmaps, "seen": method.bank.seen}, temporary)
    if recorder is not None:
        recorder.save(folder)
    metrics |= {
        "dataset": config.dataset, "profile": config.profile, "method": config.method,
        "seed": config.seed, "epochs": config.epochs,
        "train_seconds": round(progress.seconds, 2),
        "wall_seconds": round(time.perf_counter() - began, 2),
        "train_images": len(train_set), "report_images": len(report_set),
        "report_labels": report_labels(config),
        "threshold": choose_threshold(model, train_set.images, config),
        "classes": list(train_set.classes), "history": progress.history,
        "pretraining_accuracy": pretraining, "config": dataclasses.asdict(config),
        "machine": machine(device), "finished": datetime.date.today().isoformat(),
    }  # fmt: skip
    write_json(folder / "metrics.json", metrics)
    return metrics


def build_model(
    config: RunConfig, num_classes: int, data_root: str | Path | None = None
) -> tuple[SpatialClassifier, float | None]:
    """The network at the start of a run, and the pretraining accuracy where we pretrained it.

    `weights="auto"` means: for small_resnet, our pretraining on glyphs; else the file that
    `paths.weights` finds, or torchvision's weights.
    """
    weights: str | Path | None = config.weights
    accuracy = None
    if weights == "none":
        weights = None
    elif weights == "auto" and config.backbone == "small_resnet":
        weights, accuracy = pretrained_backbone(
            config.pretrain_images, config.pretrain_epochs, config.amp
        )
    elif weights == "auto":
        weights = paths.weights(config.backbone, data_root) or "torchvision"
    torch.manual_seed(config.seed)
    features, num_features = build_backbone(config.backbone, weights)
    return SpatialClassifier(features, num_features, num_classes, config.frozen), accuracy


def _mean_ap(model: SpatialClassifier, data: ImageSet, config: RunConfig) -> float:
    return float(evaluate(model, data, config.eval_side, config.amp)["mAP"])


@contextlib.contextmanager
def _only_one(folder: Path) -> Iterator[None]:
    """Holds the run's folder; a process that is being killed may hold it a moment longer."""
    with paths.explained(folder):
        folder.mkdir(parents=True, exist_ok=True)
        handle = open(folder / ".lock", "w")
    with handle:
        deadline = time.monotonic() + _LOCK_SECONDS
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise UserError(
                        f"another process is training in '{folder}'; wait for it or stop it"
                    ) from None
                time.sleep(0.2)
        sweep(folder)
        yield


def write_json(path: Path, value: object) -> None:
    """Writes JSON atomically."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(value, indent=1) + "\n")
