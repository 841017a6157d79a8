"""All methods and seeds of a data set, side by side, then the table and the report."""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from tqdm.auto import tqdm

from spcl_lib import paths
from spcl_lib.config import RunConfig, make_config
from spcl_lib.costs import cost
from spcl_lib.data.cache import sweep
from spcl_lib.errors import UserError
from spcl_lib.experiment import finished, prepare, run_folder
from spcl_lib.history import Follower
from spcl_lib.losses import METHODS
from spcl_lib.summary import write_summary

# Between two states of the bar; a log wants few lines.
_LIVE_SECONDS, _LOG_SECONDS = 1.0, 60.0


@dataclass
class Job:
    """A run in a process of its own, whose output goes to a log file."""

    config: RunConfig
    process: subprocess.Popen
    log: Path
    history: Follower

    def __str__(self) -> str:
        """Its name and how far it is: "scl-seed0 5/24"."""
        return f"{run_folder(self.config).name} {len(self.history.rows())}/{self.config.epochs}"


def reproduce(
    configs: list[RunConfig], data_root: str | Path | None, jobs: int, force: bool, only_list: bool
) -> int:
    """Runs all configurations that are not finished, and reports.

    Args:
        configs: what to run.
        data_root: see `paths.data_root`.
        jobs: runs side by side; the cores are shared among them.
        force: run again what is finished.
        only_list: print the plan and stop.

    Returns:
        0 if every run has finished, else 1.

    Raises:
        UserError: the data are missing or damaged, or results cannot be written: found before any
            run starts.
    """
    if only_list:
        for config in configs:
            done = finished(config)
            state = "to run" if done is None else f"finished, mAP {done['mAP']:.2f} %"
            folder = run_folder(config)
            print(f"{folder.parent.name}/{folder.name:24} {state}")
        print(f"one run: {cost(configs[0].dataset, configs[0].profile)}")
        return 0
    began = time.monotonic()
    failed = run_all(configs, data_root, jobs, force)
    _print_summary(configs, failed, time.monotonic() - began)
    reported = _write_report(configs)
    return 0 if reported and not failed else 1


def run_all(
    configs: list[RunConfig], data_root: str | Path | None, jobs: int, force: bool
) -> list[Job]:
    """Runs what is not finished, at most `jobs` at a time, and rewrites the summary.

    Arguments and errors as in `reproduce`.

    Returns:
        What failed.
    """
    _clear_up(configs)
    waiting = [c for c in configs if force or finished(c) is None]
    if waiting:
        print(f"{len(waiting)} of {len(configs)} runs to do, {jobs} side by side", flush=True)
        print(f"one run: {cost(waiting[0].dataset, waiting[0].profile)}", flush=True)
        # Of a run that keeps heatmaps, where there is one: whether they fit is found now.
        spatial = [c for c in waiting if METHODS[c.method].consistency == "scl"]
        prepare((spatial or waiting)[0], data_root)
    failed = _run_waiting(waiting, data_root, jobs, force)
    write_summary()
    return failed


def _clear_up(configs: list[RunConfig]) -> None:
    """Sees that results can be written, and removes what killed processes left beside them."""
    folder = paths.results()
    with paths.explained(folder):
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    for place in [folder, *(run_folder(c) for c in configs if finished(c))]:
        sweep(place)  # a run that is not finished does it itself, when nobody else is at it


def _run_waiting(
    waiting: list[RunConfig], data_root: str | Path | None, jobs: int, force: bool
) -> list[Job]:
    running: list[Job] = []
    failed: list[Job] = []
    queue = list(waiting)
    # The same for the last run as for the first: how many threads share a sum changes its last
    # bits, and a result must not depend on how many runs had been finished before.
    threads = max(1, (os.cpu_count() or 1) // jobs)
    bar = tqdm(total=len(queue), desc="runs", unit="run", smoothing=0, disable=not queue)
    every = _LIVE_SECONDS if sys.stderr.isatty() else _LOG_SECONDS
    shown = time.monotonic()
    try:
        while queue or running:
            while queue and len(running) < jobs:
                running.append(_start(queue.pop(0), data_root, threads, force))
            time.sleep(0.2)
            for job in [j for j in running if j.process.poll() is not None]:
                running.remove(job)
                if job.process.returncode != 0 or finished(job.config) is None:
                    failed.append(job)
                    name = run_folder(job.config).name
                    bar.write(f"FAILED {name}: {_last_line(job.log)} (log: {job.log})")
                bar.update()
            if time.monotonic() - shown >= every:
                bar.set_postfix_str(", ".join(map(str, running)))
                shown = time.monotonic()
    finally:  # also on Ctrl-C: nothing goes on in the background
        for job in running:
            job.process.terminate()
        bar.close()
    return failed


def _start(config: RunConfig, data_root: str | Path | None, threads: int, force: bool) -> Job:
    folder = run_folder(config)
    folder.mkdir(parents=True, exist_ok=True)
    command = [
        sys.executable, "-m", "spcl_lib", "run", "--dataset", config.dataset,
        "--method", config.method, "--seed", str(config.seed), "--profile", config.profile,
    ]  # fmt: skip
    base = make_config(config.dataset, config.method, config.seed, config.profile)
    base = dataclasses.replace(base, content=config.content)  # the run finds it itself
    for name, value in dataclasses.asdict(config).items():
        if value != getattr(base, name):
            command += ["--set", f"{name}={value}"]
    if data_root is not None:
        command += ["--data-root", str(data_root)]
    if importlib.util.find_spec("papermill") is not None:
        command += ["--notebook", str(folder / "train.ipynb")]
    if force:
        command.append("--force")
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": str(threads),
        "SPCL_PARENT": str(os.getpid()),  # the run ends if this process is killed
    }
    log, history = folder / "log.txt", Follower(folder)
    with open(log, "w") as handle:
        process = subprocess.Popen(
            command, stdout=handle, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
            env=environment,
        )  # fmt: skip
    return Job(config, process, log, history)


def end_with_parent() -> None:
    """Ends this process when the one named in SPCL_PARENT is gone, however it ended."""
    parent = os.getppid()
    if os.environ.get("SPCL_PARENT") != str(parent):
        return

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _last_line(log: Path) -> str:
    """What a run said last, which is what stopped it."""
    text = log.read_text(errors="replace").replace("\r", "\n").strip()
    return text.rpartition("\n")[2] or "it said nothing"


def _print_summary(configs: list[RunConfig], failed: list[Job], seconds: float) -> None:
    print(f"\n{'method':8} {'runs':>5} {'mAP %':>7} {'std':>5}")
    for method in METHODS:
        done = [finished(c) for c in configs if c.method == method]
        scores = [m["mAP"] for m in done if m is not None]
        if not done:
            continue
        mean = f"{statistics.mean(scores):7.2f}" if scores else f"{'-':>7}"
        spread = f"{statistics.stdev(scores):5.2f}" if len(scores) > 1 else f"{'-':>5}"
        print(f"{method:8} {len(scores):2}/{len(done):<2} {mean} {spread}")
    print(f"\n{len(configs) - len(failed)} of {len(configs)} runs finished, {seconds / 60:.1f} min")
    for job in failed:
        print(f"failed: {run_folder(job.config).name}, log: {job.log}")
    print(f"table:  {paths.results() / 'summary.csv'}", flush=True)


def _write_report(configs: list[RunConfig]) -> bool:
    """Writes report.html; returns whether it could. Without Jupyter there is the table only."""
    if importlib.util.find_spec("papermill") is None:
        print("report: not written (papermill is not installed)")
        return True
    if not any(finished(c) for c in configs):
        print("report: not written (no run has finished)")
        return False
    first = configs[0]
    if first != make_config(first.dataset, first.method, first.seed, first.profile):
        print("report: not written (it compares runs with the profile's settings, on no folder)")
        return True
    from spcl_lib.report import write_report

    try:
        print(f"report: {write_report(configs[0].dataset, configs[0].profile)}")
    except UserError as error:
        print(f"report: not written: {error}", file=sys.stderr)
        return False
    return True
