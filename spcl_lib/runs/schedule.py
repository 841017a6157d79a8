"""The scheduler: starts a process for each run or notebook, several at the same time."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
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

    A run that another process is at waits for it, and is then finished.

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
    _check_results_folder()
    runs = [Run.of(config, data_root) for config in dict.fromkeys(configs)]
    waiting = [run for run in runs if force or run.metrics is None]
    if waiting:
        first = waiting[0].config
        print(f"{len(waiting)} of {len(runs)} runs to do, {jobs} side by side", flush=True)
        print(f"one run: {duration(cost(first.dataset, first.profile))}", flush=True)
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


def _check_results_folder() -> None:
    """Checks before the first run whether results can be written."""
    folder = paths.results()
    with explain_refusals(folder):
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()


# --- processes ------------------------------------------------------------------------------------


@dataclass
class _Processes:
    """The processes that run now, by task; none is left after `stop`."""

    running: dict[str, subprocess.Popen] = field(default_factory=dict)
    stopped: threading.Event = field(default_factory=threading.Event)

    def carry_out(self, task: Task) -> str | None:
        """Waits for the process of a task; returns why it failed, None if it did not."""
        task.log.parent.mkdir(parents=True, exist_ok=True)
        with open(task.log, "ab") as log:
            began = log.tell()
            process = _start(task, log.fileno())
            self.running[task.name] = process
            if self.stopped.is_set():
                process.terminate()
            status = process.wait()
            del self.running[task.name]
        if status == 0 and task.is_done():
            task.on_done()
            return None
        return _cause(status, task.log.read_bytes()[began:].decode(errors="replace"))

    def stop(self) -> None:
        self.stopped.set()
        for process in list(self.running.values()):
            process.terminate()


def run_tasks(tasks: Sequence[Task], jobs: int, title: str) -> list[Task]:
    """Runs tasks, at most `jobs` at a time, with a bar that names the running ones.

    Returns:
        The failed tasks.
    """
    failed: list[Task] = []
    processes = _Processes()
    bar = tqdm(total=len(tasks), desc=title, unit="run", smoothing=0, disable=not tasks)
    with ThreadPoolExecutor(jobs) as pool:
        try:
            futures = {pool.submit(processes.carry_out, task): task for task in tasks}
            bar.set_postfix_str(", ".join(task.name for task in tasks[:jobs]))
            for future in as_completed(futures):
                task, cause = futures[future], future.result()
                if cause is not None:
                    failed.append(task)
                    bar.write(f"FAILED {task.name}: {cause} (log: {task.log})")
                bar.set_postfix_str(", ".join(list(processes.running)), refresh=False)
                bar.update()
        finally:  # also on Ctrl-C: no process continues in the background
            pool.shutdown(wait=False, cancel_futures=True)
            processes.stop()
            bar.close()
    return failed


def _start(task: Task, log: int) -> subprocess.Popen:
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": threads_of_a_run(),
        "TQDM_DISABLE": "1",  # no bars in a log
        PARENT: str(os.getpid()),  # the task ends if this process is killed
    }
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


def _cause(status: int, said: str) -> str:
    """Why a task failed: the signal that killed it, else the error that its output names."""
    if status < 0:
        more = "; perhaps the memory was full" if -status == signal.SIGKILL else ""
        return f"killed by signal {-status} ({signal.strsignal(-status)}){more}"
    if status == 0:
        return "it ended without a result"
    lines = said.replace("\r", "\n").strip().split("\n")
    errors = [line for line in lines if line.startswith("spcl: error: ")]
    return (errors or lines)[-1] or "it said nothing"
