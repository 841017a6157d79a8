"""The store of runs: the folder of every run, the files in it, and results/summary.csv."""

from __future__ import annotations

import contextlib
import csv
import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from spcl_lib.bank import HeatmapBank
from spcl_lib.config import RETIRED, RunConfig
from spcl_lib.data.draws import draw_labels
from spcl_lib.data.image_set import ImageSet
from spcl_lib.evaluate import predict_maps
from spcl_lib.model import SpatialClassifier
from spcl_lib.runs.network import load_network
from spcl_lib.runs.settings import changes, check_config, make_config
from spcl_lib.runs.splits import Splits, identify_data, load_splits
from spcl_lib.sparse_bank import bank_of
from spcl_lib.system import paths
from spcl_lib.system.checksums import read_summed, with_sum
from spcl_lib.system.errors import UserError
from spcl_lib.system.files import atomic_write, lock_file, parse_json, read_list, write_json
from spcl_lib.system.weights import load_tensors

Metrics = dict[str, Any]  # content of a run's metrics.json


# --- folders --------------------------------------------------------------------------------------


def run_folder(config: RunConfig) -> Path:
    """Folder of a run; a configuration that differs from its profile has its own folder.

    Runs on other data have their own folders too, because the name contains `config.content`.
    """
    suffix = f"-{config.digest()}" if changes(config) else ""
    group = "-".join(filter(None, (config.dataset, config.profile, config.content)))
    return paths.results() / group / f"{config.method}-seed{config.seed}{suffix}"


_NAMED = 5  # most data sets that a message names
REPEAT = "repeat"  # the folder, in a run's folder, of a repeat that has not finished


def find_run(place: Path) -> Path:
    """Folder of a finished run: `place` itself, else the run below it that finished last.

    Args:
        place: a folder, or the metrics.json of a run. A relative path that begins with "results"
            and does not exist here is looked for in `paths.results`, where runs go.

    Raises:
        UserError: there is no finished run, or there are runs of several data sets or classes.
    """
    place = _place_of_runs(place)
    if (place / "metrics.json").is_file():
        return place
    found = (file for file in place.rglob("metrics.json") if file.is_file())
    runs = [file.parent for file in sorted(found, key=lambda file: file.stat().st_mtime_ns)]
    if not runs:
        state = "has not finished" if (place / "config.json").is_file() else "is no run"
        raise UserError(
            f"'{place}' {state}: it has no metrics.json. Give the folder that "
            f"`python -m spcl_lib run` prints when it ends; runs go to '{paths.results()}'"
        )
    _refuse_several(runs, place)
    return runs[-1]


def _place_of_runs(place: Path) -> Path:
    place = paths.expand_home(place)
    place = place.parent if place.name == "metrics.json" else place
    if place.parts[:1] == ("results",) and not place.exists():
        return paths.results().joinpath(*place.parts[1:])
    return place


def _refuse_several(runs: list[Path], place: Path) -> None:
    """Refuses runs that differ in data set or classes: the last one may not be the one meant."""
    last: dict[tuple[str, tuple[str, ...]], Path] = {}
    for folder in runs:
        with contextlib.suppress(UserError):  # a damaged run is named when it is the one meant
            config, metrics = read_metrics(folder)
            last[config.dataset, tuple(metrics["classes"])] = folder
    if len(last) > 1:
        named = [
            f"{dataset} ({len(classes)} classes: {', '.join(classes[:3])}, ...) in '{folder}'"
            for (dataset, classes), folder in list(last.items())[-_NAMED:]
        ]
        raise UserError(
            f"'{place}' holds runs of {len(last)} data sets; give the folder of one of them, here "
            f"with its last run: {'; '.join(reversed(named))}"
        )


# --- what to run ----------------------------------------------------------------------------------


def write_config(config: RunConfig, data_root: str | Path | None) -> Path:
    """Writes config.json, which is enough to start this run, into the run's folder."""
    file = run_folder(config) / "config.json"
    root = None if data_root is None else str(paths.real_path(data_root))
    write_json(file, {"config": config.flat(), "data_root": root})
    return file


def read_config(file: Path) -> tuple[RunConfig, str | None]:
    """The configuration and the data root that `write_config` wrote.

    Args:
        file: config.json, or the folder that holds it.

    Raises:
        UserError: the file is missing or damaged.
    """
    file = file / "config.json" if file.is_dir() else file
    try:
        content = parse_json(read_list(file))
        root = content["data_root"]
        if not isinstance(root, str | None):
            raise ValueError(f"data_root must be a text or null; got {root!r}")
        return check_config(RunConfig.from_flat(dict(content["config"]))), root
    except (OSError, ValueError, KeyError, TypeError, UserError) as error:
        raise UserError(
            f"'{file}' is no configuration of a run ({type(error).__name__}: {error}); give the "
            "config.json of a run's folder"
        ) from error


# --- finished runs --------------------------------------------------------------------------------

# These differ between two equal runs. They are no part of the checksum, so that equal runs still
# have equal results.
_VARYING = frozenset({"train_seconds", "wall_seconds", "finished", "machine"})


def metrics_with_sum(metrics: Metrics) -> Metrics:
    """The content of metrics.json: the metrics with their checksum."""
    return with_sum(metrics, _VARYING)


def _read(file: Path) -> Metrics:
    return read_summed(file, _VARYING)


def load_metrics(config: RunConfig) -> Metrics | None:
    """The metrics of a finished run with exactly this configuration, else None.

    If a setting is newer than the run, the run counts as one with its default value. The default of
    every new setting keeps the old behaviour.
    """
    file = run_folder(config) / "metrics.json"
    try:
        metrics = _read(file)
        metrics["mAP"], metrics["classes"]
        return metrics if RunConfig.from_flat(metrics["config"]) == config else None
    except OSError:
        return None
    except (ValueError, KeyError, TypeError, UserError) as error:
        _say_damaged(file, error)
        return None


_said: set[tuple[Path, int]] = set()  # damaged files, with their dates, that were named already


def _say_damaged(file: Path, error: Exception) -> None:
    with contextlib.suppress(OSError):
        if (known := (file, file.stat().st_mtime_ns)) not in _said:
            _said.add(known)
            print(f"spcl: '{file}' is damaged ({error}) and does not count; run it again",
                  flush=True)  # fmt: skip


def read_metrics(folder: Path) -> tuple[RunConfig, Metrics]:
    """The configuration and the metrics of the finished run in `folder`.

    Raises:
        UserError: metrics.json is missing, damaged, or of another version of spcl.
    """
    try:
        metrics = _read(folder / "metrics.json")
        metrics["classes"], metrics["mAP"]
        return RunConfig.from_flat(metrics["config"]), metrics
    except (OSError, ValueError, KeyError, TypeError, UserError) as error:
        raise UserError(
            f"'{folder / 'metrics.json'}' is damaged or of another version of spcl "
            f"({type(error).__name__}: {error}); train again, with --force"
        ) from error


@dataclass(frozen=True)
class FinishedRun:
    """A finished run, loaded.

    Attributes:
        config: configuration of the run.
        metrics: content of its metrics.json.
        model: the trained network, in evaluation mode.
        train: the images it was trained on.
        report: the images it was evaluated on.
        observed: (N, C) bool, the single labels of `train` (also for the method "full").
        bank: the running averages after training; None if the method keeps none.
        folder: folder of the run.
    """

    config: RunConfig
    metrics: Metrics
    model: SpatialClassifier
    train: ImageSet
    report: ImageSet
    observed: Tensor
    bank: HeatmapBank | None
    folder: Path

    @cached_property
    def grid(self) -> int:
        """G, cells along each side of the score maps of a training crop."""
        side = self.config.crop_side
        crop = torch.zeros((1, 3, side, side), dtype=torch.uint8)
        return predict_maps(self.model, crop, side, self.config.amp).shape[-1]


def finished_metrics(config: RunConfig, command: str) -> Metrics:
    """The metrics of a run that must have finished.

    Args:
        config: configuration of the run.
        command: the command that makes the run, for the message.

    Raises:
        UserError: the run has not finished.
    """
    metrics = load_metrics(config)
    if metrics is None:
        raise UserError(f"the run '{run_folder(config)}' has not finished; make it with: {command}")
    return metrics


def load_run(
    config: RunConfig, data_root: str | Path | None = None, splits: Splits | None = None
) -> FinishedRun:
    """Loads a finished run.

    Args:
        config: configuration of the run.
        data_root: see `paths.data_root`.
        splits: result of `load_splits` for this configuration, if it is loaded already.

    Raises:
        UserError: the run is not finished, its files are damaged, or the data are missing.
    """
    if not config.content:  # else a run on a user's own data would never count as finished
        config = identify_data(config, data_root)
    options = f"--dataset {config.dataset} --method {config.method} --seed {config.seed}"
    metrics = finished_metrics(
        config, f"python -m spcl_lib run {options} --profile {config.profile}, with the same --set"
    )
    splits = splits or load_splits(config, data_root)
    return _load(run_folder(config), config, metrics, splits)


def open_run(folder: Path, data_root: str | Path | None = None) -> FinishedRun:
    """Loads the finished run in a folder, wherever that is, with the objects if they are known.

    Args:
        folder: folder of the run.
        data_root: the run's data; by default where they were.

    Raises:
        UserError: see `load_run`; or the data are not those of the run.
    """
    config, metrics = read_metrics(folder)
    data_root = data_root or read_config(folder)[1]
    splits = load_splits(identify_data(config, data_root), data_root, objects=True)
    return _load(folder, config, metrics, splits)


def _load(folder: Path, config: RunConfig, metrics: Metrics, splits: Splits) -> FinishedRun:
    train, report = splits
    model = load_network(folder, config, len(train.classes))
    observed = draw_labels(train, config.draw, config.label_seed)
    stored = folder / "bank.safetensors"
    bank = _read_bank(stored, train) if stored.is_file() else None
    return FinishedRun(config, metrics, model, train, report, observed, bank, folder)


def _read_bank(file: Path, train: ImageSet) -> HeatmapBank:
    tensors = read_tensors(file)
    with explain_content(file):
        bank = bank_of(tensors)
        found, needed = (bank.num_images, bank.num_classes), (len(train), len(train.classes))
        if found != needed:
            raise ValueError(f"of {found} images and classes; expected {needed}")
        return bank


@contextlib.contextmanager
def explain_content(file: Path) -> Iterator[None]:
    """Turns the error of a function that gets the content of a run's file into a UserError."""
    try:
        yield
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"'{file}' does not hold what a run writes there ({error}); run it again with --force"
        ) from error


def read_tensors(file: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file of a run.

    Raises:
        UserError: the file is missing or damaged.
    """
    try:
        return load_tensors(file)
    except UserError:
        raise
    except Exception as error:  # safetensors raises many kinds for a damaged file
        raise UserError(f"'{file}' cannot be read ({error}); run it again with --force") from error


# --- summary.csv ----------------------------------------------------------------------------------

SUMMARY_COLUMNS = (
    "dataset", "profile", "method", "seed", "mAP", "epochs", "train_seconds", "CF1", "OF1",
    "report", "folder", "content", "changes",
)  # fmt: skip


def write_summary() -> Path:
    """Replaces results/summary.csv, with one row per finished run.

    `changes` has the settings that differ from the profile, and `content` identifies the data. Only
    runs with the same values there differ by their seed alone. Copies of a run's folder get no row.
    """
    path = paths.results() / "summary.csv"
    with lock_file(path):  # runs that end at the same time must not remove each other's row
        rows: dict[object, Mapping[str, object]] = {}
        for file in sorted(paths.results().glob("*/*/metrics.json")):
            try:
                metrics = _read(file)
                row = _summary_row(metrics, file.parent)
                what = json.dumps(_complete(metrics["config"]), sort_keys=True)
                if what not in rows or _is_in_place(metrics, file.parent):
                    rows[what] = row
            except (OSError, ValueError, KeyError, TypeError):
                print(f"spcl: '{file}' is damaged and left out; run it again", file=sys.stderr)
        with atomic_write(path) as temporary, open(temporary, "w", newline="") as handle:
            writer = csv.DictWriter(handle, SUMMARY_COLUMNS)
            writer.writeheader()
            writer.writerows(rows.values())
    return path


def _summary_row(metrics: Metrics, folder: Path) -> Mapping[str, object]:
    row = {name: metrics[name] for name in SUMMARY_COLUMNS[:7]}
    row |= {name: metrics["at_0.5"][name] for name in ("CF1", "OF1")}
    config = _complete(metrics["config"])
    return row | {
        "report": config["report"], "folder": folder.name, "content": config["content"],
        "changes": " ".join(f"{k}={v}" for k, v in _changes(config).items()),
    }  # fmt: skip


def _complete(config: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a configuration, also of another version, with today's defaults."""
    return RunConfig().flat() | {k: v for k, v in config.items() if k not in RETIRED}


def _changes(config: Mapping[str, Any]) -> dict[str, object]:
    """The settings that differ from the profile; all others if the profile exists no more."""
    names = ("dataset", "method", "seed", "profile")
    try:
        usual = make_config(*(config[name] for name in names)).flat()
    except UserError:
        usual = RunConfig().flat()
    left_out = (*names, "content")
    return {k: v for k, v in config.items() if k not in left_out and v != usual.get(k)}


def _is_in_place(metrics: Metrics, folder: Path) -> bool:
    """Whether a run is in its own folder, which is no copy."""
    try:
        return run_folder(RunConfig.from_flat(metrics["config"])) == folder
    except (UserError, TypeError):  # of another version
        return False
