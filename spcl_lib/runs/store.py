"""The store of runs: the folder of every run, the files in it, and results/summary.csv."""

from __future__ import annotations

import contextlib
import csv
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

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
from spcl_lib.runs.splits import Splits, identify_data, load_splits
from spcl_lib.sparse_bank import bank_of
from spcl_lib.system import paths
from spcl_lib.system.checksums import read_summed, with_sum
from spcl_lib.system.errors import UserError
from spcl_lib.system.files import atomic_write, lock_file, parse_json, read_list, write_json
from spcl_lib.system.weights import load_tensors

Metrics = dict[str, Any]  # content of a run's metrics.json
REPEAT = "repeat"  # the folder, in a run's folder, of a repeat that has not finished
_MOST_NAMED = 10  # runs in a message


def run_folder(config: RunConfig) -> Path:
    """Folder of a run; a configuration that differs from its profile has its own folder.

    Runs on other data have their own folders too, because the name contains `config.content`.
    """
    suffix = f"-{config.digest()}" if changes(config) else ""
    group = "-".join(filter(None, (config.dataset, config.profile, config.content)))
    return paths.results() / group / f"{config.method}-seed{config.seed}{suffix}"


@dataclass(frozen=True)
class Run:
    """A run, finished or not.

    Attributes:
        config: its configuration.
        folder: its folder, which may not exist yet.
        data_root: where its data are, see `paths.data_root`.
    """

    config: RunConfig
    folder: Path
    data_root: str | Path | None = None

    @classmethod
    def of(cls, config: RunConfig, data_root: str | Path | None = None) -> Run:
        """The run of a configuration, in its place below `paths.results`.

        Where the data are missing, it is the run on unknown data, which has not finished.
        """
        if not config.content:
            with contextlib.suppress(UserError):
                config = identify_data(config, data_root)
        return cls(config, run_folder(config), data_root)

    @classmethod
    def find(cls, place: str | Path, data_root: str | Path | None = None) -> Run:
        """The run at a place: its folder, its config.json, or a folder with one finished run below.

        Where several runs have finished, none of them is more likely to be meant than the others:
        the message lists them.

        Args:
            place: a relative path that begins with "results" and does not exist here is looked for
                in `paths.results`, where runs go.
            data_root: the run's data; by default where they were.

        Raises:
            UserError: there is no run, there are several, or the files are damaged.
        """
        place = _place_of_runs(Path(place))
        folder = place.parent if place.name == "metrics.json" else place
        if place.is_file() and folder == place:
            config, root = _read_config(place)
            return cls(config, run_folder(config), data_root or root)
        note = folder / "config.json"
        if not note.is_file() and not (folder / "metrics.json").is_file():
            folder = _only_run_below(folder)
            note = folder / "config.json"
        if not (folder / "metrics.json").is_file():
            config, root = _read_config(note)
            return cls(config, folder, data_root or root)
        if data_root is None:
            with contextlib.suppress(UserError):  # a finished run needs no config.json
                data_root = _read_config(note)[1]
        return cls(RunConfig.from_flat(_read_or_refuse(folder)["config"]), folder, data_root)

    @property
    def metrics(self) -> Metrics | None:
        """The content of metrics.json; None if the run has not finished, or the file is damaged.

        If a setting is newer than the run, the run counts as one with its default value. The
        default of every new setting keeps the old behaviour.
        """
        file = self.folder / "metrics.json"
        try:
            metrics = _read(file)
            return metrics if RunConfig.from_flat(metrics["config"]) == self.config else None
        except OSError:
            return None
        except (ValueError, KeyError, TypeError, UserError) as error:
            _say_damaged(file, error)
            return None

    def finished(self, command: str = "") -> Metrics:
        """The metrics of a run that must have finished.

        Args:
            command: the command that makes the run, for the message; by default `run`.

        Raises:
            UserError: the run has not finished.
        """
        metrics = self.metrics
        if metrics is not None:
            return metrics
        if (self.folder / "metrics.json").is_file():
            _read_or_refuse(self.folder)
        config = self.config
        command = command or (
            f"python -m spcl_lib run --dataset {config.dataset} --profile {config.profile} "
            f"--method {config.method} --seed {config.seed}, with the same --set"
        )
        raise UserError(f"the run '{self.folder}' has not finished; make it with: {command}")

    def load(self, objects: bool = False, splits: Splits | None = None) -> FinishedRun:
        """Loads a finished run, with its data.

        Args:
            objects: whether to read the objects too, for data sets where this takes time (VOC).
            splits: result of `load_splits` for this configuration, if it is loaded already.

        Raises:
            UserError: the run has not finished, its files are damaged, or its data are missing or
                have changed.
        """
        metrics = self.finished()
        if splits is None:
            identify_data(self.config, self.data_root)  # refuses other data
            splits = load_splits(self.config, self.data_root, objects)
        train, report = splits
        model = load_network(self.folder, self.config, len(train.classes))
        observed = draw_labels(train, self.config.draw, self.config.label_seed)
        stored = self.folder / "bank.safetensors"
        bank = _read_bank(stored, train) if stored.is_file() else None
        return FinishedRun(
            self.config, metrics, model, train, report, observed, bank, self.folder
        )  # fmt: skip

    def write_config(self) -> Path:
        """Writes config.json, which is enough to start this run."""
        file = self.folder / "config.json"
        root = None if self.data_root is None else str(paths.real_path(self.data_root))
        write_json(file, {"config": self.config.flat(), "data_root": root})
        return file


# --- finding --------------------------------------------------------------------------------------


def _place_of_runs(place: Path) -> Path:
    place = paths.expand_home(place)
    if place.parts[:1] == ("results",) and not place.exists():
        return paths.results().joinpath(*place.parts[1:])
    return place


def _only_run_below(place: Path) -> Path:
    runs = finished_below(place)
    if not runs:
        raise UserError(
            f"'{place}' is no run: it has no metrics.json. Give the folder that "
            f"`python -m spcl_lib run` prints when it ends; runs go to '{paths.results()}'"
        )
    if len(runs) > 1:
        last = sorted(runs, key=lambda f: (f / "metrics.json").stat().st_mtime_ns, reverse=True)
        named = ", ".join(f"'{folder}'{_score(folder)}" for folder in last[:_MOST_NAMED])
        more = ", ..." if len(last) > _MOST_NAMED else ""
        raise UserError(
            f"'{place}' holds {len(runs)} runs; give the folder of one of them, here the last one "
            f"first: {named}{more}"
        )
    return runs[0]


def finished_below(place: Path) -> list[Path]:
    """The folders of all finished runs below a folder, sorted; without unfinished repeats."""
    found = [file.parent for file in place.rglob("metrics.json") if file.is_file()]
    return sorted(folder for folder in found if folder.name != REPEAT)


def _score(folder: Path) -> str:
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        return f" (mAP {_read(folder / 'metrics.json')['mAP']:.1f} %)"
    return " (damaged)"


# --- reading --------------------------------------------------------------------------------------


def _read_config(file: Path) -> tuple[RunConfig, str | None]:
    """The configuration and the data root that `Run.write_config` wrote."""
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


# These differ between two equal runs. They are no part of the checksum, so that equal runs still
# have equal results.
_VARYING = frozenset({"train_seconds", "wall_seconds", "finished", "machine"})


def metrics_with_sum(metrics: Metrics) -> Metrics:
    """The content of metrics.json: the metrics with their checksum."""
    return with_sum(metrics, _VARYING)


def _read(file: Path) -> Metrics:
    metrics = read_summed(file, _VARYING)
    metrics["mAP"], metrics["classes"], metrics["config"]
    return metrics


def _read_or_refuse(folder: Path) -> Metrics:
    file = folder / "metrics.json"
    try:
        metrics = _read(file)
        RunConfig.from_flat(metrics["config"])
        return metrics
    except (OSError, ValueError, KeyError, TypeError, UserError) as error:
        raise UserError(
            f"'{file}' is damaged or of another version of spcl ({type(error).__name__}: {error}); "
            "train again, with --force"
        ) from error


_said: set[tuple[Path, int]] = set()  # damaged files, with their dates, that were named already


def _say_damaged(file: Path, error: Exception) -> None:
    with contextlib.suppress(OSError):
        if (known := (file, file.stat().st_mtime_ns)) not in _said:
            _said.add(known)
            print(f"spcl: '{file}' is damaged ({error}) and does not count; run it again",
                  flush=True)  # fmt: skip


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


def add_to_summary(run: Run) -> None:
    """Gives a finished run its row in results/summary.csv, without reading all other runs."""
    path = paths.results() / "summary.csv"
    with lock_file(path):  # runs that end at the same time must not remove each other's row
        try:
            with open(path, newline="") as handle:
                rows = list(csv.DictReader(handle, strict=True))
            is_known = tuple(rows[0]) == SUMMARY_COLUMNS
        except (OSError, ValueError, IndexError, csv.Error):
            is_known = False
        if is_known:
            row = _summary_row(run.config, run.finished())
            kept = [known for known in rows if _place_of(known) != _place_of(row)]
            _write_rows(path, sorted([*kept, row], key=_place_of))
    if not is_known:
        write_summary()


def write_summary() -> Path:
    """Replaces results/summary.csv, with one row per finished run.

    `changes` has the settings that differ from the profile, and `content` identifies the data. Only
    runs with the same values there differ by their seed alone. Copies of a run's folder get no row.
    """
    path = paths.results() / "summary.csv"
    with lock_file(path):
        rows = []
        for file in sorted(paths.results().glob("*/*/metrics.json")):
            try:
                metrics = _read(file)
                config = RunConfig.from_flat(metrics["config"])
                if run_folder(config) == file.parent:
                    rows.append(_summary_row(config, metrics))
            except (OSError, ValueError, KeyError, TypeError, UserError) as error:
                print(f"spcl: '{file}' is damaged or of another version, and left out ({error})",
                      file=sys.stderr)  # fmt: skip
        _write_rows(path, sorted(rows, key=_place_of))
    return path


def _place_of(row: Mapping[str, object]) -> list[str]:
    """What identifies the run of a row."""
    return [str(row[name]) for name in ("dataset", "profile", "content", "folder")]


def _write_rows(path: Path, rows: Iterable[Mapping[str, object]]) -> None:
    with atomic_write(path) as temporary, open(temporary, "w", newline="") as handle:
        writer = csv.DictWriter(handle, SUMMARY_COLUMNS)
        writer.writeheader()
        writer.writerows(rows)


def _summary_row(config: RunConfig, metrics: Metrics) -> Mapping[str, object]:
    row = {name: metrics[name] for name in SUMMARY_COLUMNS[:7]}
    row |= {name: metrics["at_0.5"][name] for name in ("CF1", "OF1")}
    return row | {
        "report": config.report, "folder": run_folder(config).name, "content": config.content,
        "changes": " ".join(f"{k}={v}" for k, v in changes(config).items()),
    }  # fmt: skip
