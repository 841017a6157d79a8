"""The store of runs: the folder of every run, the files in it, and results/summary.csv."""

import contextlib
import csv
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from spcl_lib.bank import HeatmapBank
from spcl_lib.config import RunConfig
from spcl_lib.data.draws import draw_labels
from spcl_lib.data.image_set import ImageSet
from spcl_lib.evaluate import predict_maps
from spcl_lib.model import SpatialClassifier
from spcl_lib.runs.network import load_network
from spcl_lib.runs.settings import changes, check_config
from spcl_lib.runs.splits import identify_data, load_splits
from spcl_lib.sparse_bank import bank_of
from spcl_lib.system import paths
from spcl_lib.system.checksums import put_aside, read_summed, with_sum
from spcl_lib.system.errors import UserError
from spcl_lib.system.files import atomic_write, lock_file, write_json
from spcl_lib.system.weights import load_tensors

Metrics = dict[str, Any]  # content of a run's metrics.json
REPEAT = "repeat"  # the folder, in a run's folder, of a repeat that has not finished
# These differ between two equal runs, and are no part of the checksum.
_VARYING = frozenset({"train_seconds", "wall_seconds", "finished", "machine"})
_FROM_METRICS = ["dataset", "profile", "method", "seed", "mAP", "epochs", "train_seconds"]
_COLUMNS = [*_FROM_METRICS, "CF1", "OF1", "report", "folder", "content", "changes"]


def run_folder(config: RunConfig) -> Path:
    """Folder of a run; other settings than the profile's, or other data, make another folder."""
    suffix = f"-{config.digest()}" if changes(config) else ""
    group = "-".join(filter(None, (config.dataset, config.profile, config.content)))
    return paths.results() / group / f"{config.method}-seed{config.seed}{suffix}"


@dataclass(frozen=True)
class FinishedRun:
    """A finished run, loaded."""

    config: RunConfig
    folder: Path
    metrics: Metrics
    model: SpatialClassifier  # in evaluation mode
    train: ImageSet
    report: ImageSet
    observed: Tensor  # (N, C) bool, the single labels of `train` (also for the method "full")
    bank: HeatmapBank | None  # after training; None if the method keeps no running averages

    @property
    def grid(self) -> int:
        """G, cells along each side of the score maps of a training crop."""
        side = self.config.crop_side
        crop = torch.zeros((1, 3, side, side), dtype=torch.uint8)
        return predict_maps(self.model, crop, side, self.config.amp).shape[-1]


@dataclass(frozen=True)
class Run:
    """A run, finished or not: its configuration, its folder, and where its data are."""

    config: RunConfig
    folder: Path
    data_root: str | Path | None = None

    @classmethod
    def of(cls, config: RunConfig, data_root: str | Path | None = None) -> Self:
        """The run of a configuration, in its place below `paths.results`.

        Where the data are missing, it is the run on unknown data, which has not finished.
        """
        if not config.content:
            with contextlib.suppress(UserError):
                config = identify_data(config, data_root)
        return cls(config, run_folder(config), data_root)

    @classmethod
    def find(cls, place: str | Path, data_root: str | Path | None = None) -> Self:
        """The run at a place: its folder, its config.json, or a folder with one finished run below.

        For a place that begins with "results" see `paths.in_results`. The data are by default where
        they were.
        """
        place = paths.in_results(place)
        if not place.exists():
            raise UserError(f"'{place}' does not exist; give a run's folder, or its config.json")
        if place.is_file() and place.name != "metrics.json":
            config, root = _read_config(place)
            return cls(config, run_folder(config), data_root or root)
        folder = place.parent if place.is_file() else place
        if not (folder / "metrics.json").is_file() and not (folder / "config.json").is_file():
            folder = _only_run_below(folder)
        if (metrics := _read_metrics(folder)) is None:
            config, root = _read_config(folder / "config.json")
            return cls(config, folder, data_root or root)
        with contextlib.suppress(UserError):  # a finished run needs no config.json
            data_root = data_root or _read_config(folder / "config.json")[1]
        return cls(RunConfig.from_flat(metrics["config"]), folder, data_root)

    @property
    def metrics(self) -> Metrics | None:
        """The content of metrics.json; None if the run has not finished.

        A run that followed more images than the configuration says is as good.
        """
        if (metrics := _read_metrics(self.folder)) is None:
            return None
        # A setting that is newer than the run has its default value, which keeps the old behaviour.
        found = RunConfig.from_flat(metrics["config"])
        wanted = self.config.replace(snapshots=max(found.snapshots, self.config.snapshots))
        return metrics if found == wanted else None

    def finished(self) -> Metrics:
        """The metrics of a run that must have finished; else a UserError."""
        if (metrics := self.metrics) is None:
            raise UserError(f"the run '{self.folder}' has not finished; start its command again")
        return metrics

    def load(self, objects: bool = False) -> FinishedRun:
        """Loads a finished run, with its data, if they are still the same; see `load_splits`."""
        metrics = self.finished()
        identify_data(self.config, self.data_root)  # refuses other data
        train, report = load_splits(self.config, self.data_root, objects)
        model = load_network(self.folder, self.config, len(train.classes))
        observed = draw_labels(train, self.config.draw, self.config.label_seed)
        stored = self.folder / "bank.safetensors"
        bank = bank_of(load_tensors(stored)) if stored.is_file() else None
        return FinishedRun(self.config, self.folder, metrics, model, train, report, observed, bank)

    def write_config(self) -> Path:
        """Writes config.json, which is enough to start this run."""
        file = self.folder / "config.json"
        root = None if self.data_root is None else str(paths.real_path(self.data_root))
        write_json(file, {"config": self.config.flat(), "data_root": root})
        return file


def finished_below(place: Path) -> list[Path]:
    """The folders of all finished runs below a folder, sorted; without unfinished repeats."""
    found = [file.parent for file in place.rglob("metrics.json") if file.is_file()]
    return sorted(folder for folder in found if folder.name != REPEAT)


def _only_run_below(place: Path) -> Path:
    runs = finished_below(place)
    if len(runs) != 1:
        runs.sort(key=lambda folder: -(folder / "metrics.json").stat().st_mtime_ns)
        raise UserError(
            f"'{place}' is no run, and holds {len(runs)} finished runs; give the folder of one. "
            f"Runs go to '{paths.results()}'; the last ones here: {', '.join(map(str, runs[:10]))}"
        )
    return runs[0]


def write_metrics(folder: Path, metrics: Metrics) -> None:
    """Writes metrics.json with its checksum."""
    write_json(folder / "metrics.json", with_sum(metrics, _VARYING))


def _read_metrics(folder: Path) -> Metrics | None:
    """The content of metrics.json; None if there is none, or a damaged one, which is put aside."""
    file = folder / "metrics.json"
    if not file.is_file():
        return None
    try:
        metrics = read_summed(file, _VARYING)
        RunConfig.from_flat(metrics["config"])
        return metrics
    except (ValueError, KeyError, TypeError, UserError) as error:
        put_aside(file, error)
        return None


def _read_config(file: Path) -> tuple[RunConfig, str | None]:
    """The configuration and the data root that `Run.write_config` wrote."""
    try:
        content = json.loads(file.read_bytes())
        return check_config(RunConfig.from_flat(dict(content["config"]))), content["data_root"]
    except (OSError, ValueError, KeyError, TypeError, UserError) as error:
        raise UserError(f"'{file}' is no configuration of a run ({repr(error)[:200]})") from error


def write_summary() -> Path:
    """Writes results/summary.csv anew, with one row per finished run.

    `changes` has the settings that differ from the profile, and `content` identifies the data. Only
    runs with the same values there differ by their seed alone. Copies of a run's folder get no row.
    """
    path = paths.results() / "summary.csv"
    with lock_file(path), atomic_write(path) as temporary:
        with open(temporary, "w", newline="") as handle:
            writer = csv.DictWriter(handle, _COLUMNS)
            writer.writeheader()
            for folder in finished_below(paths.results()):
                with contextlib.suppress(UserError):  # of a profile that is gone
                    if row := _row_of(folder):
                        writer.writerow(row)
    return path


def _row_of(folder: Path) -> dict[str, Any] | None:
    """The row of a finished run; None for a copy, or if it is damaged."""
    if (metrics := _read_metrics(folder)) is None:
        return None
    config = RunConfig.from_flat(metrics["config"])
    if run_folder(config) != folder:
        return None
    return {name: metrics[name] for name in _FROM_METRICS} | {
        "CF1": metrics["at_0.5"]["CF1"], "OF1": metrics["at_0.5"]["OF1"], "report": config.report,
        "folder": folder.name, "content": config.content,
        "changes": " ".join(f"{k}={v}" for k, v in changes(config).items()),
    }  # fmt: skip
