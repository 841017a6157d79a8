"""The scheduler: starts a process for each run or notebook, several at the same time."""

import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tqdm.auto import tqdm

from spcl_lib.config import RunConfig
from spcl_lib.methods import METHODS
from spcl_lib.runs.profiles import cost, duration
from spcl_lib.runs.run import prepare, threads_of_a_run
from spcl_lib.runs.store import Run, write_summary
from spcl_lib.system.processes import PARENT

PROCESS_SECONDS = 150  # a process makes several short runs, because its start takes seconds


@dataclass(frozen=True)
class Task:
    """The work of one process."""

    name: str  # in messages
    arguments: Sequence[str]  # of `python -m`
    log: Path  # the output is appended to it
    is_done: Callable[[], bool]  # whether the results exist
    count: int = 1  # of results


def run_all(
    configs: Sequence[RunConfig],
    data_root: str | Path | None,
    jobs: int,
    force: bool = False,
    title: str = "runs",
) -> list[Task]:
    """Makes the unfinished runs on one data set; gives the failed tasks, and rewrites the summary.

    At most `jobs` processes run at a time. Missing data, and results that cannot be written, are
    found before any run starts.
    """
    runs = [Run.of(config, data_root) for config in dict.fromkeys(configs)]
    waiting = [run for run in runs if force or run.metrics is None]
    tasks: list[Task] = []
    if waiting:
        # One with heatmaps, if there is one: this finds out whether they fit into the memory.
        first = min(
            (run.config for run in waiting), key=lambda c: METHODS[c.method].consistency != "scl"
        )
        seconds = cost(first.dataset, first.profile)
        todo = f"{len(waiting)} of {len(runs)} runs to do, {jobs} side by side"
        print(f"{todo}; one run: {duration(seconds)}")
        prepare(first, data_root)
        parts = jobs * math.ceil(len(waiting) * seconds / (jobs * PROCESS_SECONDS))
        tasks = [_task_of(waiting[i::parts], force) for i in range(min(parts, len(waiting)))]
    failed = run_tasks(tasks, jobs, title)
    write_summary()
    return failed


def _task_of(runs: Sequence[Run], force: bool) -> Task:
    name, log = runs[0].folder.name, runs[0].folder / "log.txt"
    more = f" and {len(runs) - 1} more" if len(runs) > 1 else ""
    arguments = ["spcl_lib", "run", "--config", *(str(run.write_config()) for run in runs)]
    arguments += ["--force"] if force else []
    return Task(
        name + more, arguments, log, lambda: all(run.metrics is not None for run in runs), len(runs)
    )


def run_tasks(tasks: Sequence[Task], jobs: int, title: str) -> list[Task]:
    """Runs tasks, at most `jobs` at a time, with a bar; returns those that failed."""
    waiting, failed = list(tasks), []
    running: list[tuple[Task, subprocess.Popen]] = []
    total = sum(task.count for task in tasks)
    bar = tqdm(total=total, desc=title, unit="run", smoothing=0, disable=not tasks)
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                task = waiting.pop(0)
                running.append((task, _start(task)))
                bar.set_postfix_str(", ".join(task.name for task, _ in running))
            time.sleep(0.02)
            for task, process in [pair for pair in running if pair[1].poll() is not None]:
                running.remove((task, process))
                bar.update(task.count)
                if process.returncode or not task.is_done():
                    failed.append(task)
                    cause = _cause(process.returncode, task.log)
                    bar.write(f"FAILED {task.name}: {cause} (log: {task.log})")
    finally:  # also on Ctrl-C: no process continues in the background
        for _, process in running:
            process.terminate()
            process.wait()
        bar.close()
    return failed


def _start(task: Task) -> subprocess.Popen:
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": str(threads_of_a_run()),
        "TQDM_DISABLE": "1",  # no bars in a log
        # A process uses freed memory again: the system would clear its pages, 3 to 9 % of a step.
        "MALLOC_MMAP_MAX_": "0",
        "MALLOC_TRIM_THRESHOLD_": "2147483647",
        "THP_MEM_ALLOC_ENABLE": "1",
        PARENT: str(os.getpid()),  # the task ends if this process is killed
    }
    task.log.parent.mkdir(parents=True, exist_ok=True)
    with open(task.log, "ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", *task.arguments],
            stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, env=environment,
        )  # fmt: skip


def _cause(status: int, log: Path) -> str:
    """Why a task failed: the signal that killed it, or the end of its log."""
    if status < 0:
        more = "; perhaps the memory was full" if -status == signal.SIGKILL else ""
        return f"killed by signal {-status} ({signal.strsignal(-status)}){more}"
    lines = log.read_text(errors="replace").replace("\r", "\n").strip().split("\n")
    return "it ended without a result" if status == 0 else lines[-1]
