"""`reproduce`: experiments -> runs -> executed notebooks -> index.html.

What is finished is skipped. A page is finished if it is newer than the notebook and the runs that
it shows.
"""

import importlib.util
import json
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from spcl_lib.config import RunConfig
from spcl_lib.runs.league import League, run_league
from spcl_lib.runs.notebooks import notebook_file, notebook_names
from spcl_lib.runs.profiles import cost, duration, usual_profile
from spcl_lib.runs.schedule import Task, run_all, run_tasks
from spcl_lib.runs.settings import SINGLE_LABEL, changes, make_config, methods_of
from spcl_lib.runs.splits import identify_all
from spcl_lib.runs.store import Run, run_folder
from spcl_lib.system import paths
from spcl_lib.system.errors import UserError

FOLLOWED = 64  # images that the runs for 04_heatmaps follow over the epochs
_FOLLOWING = ("scl", "an")  # their methods; the seed is 0
_EVERYWHERE = ("scenes", "voc2007", "voc2012", "coco2014", "coco2017", "imagenet")


@dataclass(frozen=True)
class Experiment:
    """All runs on one data set with one profile."""

    runs: tuple[RunConfig, ...]  # methods x seeds
    data_root: str | None

    @property
    def followed(self) -> list[RunConfig]:
        """The runs that follow some images over the epochs, for 04_heatmaps and the explorer."""
        return [c for method in _FOLLOWING for c in self.runs if c.snapshots and c.method == method]

    @property
    def name(self) -> str:
        """The folder of the runs, such as "scenes-cpu", and a code for changed settings, if any."""
        first = self.runs[0]
        digest = [first.digest()] if changes(first) else []
        return "-".join([run_folder(first).parent.name, *digest])


def experiment_of(
    dataset: str,
    profile: str,
    methods: Iterable[str] = (),
    seeds: Iterable[int] = (0, 1, 2),
    overrides: Mapping[str, object] | None = None,
    data_root: str | Path | None = None,
) -> Experiment:
    """The experiment on one data set, by default with the paper's methods that it allows."""
    names, seeds = dict.fromkeys(methods or methods_of(dataset)), dict.fromkeys(seeds)

    def config(method: str, seed: int) -> RunConfig:
        follows = {"snapshots": FOLLOWED} if seed == 0 and method in _FOLLOWING else {}
        return make_config(dataset, method, seed, profile, follows | dict(overrides or {}))

    runs = identify_all([config(m, seed) for m in names for seed in seeds], data_root)
    return Experiment(tuple(runs), data_root and str(paths.real_path(data_root)))


def all_experiments(
    dataset: str | None, seeds: Iterable[int], data_root: str | Path | None
) -> list[Experiment]:
    """Every experiment of all existing data sets, or of one data set, which must exist."""
    found = []
    for name in [dataset] if dataset else _EVERYWHERE:
        try:
            found.append(experiment_of(name, usual_profile(name), (), seeds, None, data_root))
        except UserError as error:
            if dataset:
                raise
            print(f"without {name}: {error}")
    return found


def later_steps(experiments: Sequence[Experiment]) -> list[Task]:
    """Every notebook, those that show runs once for each experiment; and the explorers."""
    found = [task for experiment in experiments for task in _steps_of(experiment)]
    known = {task.arguments[1] for task in found}
    found += [_execution(name, {}) for name in notebook_names() if name not in known]
    return sorted(found, key=lambda task: task.name)


def _steps_of(experiment: Experiment) -> list[Task]:
    """The notebooks that show an experiment's runs, and its explorer."""
    first = experiment.runs[0]
    shown = {
        "dataset": first.dataset, "profile": first.profile,
        "overrides": shlex.join(f"{k}={v}" for k, v in changes(first).items()),
        "data_root": experiment.data_root or "",
    }  # fmt: skip
    example = next((c for c in experiment.runs if c.method == "scl"), first)
    end = "" if experiment.name == "scenes-cpu" else f"-{experiment.name}"
    config_file = {"config_file": str(run_folder(example) / "config.json")}
    steps = [
        _execution("01_train", config_file, [example], end),
        _execution("02_results", shown | {"source": "results"}, experiment.runs, end),
    ]
    if followed := experiment.followed:
        if first.dataset not in SINGLE_LABEL:  # it shows classes that are there without a label
            steps.append(_execution("04_heatmaps", shown | {"images": FOLLOWED}, followed, end))
        page = paths.results() / f"explorer-{experiment.name}.html"
        folders = [str(run_folder(config)) for config in followed]
        arguments = ["spcl_lib", "explore", "--out", str(page), "--run", *folders]
        steps.append(_task(arguments, page, [], followed))
    return steps


def _execution(
    name: str, parameters: Mapping[str, object], runs: Sequence[RunConfig] = (), end: str = ""
) -> Task:
    """Executes a notebook as results/notebooks/NAME + end + .ipynb; `runs` are what it shows."""
    page = paths.results() / "notebooks" / f"{name}{end}.html"
    arguments = ["spcl_lib.reproduce.pages", name, str(page.with_suffix(".ipynb"))]
    return _task([*arguments, json.dumps(parameters)], page, [notebook_file(name)], runs)


def _task(arguments: list[str], page: Path, files: list[Path], runs: Sequence[RunConfig]) -> Task:
    """A task that writes a page, unless it is newer than the files and runs that it shows."""
    sources = files + [run_folder(config) / "metrics.json" for config in runs]

    def is_done() -> bool:
        times = [source.stat().st_mtime_ns for source in sources if source.is_file()]
        return page.is_file() and page.stat().st_mtime_ns > max(times, default=0)

    return Task(page.stem, arguments, page.with_suffix(".log"), is_done)


def show_plan(experiments: Sequence[Experiment], jobs: int) -> None:
    """Prints every step, whether it is finished, and the cost of the rest."""
    to_run = 0.0  # seconds
    for experiment in experiments:
        print(f"{experiment.name}:")
        one = cost(experiment.runs[0].dataset, experiment.runs[0].profile)
        for config in experiment.runs:
            done, folder = Run.of(config).metrics, run_folder(config)
            state = "to run" if done is None else f"finished, mAP {done['mAP']:.2f} %"
            print(f"  run   {folder.parent.name}/{folder.name:26} {state}")
            to_run += one * (done is None)
        print(f"  one run: {duration(one)}")
    for task in later_steps(experiments):
        print(f"  page  {task.name}: {'finished' if task.is_done() else 'to do'}")
    print(f"to do: runs of about {duration(to_run / jobs)} in all with {jobs} side by side")


def reproduce(experiments: Sequence[Experiment], jobs: int, force: bool) -> int:
    """Carries out the plan, finished steps only if `force`; returns 1 if a step failed, else 0."""
    for name in ("papermill", "nbconvert", "seaborn"):
        if importlib.util.find_spec(name) is None:
            raise UserError(f"the notebooks need {name}: pip install '.[notebooks]'")
    from spcl_lib.reproduce.pages import readable, write_index

    failed: list[Task] = []
    for experiment in experiments:
        failed += run_all(experiment.runs, experiment.data_root, jobs, force)
        done = [metrics for c in experiment.runs if (metrics := Run.of(c).metrics)]
        print(f"\n{readable(done).to_string(index=False) if done else 'no run has finished'}\n")
    waiting = [task for task in later_steps(experiments) if force or not task.is_done()]
    failed += run_tasks(waiting, jobs, "pages")
    for task in failed:
        print(f"failed: {task.name}, log: {task.log}")
    print(f"table: {paths.results() / 'summary.csv'}\npage:  {write_index()}")
    return 1 if failed else 0


def show_league_plan(league: League, jobs: int) -> None:
    """Prints how much of each round is finished, up to the round that is not, and the cost."""
    left, one = league.most_runs(), cost(league.dataset, league.profile)
    for title, configs in league.rounds():
        done = [Run.of(config).metrics is not None for config in configs]
        print(f"{league.dataset} {title}: {sum(done)} of {len(done)} runs finished")
        left -= sum(done)
        if not all(done):
            print(f"one run: {duration(one)}")
            print(f"to do: at most {left} runs, about {duration(one * left / jobs)} in all with "
                  f"{jobs} side by side", flush=True)  # fmt: skip
            return


def reproduce_league(league: League, jobs: int) -> bool:
    """Makes the unfinished runs of a league, and prints its table; returns whether all finished."""
    show_league_plan(league, jobs)
    if run_league(league, jobs):
        return False
    from spcl_lib.analysis.intervals import summary
    from spcl_lib.analysis.league import collect, league_table

    table = summary(league_table(collect(league))).sort_values("mAP", ascending=False)
    table = table.drop(columns=["study", "dataset", "profile"])
    print(table.round(2).to_string(index=False))
    return True
