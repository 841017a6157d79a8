"""The scheduler: starts a process for each run or notebook, several at the same time."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tqdm.auto import tqdm

from spcl_lib.config import RunConfig
from spcl_lib.methods import METHODS
from spcl_lib.runs.profiles import cost, duration
from spcl_lib.runs.run import prepare
from spcl_lib.runs.store import Run, write_summary
from spcl_lib.system import paths
from spcl_lib.system.files import explain_refusals
from spcl_lib.system.machine import choose_device, count_cores
from spcl_lib.system.processes import PARENT

RUNS_IN_TURN = 8  # of a process that makes short runs


@dataclass(frozen=True)
class Task:
    """The work of one process.

    Attributes:
        name: name in messages.
        arguments: arguments of `python -m` MODULE.
        log: file that the output is appended to.
        is_done: returns whether the result exists.
        on_done: called once, as soon as the process has ended and the result exists.
        module: the module that is run.
    """

    name: str
    arguments: Sequence[str]
    log: Path
    is_done: Callable[[], bool]
    on_done: Callable[[], None] = lambda: None
    module: str = "spcl_lib"


def run_all(
    configs: Sequence[RunConfig],
    data_root: str | Path | None,
    jobs: int,
    force: bool = False,
    title: str = "runs",
    in_turn: int = 1,
) -> list[Task]:
    """Makes the unfinished runs, at most `jobs` processes at a time, and rewrites the summary.

    Args:
        configs: configurations on one data set.
        data_root: see `paths.data_root`.
        jobs: number of processes at the same time.
        force: repeat finished runs.
        title: title of the bar.
        in_turn: runs of one process, one after the other. It needs seconds to start and to read the
            data, which is long compared with a short run.

    Returns:
        The failed tasks.

    Raises:
        UserError: the data are missing or damaged, or results cannot be written. The check comes
            before the first run.
    """
    with explain_refusals(paths.results()):
        paths.results().mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=paths.results()).close()
    runs = [Run.of(config, data_root) for config in dict.fromkeys(configs)]
    waiting = [run for run in runs if force or run.metrics is None]
    if waiting:
        first = waiting[0].config
        seconds = cost(first.dataset, first.profile)
        print(f"{len(waiting)} of {len(runs)} runs to do, {jobs} side by side; one run: "
              f"{duration(seconds)}", flush=True)  # fmt: skip
        # If some runs keep heatmaps, prepare one of them: this checks whether they fit into memory.
        spatial = [r.config for r in waiting if METHODS[r.config.method].consistency == "scl"]
        prepare((spatial or [first])[0], data_root)
    chunks = [waiting[i : i + in_turn] for i in range(0, len(waiting), in_turn)]
    failed = run_tasks([_task_of(chunk, force) for chunk in chunks], jobs, title)
    write_summary()
    return failed


def _task_of(runs: Sequence[Run], force: bool) -> Task:
    more = f" and {len(runs) - 1} more" if len(runs) > 1 else ""
    files = [str(run.write_config()) for run in runs]
    return Task(
        runs[0].folder.name + more, ["run", "--config", *files, *(["--force"] if force else [])],
        runs[0].folder / "log.txt", lambda: all(run.metrics is not None for run in runs),
    )  # fmt: skip


# --- processes ------------------------------------------------------------------------------------


def run_tasks(tasks: Sequence[Task], jobs: int, title: str) -> list[Task]:
    """Runs tasks, at most `jobs` at a time, with a bar that names the running ones.

    Returns:
        The failed tasks.
    """
    waiting, failed = list(tasks), []
    running: dict[str, tuple[Task, subprocess.Popen]] = {}
    bar = tqdm(total=len(tasks), desc=title, unit="run", smoothing=0, disable=not tasks)
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                task = waiting.pop(0)
                running[task.name] = task, _start(task)
                bar.set_postfix_str(", ".join(running))
            time.sleep(0.02)
            for task, process in [pair for pair in running.values() if pair[1].poll() is not None]:
                del running[task.name]
                bar.update()
                if process.returncode == 0 and task.is_done():
                    task.on_done()
                else:
                    failed.append(task)
                    cause = _cause(process.returncode, task.log)
                    bar.write(f"FAILED {task.name}: {cause} (log: {task.log})")
    finally:  # also on Ctrl-C: no process continues in the background
        for _, process in running.values():
            process.terminate()
            process.wait()
        bar.close()
    return failed


def _start(task: Task) -> subprocess.Popen:
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": threads_of_a_run(),
        "TQDM_DISABLE": "1",  # no bars in a log
        PARENT: str(os.getpid()),  # the task ends if this process is killed
    }
    task.log.parent.mkdir(parents=True, exist_ok=True)
    with open(task.log, "ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", task.module, *task.arguments],
            stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, env=environment,
        )  # fmt: skip


def threads_of_a_run() -> str:
    """The threads of every run that is started here, unless OMP_NUM_THREADS says otherwise.

    The number changes the last bits of a sum. So it must not depend on the runs side by side: a
    run may be stopped and go on beside another number of them.
    """
    usual = 1 if choose_device().type == "cpu" else count_cores()
    return os.environ.get("OMP_NUM_THREADS") or str(usual)


def _cause(status: int, log: Path) -> str:
    """Why a task failed: the signal that killed it, or the end of its log."""
    if status < 0:
        more = "; perhaps the memory was full" if -status == signal.SIGKILL else ""
        return f"killed by signal {-status} ({signal.strsignal(-status)}){more}"
    lines = log.read_text(errors="replace").replace("\r", "\n").strip().split("\n")
    return "it ended without a result" if status == 0 else lines[-1]
