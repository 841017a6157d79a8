"""The scheduler: starts a process for each run or notebook, several at the same time."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from tqdm.auto import tqdm

from spcl_lib.config import RunConfig
from spcl_lib.methods import METHODS
from spcl_lib.runs.profiles import cost
from spcl_lib.runs.progress import Follower
from spcl_lib.runs.run import prepare
from spcl_lib.runs.store import Run, run_folder, write_summary
from spcl_lib.system import paths
from spcl_lib.system.files import LOCKED, explain_refusals, holder_of, try_lock
from spcl_lib.system.processes import PARENT

# Time between two updates of the bar; a log needs few lines.
_LIVE_SECONDS, _LOG_SECONDS = 1.0, 60.0
_IN_TURN = 8  # short runs in one process


@dataclass(frozen=True)
class Task:
    """The work of one process.

    Attributes:
        name: name in messages.
        arguments: arguments of `python -m spcl_lib`.
        log: file for the output.
        is_done: returns whether the result exists.
        progress: returns the progress as text; called while the task runs.
        folders: folders that the process locks; the task waits while another process holds one.
    """

    name: str
    arguments: Sequence[str]
    log: Path
    is_done: Callable[[], bool]
    progress: Callable[[], str] = str
    folders: Sequence[Path] = ()

    def holder(self) -> str | None:
        """Who holds one of the folders, as text; None if all are free."""
        for folder in self.folders:
            if holder := holder_of(folder):
                return f"{holder} is at work in '{folder}'"
        return None


def run_all(
    configs: Sequence[RunConfig], data_root: str | Path | None, jobs: int, force: bool
) -> list[Task]:
    """Runs the unfinished runs, at most `jobs` at a time, and rewrites the summary.

    Args:
        configs: configurations on one data set.
        data_root: see `paths.data_root`.
        jobs: number of runs at the same time; they share the cores.
        force: repeat finished runs.

    Returns:
        The failed tasks.

    Raises:
        UserError: the data are missing or damaged, or results cannot be written. The check comes
            before the first run.
    """
    _check_results_folder()
    waiting = [c for c in configs if force or Run.of(c).metrics is None]
    if waiting:
        print(f"{len(waiting)} of {len(configs)} runs to do, {jobs} side by side", flush=True)
        print(f"one run: {cost(waiting[0].dataset, waiting[0].profile)}", flush=True)
        # If some runs keep heatmaps, prepare one of them: this checks whether they fit into memory.
        spatial = [c for c in waiting if METHODS[c.method].consistency == "scl"]
        prepare((spatial or waiting)[0], data_root)
    failed = run_tasks([_task_of(c, data_root, force) for c in waiting], jobs, "runs")
    write_summary()
    return failed


def run_in_turns(
    configs: Sequence[RunConfig], data_root: str | Path | None, jobs: int, title: str
) -> list[Task]:
    """Runs the unfinished runs, several in each process, at most `jobs` processes at a time.

    A process needs seconds to start and to read the data, which is long compared with a short run.
    The arguments are those of `run_all`; `title` is the title of the bar.

    Returns:
        The failed tasks.
    """
    _check_results_folder()
    waiting = [c for c in dict.fromkeys(configs) if Run.of(c).metrics is None]
    if waiting:
        prepare(waiting[0], data_root)
    chunks = [waiting[i : i + _IN_TURN] for i in range(0, len(waiting), _IN_TURN)]
    failed = run_tasks([_task_of_several(chunk, data_root) for chunk in chunks], jobs, title)
    write_summary()
    return failed


def _task_of_several(configs: Sequence[RunConfig], data_root: str | Path | None) -> Task:
    files = [str(Run.of(config, data_root).write_config()) for config in configs]

    def done() -> int:
        return sum(Run.of(config).metrics is not None for config in configs)

    first = run_folder(configs[0])
    return Task(
        f"{first.name} and {len(configs) - 1} more", ["run", "--config", *files],
        first / "log.txt", lambda: done() == len(configs), lambda: f"{done()}/{len(configs)}",
        [run_folder(config) for config in configs],
    )  # fmt: skip


def run_tasks(tasks: Sequence[Task], jobs: int, title: str) -> list[Task]:
    """Runs tasks, at most `jobs` at a time, with a bar that shows the running ones.

    A task that another process is at waits until that process ends.

    Returns:
        The failed tasks.
    """
    running: dict[subprocess.Popen, tuple[Task, ExitStack]] = {}
    failed: list[Task] = []
    queue = list(tasks)
    # All tasks get the same number of threads. This number changes the last bits of a sum, and a
    # result must not depend on the number of tasks that are left.
    threads = max(1, (os.cpu_count() or 1) // jobs)
    bar = tqdm(total=len(queue), desc=title, unit="run", smoothing=0, disable=not queue)
    every = _LIVE_SECONDS if sys.stderr.isatty() else _LOG_SECONDS
    shown = time.monotonic()
    told: set[str] = set()  # names of the tasks that have waited
    try:
        while queue or running:
            for task in list(queue):
                if len(running) < jobs and (log_lock := _lock_if_free(task, told, bar)):
                    queue.remove(task)
                    running[_start(task, threads)] = task, log_lock
            time.sleep(0.2)
            for process in [p for p in running if p.poll() is not None]:
                task, log_lock = running.pop(process)
                log_lock.close()
                if process.returncode == LOCKED:  # another process was faster
                    queue.append(task)
                    continue
                if process.returncode != 0 or not task.is_done():
                    failed.append(task)
                    cause = _cause(process.returncode, task.log)
                    bar.write(f"FAILED {task.name}: {cause} (log: {task.log})")
                bar.update()
            if time.monotonic() - shown >= every:
                states = (f"{t.name} {t.progress()}".strip() for t, _ in running.values())
                bar.set_postfix_str(", ".join(states))
                shown = time.monotonic()
    finally:  # also on Ctrl-C: no process continues in the background
        for process, (_, log_lock) in running.items():
            process.terminate()
            log_lock.close()
        bar.close()
    return failed


def _lock_if_free(task: Task, told: set[str], bar: tqdm) -> ExitStack | None:
    """The lock on a task's log, which is closed when the task ends; None if the task must wait.

    With the lock, two schedulers never write one log.
    """
    task.log.parent.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        is_ours = stack.enter_context(try_lock(task.log.with_name(f".{task.log.name}.lock")))
        holder = task.holder() if is_ours else f"another scheduler writes '{task.log}'"
        if holder is None:
            return stack.pop_all()
    if task.name not in told:
        told.add(task.name)
        bar.write(f"{task.name} waits: {holder}")
    return None


def _check_results_folder() -> None:
    """Checks before the first run whether results can be written."""
    folder = paths.results()
    with explain_refusals(folder):
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()


def _task_of(config: RunConfig, data_root: str | Path | None, force: bool) -> Task:
    folder, follower = run_folder(config), Follower(run_folder(config))
    file = Run.of(config, data_root).write_config()
    return Task(
        folder.name, ["run", "--config", str(file), *(["--force"] if force else [])],
        folder / "log.txt", lambda: Run.of(config).metrics is not None,
        lambda: f"{len(follower.rows())}/{config.epochs}", [folder],
    )  # fmt: skip


def _start(task: Task, threads: int) -> subprocess.Popen:
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": str(threads),
        "TQDM_DISABLE": "1",  # no bars in a log
        PARENT: str(os.getpid()),  # the task ends if this process is killed
    }
    with open(task.log, "w") as handle:
        return subprocess.Popen(
            [sys.executable, "-m", "spcl_lib", *task.arguments],
            stdout=handle, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, env=environment,
        )  # fmt: skip


def _cause(status: int, log: Path) -> str:
    """Why a task failed: the signal that killed it, else the error that its log names."""
    if status < 0:
        more = "; perhaps the memory was full" if -status == signal.SIGKILL else ""
        return f"killed by signal {-status} ({signal.strsignal(-status)}){more}"
    if status == 0:
        return "it ended without a result"
    lines = log.read_text(errors="replace").replace("\r", "\n").strip().split("\n")
    errors = [line for line in lines if line.startswith("spcl: error: ")]
    return (errors or lines)[-1] or "it said nothing"
