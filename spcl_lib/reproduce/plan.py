"""The plan: every experiment, from runs to pages.

    runs -> ablation -> measurements -> all notebooks, executed -> results/index.html

One `Experiment` is one data set with one profile. Everything that is finished is skipped, so the
same command goes on where it was stopped. `results/manifest.json` keeps what was run: with which
commit, versions and data, on which machine, in how many seconds.
"""

from __future__ import annotations

import datetime
import importlib.util
import json
import shlex
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spcl_lib.analysis.measurement_files import load_measurements
from spcl_lib.analysis.results import load_runs
from spcl_lib.analysis.statistics import deviation, mean
from spcl_lib.config import RunConfig
from spcl_lib.methods import METHODS
from spcl_lib.reproduce.pages import write_index
from spcl_lib.runs.ablation import FOLLOWED, crop_scale_configs
from spcl_lib.runs.notebooks import notebook_file, notebook_names, title_of_notebook
from spcl_lib.runs.profiles import cost, duration
from spcl_lib.runs.run import run_folder
from spcl_lib.runs.schedule import Task, run_all, run_tasks
from spcl_lib.runs.settings import SINGLE_LABEL, changes, make_config, methods_of
from spcl_lib.runs.splits import identify_data
from spcl_lib.runs.store import load_metrics
from spcl_lib.system import paths
from spcl_lib.system.errors import UserError
from spcl_lib.system.files import lock_file, write_json
from spcl_lib.system.fingerprints import all_code, fingerprint
from spcl_lib.system.machine import choose_device, describe_machine

# Expected seconds of a notebook on one core, after the runs that it shows; measured.
NOTEBOOK_SECONDS = {
    "00_tour": 60, "01_train": 10, "02_results": 10, "03_crop_recovery": 12, "04_heatmaps": 15,
    "05_folder": 45,
}  # fmt: skip
_USUAL_NOTEBOOK_SECONDS = 30
_PRETRAINING_SECONDS = {"cpu": 100, "smoke": 30}
_MEASURED_SHARE = 0.1  # of the runs' time that measuring them takes
# The notebooks that train themselves: with the pretraining of the main job, which is there already;
# in a smoke test as small as can be.
_PRETRAINED = {"pretrain_images": 10000, "pretrain_epochs": 12}
_SMALL = {"epochs": 4, "pretrain_images": 4000, "pretrain_epochs": 4}
_NOTEBOOKS = {"00_tour": _PRETRAINED, "05_folder": _PRETRAINED}
_SMOKE_NOTEBOOKS = {
    "00_tour": _SMALL | {"train_images": 200}, "05_folder": _SMALL | {"images": 200},
}  # fmt: skip
_EXTRA_PROFILES = {"voc2007": ("long",)}  # with --all, beside cpu
_FOLLOWED_METHODS = ("scl", "an")  # that 04_heatmaps shows
_EVERYWHERE = ("scenes", "voc2007", "voc2012", "coco2014", "coco2017", "imagenet")


@dataclass(frozen=True)
class Experiment:
    """All runs on one data set with one profile.

    Attributes:
        main: the runs of the table: methods x seeds.
        ablation: the runs of the crop-scale ablation, if it is part of the plan.
        followed: runs that follow some images over the epochs, for 04_heatmaps.
        data_root: see `paths.data_root`.
    """

    main: tuple[RunConfig, ...]
    ablation: tuple[RunConfig, ...] = ()
    followed: tuple[RunConfig, ...] = ()
    data_root: str | None = None

    @property
    def name(self) -> str:
        """Data set, profile and, where there are any, changed settings: "voc2007-cpu"."""
        first = self.main[0]
        digest = [first.digest()] if changes(first) else []
        return "-".join([first.dataset, first.profile, *digest])

    @property
    def runs(self) -> list[RunConfig]:
        """All runs, each once."""
        return list(dict.fromkeys([*self.main, *self.ablation, *self.followed]))

    @property
    def knows_objects(self) -> bool:
        """Whether the data tell where objects are, so that crop recovery can be measured."""
        return self.main[0].dataset not in SINGLE_LABEL


@dataclass(frozen=True)
class NotebookTask:
    """A notebook to execute.

    Attributes:
        notebook: its name, as in "02_results".
        name: of the executed file; another one for every experiment.
        parameters: what differs from its defaults.
        runs: the runs that it shows.
        skipped: why it is not executed; empty if it is.
    """

    notebook: str
    name: str
    parameters: dict[str, object]
    runs: tuple[RunConfig, ...] = ()
    skipped: str = ""

    @property
    def output(self) -> Path:
        """The executed notebook; its page is beside it."""
        return paths.results() / "notebooks" / f"{self.name}.ipynb"

    def key(self) -> str:
        """Changes with anything that the executed notebook depends on."""
        metrics = [run_folder(c) / "metrics.json" for c in self.runs]
        contents = [file.read_bytes() for file in metrics if file.is_file()]
        source = notebook_file(self.notebook).read_bytes()
        return fingerprint([all_code(), source, sorted(self.parameters.items()), *contents])


# --- making the plan ------------------------------------------------------------------------------


def experiment_of(
    dataset: str,
    profile: str = "cpu",
    methods: Sequence[str] = (),
    seeds: Sequence[int] = (0, 1, 2),
    overrides: dict[str, object] | None = None,
    data_root: str | Path | None = None,
    ablation: bool = False,
    must_exist: bool = True,
) -> Experiment:
    """The experiment on one data set.

    Args:
        dataset: a key of PROFILES.
        profile: a key of PROFILES[dataset].
        methods: keys of METHODS; all that the data set allows by default.
        seeds: of the training.
        overrides: other settings, for all runs.
        data_root: see `paths.data_root`.
        ablation: whether the crop-scale ablation is part of it.
        must_exist: if not, missing data are only mentioned, to show the plan.

    Raises:
        UserError: an unknown name, a wrong setting, or the data are missing.
    """
    overrides = dict(overrides or {})
    names = list(dict.fromkeys(methods)) or methods_of(dataset)
    main = [make_config(dataset, m, s, profile, overrides) for m in names for s in seeds]
    more = crop_scale_configs(dataset, profile, seeds, overrides=overrides) if ablation else []
    followed = [
        make_config(dataset, m, 0, profile, {"snapshots": FOLLOWED} | overrides)
        for m in _FOLLOWED_METHODS
    ]
    try:
        content = identify_data(main[0], data_root).content
    except UserError as error:
        if must_exist:
            raise
        print(f"the data are missing: {error}")
        content = ""
    parts = [tuple(c.replace(content=content) for c in part) for part in (main, more, followed)]
    root = None if data_root is None else str(Path(data_root).expanduser().resolve())
    return Experiment(*parts, root)


def all_experiments(
    dataset: str | None, seeds: Sequence[int], data_root: str | Path | None
) -> list[Experiment]:
    """Every experiment of every data set that is there, or of one data set.

    Raises:
        UserError: the one data set is missing.
    """
    found = []
    for name in [dataset] if dataset else _EVERYWHERE:
        try:
            found.append(
                experiment_of(name, "cpu", (), seeds, None, data_root, name not in SINGLE_LABEL)
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
    """Every notebook of the project: once, or once for each experiment if it shows runs."""
    tasks = [
        task
        for number, experiment in enumerate(experiments)
        for task in _tasks_of(experiment)
    ]  # fmt: skip
    known = {task.notebook for task in tasks}
    sizes = _SMOKE_NOTEBOOKS if experiments[0].main[0].profile == "smoke" else _NOTEBOOKS
    tasks += [
        NotebookTask(name, name, sizes.get(name, {}))
        for name in notebook_names()
        if name not in known
    ]
    return sorted(tasks, key=lambda task: task.name)


def _tasks_of(experiment: Experiment) -> list[NotebookTask]:
    """The notebooks that show an experiment's runs."""
    first = experiment.main[0]
    settings = shlex.join(f"{k}={v}" for k, v in changes(first).items())
    shown = {
        "dataset": first.dataset, "profile": first.profile, "overrides": settings,
        "data_root": experiment.data_root or "",
    }  # fmt: skip
    example = next((c for c in experiment.main if c.method == "scl"), first)
    seeds = {"seeds": 1 + max(c.seed for c in experiment.main)}
    no_objects = "" if experiment.knows_objects else "these data do not tell where objects are"
    usual = experiment.name == "scenes-cpu"
    return [
        NotebookTask(name, name if usual else f"{name}-{experiment.name}", parameters, runs, why)
        for name, parameters, runs, why in (
            ("01_train", {"config_file": str(run_folder(example) / "config.json")}, (example,), ""),
            ("02_results", {"source": "results", **shown}, experiment.main, ""),
            ("03_crop_recovery", {"source": "results", **shown, **seeds},
             (*experiment.main, *experiment.ablation), no_objects),
            ("04_heatmaps", {**shown, "images": FOLLOWED}, experiment.followed, ""),
        )
    ]  # fmt: skip


# --- showing the plan -----------------------------------------------------------------------------


def show_plan(experiments: Sequence[Experiment], jobs: int) -> None:
    """Prints every step: what is finished, what is to do, and what that costs."""
    for experiment in experiments:
        print(f"{experiment.name}:")
        for config in experiment.runs:
            done = load_metrics(config)
            state = "to run" if done is None else f"finished, mAP {done['mAP']:.2f} %"
            folder = run_folder(config)
            print(f"  run       {folder.parent.name}/{folder.name:26} {_what(config)}{state}")
        if not experiment.ablation and experiment.knows_objects:
            print("  ablation  (its figure: from the reference results; --all makes the runs)")
        if experiment.knows_objects:
            print("  measure   crop recovery and localisation, on the finished runs")
    manifest = _read_manifest()
    for task in notebook_tasks(experiments):
        state = f"skipped: {task.skipped}" if task.skipped else (
            "finished" if _is_current(task, manifest) else "to execute"
        )  # fmt: skip
        print(f"  notebook  {task.name}.ipynb: {state}")
    print(f"one run: {cost(experiments[0].main[0].dataset, experiments[0].main[0].profile)}")
    print(_total(experiments, jobs))


def _what(config: RunConfig) -> str:
    """What differs from the profile, as text."""
    return "".join(f"{k}={v} " for k, v in changes(config).items())


def _total(experiments: Sequence[Experiment], jobs: int) -> str:
    """What is still to do, and about how long it takes."""
    runs = [c for e in experiments for c in e.runs if load_metrics(c) is None]
    manifest = _read_manifest()
    tasks = [t for t in notebook_tasks(experiments) if not t.skipped]
    tasks = [t for t in tasks if not _is_current(t, manifest)]
    seconds = sum(cost(c.dataset, c.profile).seconds for c in runs) / jobs
    seconds += _MEASURED_SHARE * seconds
    if any(c.dataset == "scenes" for c in runs):
        seconds += _PRETRAINING_SECONDS.get(runs[0].profile, 0)
    times = [NOTEBOOK_SECONDS.get(t.notebook, _USUAL_NOTEBOOK_SECONDS) for t in tasks]
    seconds += sum(times) / jobs
    return (
        f"to do: {len(runs)} runs and {len(tasks)} notebooks, about {duration(seconds)} in all "
        f"with {jobs} side by side"
    )


# --- carrying it out ------------------------------------------------------------------------------


def reproduce(experiments: Sequence[Experiment], jobs: int, force: bool) -> int:
    """Carries out the plan.

    Args:
        experiments: what to run.
        jobs: runs, and then notebooks, side by side; they share the cores.
        force: run again what is finished.

    Returns:
        0 if everything has finished, else 1.

    Raises:
        UserError: data are missing or damaged, or results cannot be written: found before any run
            of that data starts.
    """
    print(_total(experiments, jobs), flush=True)
    failed: list[Task] = []
    for experiment in experiments:
        began = time.monotonic()
        failed += run_all(experiment.runs, experiment.data_root, jobs, force)
        _print_table(experiment.main, failed, time.monotonic() - began)
        _measure(experiment)
        _note_experiment(experiment, time.monotonic() - began)
    failed += _execute_notebooks(notebook_tasks(experiments), jobs, force)
    for task in failed:
        print(f"failed: {task.name}, log: {task.log}")
    print(f"table:  {paths.results() / 'summary.csv'}")
    shown = _write_index()
    return 0 if shown and not failed else 1


def _print_table(configs: Sequence[RunConfig], failed: Sequence[Task], seconds: float) -> None:
    print(f"\n{'method':8} {'runs':>5} {'mAP %':>7} {'std':>5}")
    for method in METHODS:
        done = [load_metrics(c) for c in configs if c.method == method]
        scores = [m["mAP"] for m in done if m is not None]
        if not done:
            continue
        middle = f"{mean(scores):7.2f}" if scores else f"{'-':>7}"
        spread = f"{deviation(scores):5.2f}" if len(scores) > 1 else f"{'-':>5}"
        print(f"{method:8} {len(scores):2}/{len(done):<2} {middle} {spread}")
    finished = sum(load_metrics(c) is not None for c in configs)
    print(f"\n{finished} of {len(configs)} runs finished, {seconds / 60:.1f} min", flush=True)


def _measure(experiment: Experiment) -> None:
    """Measures crop recovery on the finished runs, once; 03_crop_recovery shows it."""
    first = experiment.main[0]
    if not experiment.knows_objects:
        return
    seeds = range(1 + max(c.seed for c in experiment.main))
    try:
        load_measurements(
            "results", first.dataset, first.profile, seeds, None, changes(first),
            experiment.data_root,
        )  # fmt: skip
    except UserError as error:
        print(f"crop recovery was not measured: {error}", flush=True)


def _execute_notebooks(tasks: Sequence[NotebookTask], jobs: int, force: bool) -> list[Task]:
    """Executes the notebooks that are not up to date; notes what happened to each.

    Returns:
        What failed.
    """
    missing = [n for n in ("papermill", "nbconvert") if importlib.util.find_spec(n) is None]
    if missing:
        print(f"notebooks: not executed ({', '.join(missing)} not installed)")
        return []
    manifest = _read_manifest()
    for task in tasks:
        if task.skipped:
            _note_notebook(task, {"skipped": task.skipped})
    waiting = [t for t in tasks if not t.skipped and (force or not _is_current(t, manifest))]
    began = {}
    jobs_of = {}
    for task in waiting:
        began[task.name] = task.key()
        jobs_of[task.name] = _job_of(task)
    failed = run_tasks(list(jobs_of.values()), jobs, "notebooks")
    for task in waiting:
        finished = jobs_of[task.name] not in failed
        seconds = _seconds_of(task)
        key = began[task.name] if finished else ""
        _note_notebook(
            task, {"title": title_of_notebook(task.notebook), "finished": finished, "key": key,
                   "seconds": seconds, "parameters": task.parameters},
        )  # fmt: skip
    return failed


def _job_of(task: NotebookTask) -> Task:
    page = task.output.with_suffix(".html")
    page.unlink(missing_ok=True)
    arguments = ["notebooks", task.notebook, "--out", str(task.output)]
    arguments += ["--parameters", json.dumps(task.parameters)]
    return Task(task.name, arguments, task.output.with_suffix(".log"), page.is_file)


def _seconds_of(task: NotebookTask) -> float:
    """How long the notebook took, as papermill has noted it in the file."""
    try:
        noted = json.loads(task.output.read_text())["metadata"]["papermill"]["duration"]
        return round(float(noted), 1)
    except (OSError, ValueError, KeyError, TypeError):
        return 0.0


# --- the manifest ---------------------------------------------------------------------------------


def _manifest_file() -> Path:
    return paths.results() / "manifest.json"


def _read_manifest() -> dict[str, Any]:
    """results/manifest.json; an empty one if it is missing or damaged."""
    empty: dict[str, Any] = {"experiments": {}, "notebooks": {}}
    try:
        return empty | json.loads(_manifest_file().read_text())
    except (OSError, ValueError, TypeError):
        return empty


def _note(part: str, name: str, entry: dict[str, Any]) -> None:
    with lock_file(_manifest_file()):
        manifest = _read_manifest()
        manifest[part][name] = entry
        write_json(_manifest_file(), manifest)


def _note_notebook(task: NotebookTask, entry: dict[str, Any]) -> None:
    _note("notebooks", task.name, entry)


def _note_experiment(experiment: Experiment, seconds: float) -> None:
    first = experiment.main[0]
    machine = describe_machine(choose_device())
    facts = {
        "commit": machine["commit"], "python": machine["python"], "torch": machine["torch"],
        "torchvision": machine["torchvision"], "machine": machine["device"],
        "data": first.content or "drawn by the code of this commit",
        "last command": f"{seconds:.0f} s, on {datetime.date.today().isoformat()}",
    }  # fmt: skip
    runs = {
        str(run_folder(c).relative_to(paths.results())): load_metrics(c) for c in experiment.runs
    }
    done = {name: {"mAP": m["mAP"], "train_seconds": m["train_seconds"]}
            for name, m in runs.items() if m is not None}  # fmt: skip
    _note("experiments", experiment.name, {
        "dataset": first.dataset, "profile": first.profile, "overrides": changes(first),
        "data_root": experiment.data_root, "facts": facts, "runs": done,
    })  # fmt: skip


def _is_current(task: NotebookTask, manifest: dict[str, Any]) -> bool:
    """Whether the notebook has been executed, and nothing that it depends on has changed."""
    entry = manifest["notebooks"].get(task.name, {})
    files = task.output, task.output.with_suffix(".html")
    return all(f.is_file() for f in files) and entry.get("key") == task.key()


def _write_index() -> bool:
    """Writes results/index.html; returns whether it could."""
    missing = [n for n in ("pandas", "seaborn") if importlib.util.find_spec(n) is None]
    if missing:
        print(f"page:   not written ({', '.join(missing)} not installed)")
        return True
    manifest, runs = _read_manifest(), {}
    for name, entry in manifest["experiments"].items():
        try:
            where = entry["dataset"], entry["profile"], entry["overrides"], entry["data_root"]
            runs[name] = load_runs("results", *where)
        except UserError as error:
            print(f"page:   without {name}: {error}")
    if not runs:
        print("page:   not written (no run has finished)")
        return False
    print(f"page:   {write_index(manifest, runs)}")
    return True
