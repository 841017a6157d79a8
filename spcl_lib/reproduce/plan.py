"""The plan: experiments -> runs -> executed notebooks -> index.html.

An `Experiment` is one data set with one profile. What is finished is skipped, so the same command
goes on after a stop. `steps` carries out the plan.
"""

from __future__ import annotations

import hashlib
import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from spcl_lib.config import RunConfig
from spcl_lib.runs.ablation import FOLLOWED, crop_scale_configs
from spcl_lib.runs.notebooks import notebook_file, notebook_names
from spcl_lib.runs.profiles import usual_profile
from spcl_lib.runs.settings import WITHOUT_OBJECTS, changes, make_config, methods_of
from spcl_lib.runs.splits import identify_data
from spcl_lib.runs.store import run_folder
from spcl_lib.system import VERSION, paths
from spcl_lib.system.errors import UserError

# Measured seconds of a notebook on one core, without the runs that it shows.
NOTEBOOK_SECONDS = {
    "00_tour": 30, "01_train": 10, "02_results": 10, "03_crop_recovery": 30, "04_heatmaps": 15,
    "05_folder": 45, "06_benchmark": 10, "07_ablations": 10, "08_scaling": 30, "09_exercises": 5,
}  # fmt: skip
# 03 and 05 assert what they say, so they train as long in a smoke test.
_SMOKE_NOTEBOOKS = {"00_tour": {"epochs": 4, "train_images": 200}}
_EXTRA_PROFILES = {"voc2007": ("long",)}  # with --all, in addition to the usual profile
_FOLLOWED_METHODS = ("scl", "an")  # 04_heatmaps shows them
_EVERYWHERE = ("scenes", "voc2007", "voc2012", "coco2014", "coco2017", "imagenet")


@dataclass(frozen=True)
class Experiment:
    """All runs on one data set with one profile.

    Attributes:
        main: the runs of the table: methods x seeds.
        ablation: the runs of the crop-scale ablation, if the plan includes it.
        followed: runs that follow some images over the epochs, for 04_heatmaps.
        data_root: see `paths.data_root`.
    """

    main: tuple[RunConfig, ...]
    ablation: tuple[RunConfig, ...] = ()
    followed: tuple[RunConfig, ...] = ()
    data_root: str | None = None

    @property
    def name(self) -> str:
        """Data set, profile and a code for changed settings, if any: "voc2007-cpu"."""
        first = self.main[0]
        digest = [first.digest()] if changes(first) else []
        return "-".join([first.dataset, first.profile, *digest])

    @property
    def runs(self) -> list[RunConfig]:
        """All runs, each once."""
        return list(dict.fromkeys([*self.main, *self.ablation, *self.followed]))

    @property
    def explorer(self) -> Path:
        """The page that explores the heatmaps of the followed runs."""
        usual = self.name == "scenes-cpu"
        return paths.results() / ("explorer.html" if usual else f"explorer-{self.name}.html")


@dataclass(frozen=True)
class NotebookTask:
    """A notebook to execute.

    Attributes:
        notebook: its name, as in "02_results".
        name: name of the executed file; different for every experiment.
        parameters: parameters that differ from the notebook's defaults.
        runs: the runs that it shows.
    """

    notebook: str
    name: str
    parameters: dict[str, object]
    runs: tuple[RunConfig, ...] = ()

    @property
    def output(self) -> Path:
        """The executed notebook; its page is beside it."""
        return paths.results() / "notebooks" / f"{self.name}.ipynb"

    def key(self) -> str:
        """A text that changes with the notebook, its parameters and the runs that it shows."""
        files = [notebook_file(self.notebook), *(run_folder(c) / "metrics.json" for c in self.runs)]
        parts = [f.read_bytes() for f in files if f.is_file()]
        parts += [VERSION.encode(), json.dumps(self.parameters, sort_keys=True).encode()]
        return hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]


def experiment_of(
    dataset: str,
    profile: str,
    methods: Sequence[str] = (),
    seeds: Sequence[int] = (0, 1, 2),
    overrides: dict[str, object] | None = None,
    data_root: str | Path | None = None,
    ablation: bool = False,
) -> Experiment:
    """The experiment on one data set.

    Args:
        dataset: a key of PROFILES.
        profile: a key of PROFILES[dataset].
        methods: keys of METHODS; by default the paper's methods that the data set allows.
        seeds: seeds of the training.
        overrides: other settings, for all runs.
        data_root: see `paths.data_root`.
        ablation: whether to include the crop-scale ablation.

    Raises:
        UserError: a name is unknown, a setting is wrong, or the data are missing.
    """
    overrides = dict(overrides or {})
    names = list(dict.fromkeys(methods)) or methods_of(dataset)
    seeds = list(dict.fromkeys(seeds))
    main = [make_config(dataset, m, s, profile, overrides) for m in names for s in seeds]
    more = crop_scale_configs(dataset, profile, seeds, overrides=overrides) if ablation else []
    followed = [
        make_config(dataset, m, 0, profile, {"snapshots": FOLLOWED} | overrides)
        for m in _FOLLOWED_METHODS
    ]
    content = identify_data(main[0], data_root).content
    parts = [tuple(replace(c, content=content) for c in part) for part in (main, more, followed)]
    return Experiment(*parts, None if data_root is None else str(paths.real_path(data_root)))


def all_experiments(
    dataset: str | None, seeds: Sequence[int], data_root: str | Path | None
) -> list[Experiment]:
    """Every experiment of all existing data sets, or of one data set.

    Raises:
        UserError: `dataset` names a data set that is missing.
    """
    found = []
    for name in [dataset] if dataset else _EVERYWHERE:
        has_objects = name not in WITHOUT_OBJECTS
        try:
            found.append(
                experiment_of(name, usual_profile(name), (), seeds, None, data_root, has_objects)
            )
        except UserError as error:
            if dataset:
                raise
            print(f"without {name}: {error}")
            continue
        found += [
            experiment_of(name, profile, ("an", "en_scl", "full"), seeds, None, data_root)
            for profile in _EXTRA_PROFILES.get(name, ())
        ]
    return found


def notebook_tasks(experiments: Sequence[Experiment]) -> list[NotebookTask]:
    """Every notebook of the project; a notebook that shows runs once for each experiment."""
    tasks = [task for experiment in experiments for task in _tasks_of(experiment)]
    known = {task.notebook for task in tasks}
    sizes = _SMOKE_NOTEBOOKS if experiments[0].main[0].profile == "smoke" else {}
    tasks += [
        NotebookTask(name, name, sizes.get(name, {}))
        for name in notebook_names()
        if name not in known
    ]
    return sorted(tasks, key=lambda task: task.name)


def _tasks_of(experiment: Experiment) -> list[NotebookTask]:
    """The notebooks that show an experiment's runs."""
    first = experiment.main[0]
    shown = {
        "dataset": first.dataset, "profile": first.profile,
        "overrides": shlex.join(f"{k}={v}" for k, v in changes(first).items()),
        "data_root": experiment.data_root or "",
    }  # fmt: skip
    example = next((c for c in experiment.main if c.method == "scl"), first)
    end = "" if experiment.name == "scenes-cpu" else f"-{experiment.name}"
    return [
        NotebookTask(name, name + end, parameters, runs)
        for name, parameters, runs in (
            ("01_train", {"config_file": str(run_folder(example) / "config.json")}, (example,)),
            ("02_results", {"source": "results", **shown}, experiment.main),
            ("04_heatmaps", {**shown, "images": FOLLOWED}, experiment.followed),
        )
    ]
