"""Shows the steps of the plan with their cost, and carries them out in order.

results/manifest.json lists what was run: the experiments with commit, versions, data and time, and
the notebooks with the key of what they depend on.
"""

from __future__ import annotations

import datetime
import importlib.util
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from spcl_lib.reproduce.plan import NOTEBOOK_SECONDS, Experiment, NotebookTask, notebook_tasks
from spcl_lib.runs.league import League, run_league
from spcl_lib.runs.notebooks import title_of_notebook
from spcl_lib.runs.profiles import cost, duration
from spcl_lib.runs.schedule import Task, run_all, run_tasks
from spcl_lib.runs.settings import changes
from spcl_lib.runs.snapshots import load_trace
from spcl_lib.runs.store import Run, run_folder
from spcl_lib.system import paths
from spcl_lib.system.errors import UserError
from spcl_lib.system.files import lock_file, parse_json, write_json
from spcl_lib.system.machine import choose_device, describe_machine

_NEEDED = ("papermill", "nbconvert", "pandas", "scipy", "seaborn")  # notebooks and page


# --- results/manifest.json ------------------------------------------------------------------------


def _manifest_file() -> Path:
    return paths.results() / "manifest.json"


def read_manifest() -> dict[str, Any]:
    """The content of results/manifest.json; an empty one if it is missing or damaged."""
    empty = {"experiments": {}, "notebooks": {}}
    try:
        return empty | parse_json(_manifest_file().read_text())
    except FileNotFoundError:
        return empty
    except (ValueError, TypeError) as error:
        print(f"spcl: '{_manifest_file()}' is damaged ({error}); it is written anew", flush=True)
        return empty


def _note(part: str, name: str, entry: dict[str, Any]) -> None:
    with lock_file(_manifest_file()):
        manifest = read_manifest()
        manifest[part][name] = entry
        write_json(_manifest_file(), manifest)


def _note_experiment(experiment: Experiment, seconds: float) -> None:
    first, machine = experiment.main[0], describe_machine(choose_device())
    done = {run_folder(c).relative_to(paths.results()): Run.of(c).metrics for c in experiment.runs}
    _note("experiments", experiment.name, {
        "dataset": first.dataset, "profile": first.profile, "overrides": changes(first),
        "data_root": experiment.data_root,
        "facts": {name: machine[name] for name in ("commit", "python", "torch", "device")}
        | {"data": first.content or "drawn by the code of this commit",
           "last command": f"{seconds:.0f} s, on {datetime.date.today()}"},
        "runs": {str(name): {"mAP": m["mAP"], "train_seconds": m["train_seconds"]}
                 for name, m in done.items() if m is not None},
    })  # fmt: skip


def _is_current(task: NotebookTask, manifest: dict[str, Any]) -> bool:
    """Whether the notebook was executed and everything that it depends on is unchanged."""
    page = task.output.with_suffix(".html")
    return page.is_file() and manifest["notebooks"].get(task.name, {}).get("key") == task.key()


# --- showing the plan -----------------------------------------------------------------------------


def show_plan(experiments: Sequence[Experiment], jobs: int) -> None:
    """Prints every step, whether it is finished, and the cost of the rest."""
    for experiment in experiments:
        print(f"{experiment.name}:")
        for config in experiment.runs:
            done, folder = Run.of(config).metrics, run_folder(config)
            state = "to run" if done is None else f"finished, mAP {done['mAP']:.2f} %"
            varied = "".join(f"{k}={v} " for k, v in changes(config).items())
            print(f"  run       {folder.parent.name}/{folder.name:26} {varied}{state}")
    manifest = read_manifest()
    for task in notebook_tasks(experiments):
        state = "finished" if _is_current(task, manifest) else "to execute"
        print(f"  notebook  {task.name}.ipynb: {state}")
    first = experiments[0].main[0]
    print(f"one run: {duration(cost(first.dataset, first.profile))}")
    print(_total(experiments, jobs))


def _total(experiments: Sequence[Experiment], jobs: int) -> str:
    """The number of unfinished steps and their approximate time, as text."""
    runs = [c for e in experiments for c in e.runs if Run.of(c).metrics is None]
    manifest = read_manifest()
    tasks = [t for t in notebook_tasks(experiments) if not _is_current(t, manifest)]
    seconds = sum(cost(c.dataset, c.profile) for c in runs)
    seconds += sum(NOTEBOOK_SECONDS.get(task.notebook, 30) for task in tasks)
    return (
        f"to do: {len(runs)} runs and {len(tasks)} notebooks, about {duration(seconds / jobs)} in "
        f"all with {jobs} side by side"
    )


# --- carrying it out ------------------------------------------------------------------------------


def reproduce(experiments: Sequence[Experiment], jobs: int, force: bool) -> int:
    """Carries out the plan.

    Args:
        experiments: the experiments of the plan.
        jobs: number of runs, and later of notebooks, at the same time; they share the cores.
        force: repeat finished runs and notebooks.

    Returns:
        0 if everything has finished, else 1.

    Raises:
        UserError: a package is missing, data are missing or damaged, or results cannot be written.
            The check comes before the first run on these data.
    """
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f"the notebooks and the page need {', '.join(missing)}; install them with: "
                        "pip install 'spcl[notebooks]'. `run` needs none of them")  # fmt: skip
    from spcl_lib.reproduce.pages import table_text, write_index

    print(_total(experiments, jobs), flush=True)
    failed: list[Task] = []
    for experiment in experiments:
        began = time.monotonic()
        failed += run_all(experiment.runs, experiment.data_root, jobs, force)
        _note_experiment(experiment, time.monotonic() - began)
        print(f"\n{table_text(experiment.main)}\n", flush=True)
    failed += _execute_notebooks(notebook_tasks(experiments), jobs, force)
    for experiment in experiments:
        _write_explorer(experiment, force)
    for task in failed:
        print(f"failed: {task.name}, log: {task.log}")
    print(f"table: {paths.results() / 'summary.csv'}\npage:  {write_index(read_manifest())}")
    return 1 if failed else 0


def _execute_notebooks(tasks: Sequence[NotebookTask], jobs: int, force: bool) -> list[Task]:
    """Executes the notebooks that are not up to date, notes each; returns the failed tasks."""
    manifest = read_manifest()
    waiting = [task for task in tasks if force or not _is_current(task, manifest)]
    return run_tasks([_process_of(task) for task in waiting], jobs, "notebooks")


def _process_of(task: NotebookTask) -> Task:
    """The task that executes a notebook; writes its page and notes it as soon as it ends."""
    from spcl_lib.reproduce.pages import write_notebook_page

    key, began = task.key(), time.time()
    entry = {"title": title_of_notebook(task.notebook), "parameters": task.parameters}
    _note("notebooks", task.name, entry | {"finished": False, "seconds": 0.0})

    def note() -> None:
        write_notebook_page(task.output)
        found = json.loads(task.output.read_text())["metadata"].get("papermill", {})
        seconds = round(found.get("duration", time.time() - began), 1)
        _note("notebooks", task.name, entry | {"finished": True, "seconds": seconds, "key": key})

    arguments = [task.notebook, "--out", str(task.output)]
    arguments += ["--parameters", json.dumps(task.parameters)]
    log = task.output.with_suffix(".log")
    return Task(task.name, arguments, log, task.output.is_file, note, "spcl_lib.runs.notebooks")


def _write_explorer(experiment: Experiment, force: bool) -> None:
    """Writes the experiment's explorer, unless it is newer than its runs."""
    from spcl_lib.viewer.explorer_page import write_explorer_page

    file = experiment.explorer
    sources = [run_folder(config) / "metrics.json" for config in experiment.followed]
    times = [source.stat().st_mtime_ns for source in sources if source.is_file()]
    if file.is_file() and file.stat().st_mtime_ns > max(times, default=0) and not force:
        return
    try:
        traces = [load_trace(config, experiment.data_root) for config in experiment.followed]
    except UserError as error:
        print(f"explorer: not written ({error})", flush=True)
        return
    write_explorer_page(file, *traces)
    print(f"explorer: {file}", flush=True)


# --- the league -----------------------------------------------------------------------------------


def show_league_plan(league: League, jobs: int) -> None:
    """Prints how much of each round is finished, up to the round that is not, and the cost."""
    left = league.most_runs()
    for title, configs in league.rounds():
        done = sum(Run.of(c).metrics is not None for c in configs)
        print(f"{league.dataset} {title}: {done} of {len(configs)} runs finished")
        left -= done
        if done < len(configs):
            break
    else:
        return
    one = cost(league.dataset, league.profile)
    total = duration(one * left / jobs)
    print(f"one run: {duration(one)}")
    print(f"to do: at most {left} runs, about {total} in all with {jobs} side by side", flush=True)


def reproduce_league(league: League, jobs: int) -> bool:
    """Makes the unfinished runs of a league, and prints its table; returns whether all finished."""
    show_league_plan(league, jobs)
    if run_league(league, jobs):
        return False
    from spcl_lib.analysis.intervals import summary
    from spcl_lib.analysis.league import collect, league_table

    table = summary(league_table(collect(league))).sort_values("mAP", ascending=False)
    table = table.drop(columns=["study", "dataset", "profile"], errors="ignore")
    print(table.round(2).to_string(index=False))
    return True
