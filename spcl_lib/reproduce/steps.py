"""Shows the steps of the plan with their cost, and carries them out in order."""

from __future__ import annotations

import importlib.util
import json
import statistics
import time
from collections.abc import Sequence
from pathlib import Path

from spcl_lib.config import RunConfig
from spcl_lib.methods import METHODS
from spcl_lib.reproduce.manifest import is_current, note_experiment, note_notebook, read_manifest
from spcl_lib.reproduce.plan import (
    NOTEBOOK_SECONDS,
    Experiment,
    NotebookTask,
    explorer_file,
    notebook_tasks,
)
from spcl_lib.runs.notebooks import title_of_notebook
from spcl_lib.runs.profiles import cost, duration
from spcl_lib.runs.schedule import Task, run_all, run_tasks
from spcl_lib.runs.settings import changes
from spcl_lib.runs.snapshots import load_trace
from spcl_lib.runs.store import Run, run_folder
from spcl_lib.system import paths
from spcl_lib.system.errors import UserError
from spcl_lib.system.files import parse_json
from spcl_lib.viewer import explorer_page

_USUAL_NOTEBOOK_SECONDS = 30


# --- showing the plan -----------------------------------------------------------------------------


def show_plan(experiments: Sequence[Experiment], jobs: int) -> None:
    """Prints every step, whether it is finished, and the cost of the rest."""
    for experiment in experiments:
        print(f"{experiment.name}:")
        for config in experiment.runs:
            done = Run.of(config).metrics
            state = "to run" if done is None else f"finished, mAP {done['mAP']:.2f} %"
            folder = run_folder(config)
            print(f"  run       {folder.parent.name}/{folder.name:26} {_what(config)}{state}")
    manifest = read_manifest()
    for task in notebook_tasks(experiments):
        state = f"skipped: {task.skipped}" if task.skipped else (
            "finished" if is_current(task, manifest) else "to execute"
        )  # fmt: skip
        print(f"  notebook  {task.name}.ipynb: {state}")
    print(f"one run: {cost(experiments[0].main[0].dataset, experiments[0].main[0].profile)}")
    print(_total(experiments, jobs))


def _what(config: RunConfig) -> str:
    """The settings that differ from the profile, as text."""
    return "".join(f"{k}={v} " for k, v in changes(config).items())


def _total(experiments: Sequence[Experiment], jobs: int) -> str:
    """The number of unfinished steps and their approximate time, as text."""
    runs = [c for e in experiments for c in e.runs if Run.of(c).metrics is None]
    manifest = read_manifest()
    tasks = [t for t in notebook_tasks(experiments) if not t.skipped]
    tasks = [t for t in tasks if not is_current(t, manifest)]
    seconds = sum(cost(c.dataset, c.profile).seconds for c in runs) / jobs
    times = [NOTEBOOK_SECONDS.get(t.notebook, _USUAL_NOTEBOOK_SECONDS) for t in tasks]
    seconds += sum(times) / jobs
    return (
        f"to do: {len(runs)} runs and {len(tasks)} notebooks, about {duration(seconds)} in all "
        f"with {jobs} side by side"
    )


# --- carrying it out -----------------------------------------------------------------------------


def reproduce(experiments: Sequence[Experiment], jobs: int, force: bool) -> int:
    """Carries out the plan.

    Args:
        experiments: the experiments of the plan.
        jobs: number of runs, and later of notebooks, at the same time; they share the cores.
        force: repeat finished runs and notebooks.

    Returns:
        0 if everything has finished, else 1.

    Raises:
        UserError: data are missing or damaged, or results cannot be written. The check comes before
            the first run on these data.
    """
    print(_total(experiments, jobs), flush=True)
    failed: list[Task] = []
    for experiment in experiments:
        began = time.monotonic()
        failed += run_all(experiment.runs, experiment.data_root, jobs, force)
        _print_table(experiment.main, failed, time.monotonic() - began)
        note_experiment(experiment, time.monotonic() - began)
    failed += _execute_notebooks(notebook_tasks(experiments), jobs, force)
    for experiment in experiments:
        _write_explorer(experiment, force)
    for task in failed:
        print(f"failed: {task.name}, log: {task.log}")
    print(f"table:  {paths.results() / 'summary.csv'}")
    shown = _write_index()
    return 0 if shown and not failed else 1


def _print_table(configs: Sequence[RunConfig], failed: Sequence[Task], seconds: float) -> None:
    print(f"\n{'method':8} {'runs':>5} {'mAP %':>7} {'std':>5}")
    for method in METHODS:
        done = [Run.of(c).metrics for c in configs if c.method == method]
        scores = [m["mAP"] for m in done if m is not None]
        if not done:
            continue
        middle = f"{statistics.fmean(scores):7.2f}" if scores else f"{'-':>7}"
        spread = f"{statistics.stdev(scores):5.2f}" if len(scores) > 1 else f"{'-':>5}"
        print(f"{method:8} {len(scores):2}/{len(done):<2} {middle} {spread}")
    finished = sum(Run.of(c).metrics is not None for c in configs)
    print(f"\n{finished} of {len(configs)} runs finished, {seconds / 60:.1f} min", flush=True)
    if configs[0].profile == "smoke":
        print("profile smoke: these numbers mean nothing", flush=True)


def _execute_notebooks(tasks: Sequence[NotebookTask], jobs: int, force: bool) -> list[Task]:
    """Executes the notebooks that are not up to date, and notes the outcome of each.

    Returns:
        The failed tasks.
    """
    missing = [n for n in ("papermill", "nbconvert") if importlib.util.find_spec(n) is None]
    if missing:
        print(f"notebooks: not executed ({', '.join(missing)} not installed)")
        return []
    manifest = read_manifest()
    for task in tasks:
        if task.skipped:
            note_notebook(task, {"skipped": task.skipped})
    waiting = [t for t in tasks if not t.skipped and (force or not is_current(t, manifest))]
    return run_tasks([_process_of(task) for task in waiting], jobs, "notebooks")


def _process_of(task: NotebookTask) -> Task:
    """The task that executes a notebook and notes the outcome as soon as it ends."""
    page, key = task.output.with_suffix(".html"), task.key()
    page.unlink(missing_ok=True)
    entry = {"title": title_of_notebook(task.notebook), "parameters": task.parameters}
    note_notebook(task, entry | {"finished": False, "seconds": 0.0})

    def note() -> None:
        from spcl_lib.reproduce.pages import write_notebook_page

        write_notebook_page(task.output)
        done = {"finished": True, "key": key, "seconds": _seconds_of(task)}
        note_notebook(task, entry | done)

    arguments = [task.notebook, "--out", str(task.output)]
    arguments += ["--parameters", json.dumps(task.parameters)]
    return Task(
        task.name, arguments, task.output.with_suffix(".log"), task.output.is_file, note,
        module="spcl_lib.runs.notebooks",
    )  # fmt: skip


def _seconds_of(task: NotebookTask) -> float:
    """Seconds that the notebook took; papermill stores them in the file."""
    try:
        noted = parse_json(task.output.read_text())["metadata"]["papermill"]["duration"]
        return round(float(noted), 1)
    except (OSError, ValueError, KeyError, TypeError):
        return 0.0


def _write_explorer(experiment: Experiment, force: bool) -> None:
    """Writes the experiment's explorer, unless it is newer than its runs and its code."""
    file = explorer_file(experiment.name)
    sources = [run_folder(config) / "metrics.json" for config in experiment.followed]
    sources += Path(explorer_page.__file__).parent.glob("explorer*")
    times = [source.stat().st_mtime_ns for source in sources if source.is_file()]
    if file.is_file() and file.stat().st_mtime_ns > max(times) and not force:
        return
    try:
        traces = [load_trace(config, experiment.data_root) for config in experiment.followed]
    except UserError as error:
        print(f"explorer: not written ({error})", flush=True)
        return
    explorer_page.write_explorer_page(file, *traces)
    print(f"explorer: {file}", flush=True)


def _write_index() -> bool:
    """Writes results/index.html; returns False if no run has finished."""
    missing = [n for n in ("pandas", "scipy", "nbconvert") if importlib.util.find_spec(n) is None]
    if missing:
        print(f"page:   not written ({', '.join(missing)} not installed)")
        return True
    from spcl_lib.analysis.runs import load_runs
    from spcl_lib.reproduce.pages import write_index

    manifest, runs = read_manifest(), {}
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
