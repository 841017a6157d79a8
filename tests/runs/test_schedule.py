"""The scheduler: its output, and that a killed scheduler loses nothing and leaves no process."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from fake_runs import fake_runs, write_results
from kills import processes_with, wait_until

from spcl_lib.runs import schedule, store
from spcl_lib.runs.progress import write_history
from spcl_lib.runs.run import run
from spcl_lib.runs.settings import make_config
from spcl_lib.system import files, paths
from spcl_lib.system.files import lock_folder, try_lock

# --- what it shows --------------------------------------------------------------------------------


class FakeProcess:
    """A task that has ended after some looks at it."""

    def __init__(self, looks, returncode):
        self.looks, self.returncode = looks, returncode

    def poll(self):
        self.looks -= 1
        return None if self.looks > 0 else self.returncode

    def terminate(self):
        pass


@pytest.fixture
def fake_starts(monkeypatch):
    """No process is started; every run has finished two epochs, and writes a log before it ends."""
    monkeypatch.setattr(schedule.time, "sleep", lambda seconds: None)

    def use(returncode, log):
        def start(task, threads):
            rows = [{"epoch": 1, "loss": 0.5}, {"epoch": 2, "loss": 0.4}]
            write_history(task.log.parent, rows)
            task.log.write_text(log)
            return FakeProcess(3, returncode)

        monkeypatch.setattr(schedule, "_start", start)

    return use


def tasks_of(*methods):
    configs = [make_config("scenes", method, 1) for method in methods]
    return [schedule._task_of(config, None, False) for config in configs]


def test_the_bar_shows_what_is_running_and_how_far_it_is(results, fake_starts, monkeypatch, capsys):
    monkeypatch.setattr(schedule, "_LOG_SECONDS", 0.0)
    fake_starts(0, "")
    schedule.run_tasks(tasks_of("an", "scl"), 2, "runs")
    assert "0/2" in (bar := capsys.readouterr().err) and "an-seed1 2/24, scl-seed1 2/24" in bar


def test_a_run_that_fails_is_named_with_its_last_words_and_its_log(results, fake_starts, capsys):
    fake_starts(2, "epoch 1\rspcl: error: '/x': No space left on device. Free some space\n\n")
    (failed,) = schedule.run_tasks(tasks_of("an"), 1, "runs")
    words = "spcl: error: '/x': No space left on device. Free some space"
    assert f"FAILED an-seed1: {words} (log: {failed.log})" in capsys.readouterr().out
    assert failed.name == "an-seed1"


@pytest.mark.parametrize(
    ("status", "log", "cause"),
    [
        (-9, "epoch 1 of 24\n", "killed by signal 9 (Killed); perhaps the memory was full"),
        (-15, "", "killed by signal 15 (Terminated)"),
        (2, "spcl: error: process 17 is training in 'x'\nFutureWarning: y\n",
         "spcl: error: process 17 is training in 'x'"),
        (0, "an seed 1: mAP 63 %\n", "it ended without a result"),
        (1, "", "it said nothing"),
    ],
)  # fmt: skip
def test_a_run_that_fails_is_named_with_the_cause(status, log, cause, results, fake_starts, capsys):
    fake_starts(status, log)
    schedule.run_tasks(tasks_of("an"), 1, "runs")
    assert f"FAILED an-seed1: {cause} (log: " in capsys.readouterr().out


@pytest.fixture
def started(fake_starts, monkeypatch):
    """The names of the tasks whose processes were started, in order."""
    fake_starts(0, "")
    names, start = [], schedule._start

    def noted(task, threads):
        names.append(task.name)
        return start(task, threads)

    monkeypatch.setattr(schedule, "_start", noted)
    return names


@pytest.mark.parametrize("held", ["run", "log"])
def test_a_run_that_another_process_is_at_waits_for_it_and_keeps_its_log(
    held, results, started, monkeypatch, capsys
):
    tasks, looks = tasks_of("an", "scl"), []
    log = tasks[0].log
    log.write_text("of the other process")
    lock = (
        lock_folder(log.parent, 0, "training in") if held == "run"
        else try_lock(log.with_name(".log.txt.lock"))
    )  # fmt: skip
    lock.__enter__()

    def look(seconds):
        looks.append(log.read_text())
        if len(looks) == 9:
            assert started == ["scl-seed1"]
            lock.__exit__(None, None, None)

    monkeypatch.setattr(schedule.time, "sleep", look)
    schedule.run_tasks(tasks, 2, "runs")
    assert started == ["scl-seed1", "an-seed1"]
    assert looks[:9] == ["of the other process"] * 9
    who = f"process {os.getpid()} is at work in" if held == "run" else "another scheduler writes"
    assert capsys.readouterr().out.count(f"an-seed1 waits: {who}") == 1


def test_a_run_that_another_process_took_meanwhile_is_tried_again(results, started, monkeypatch):
    start, statuses = schedule._start, [files.LOCKED, 0]

    def taken(task, threads):
        process = start(task, threads)
        process.returncode = statuses.pop(0)
        return process

    monkeypatch.setattr(schedule, "_start", taken)
    schedule.run_tasks(tasks_of("an"), 1, "runs")
    assert started == ["an-seed1"] * 2


def test_a_run_is_started_with_one_file_that_says_all_of_it(results):
    config = make_config("scenes", "scl", 3, "smoke", {"weight": 0.5, "lr": 1e-3})
    task = schedule._task_of(config, "somewhere", True)
    command, option, file, force = task.arguments
    assert (command, option, force) == ("run", "--config", "--force")
    assert Path(file).parent == store.run_folder(config) == task.log.parent
    assert store.Run.find(file).config == config
    assert store.Run.find(file).data_root == str(Path("somewhere").resolve())


def test_what_is_finished_is_not_run_again(results, monkeypatch):
    write_results(fake_runs(methods=("an",), seeds=(0,)))
    monkeypatch.setattr(schedule, "prepare", lambda *given: pytest.fail("data were prepared"))
    assert schedule.run_all([make_config("scenes", "an", 0)], None, 1, False) == []


def test_results_that_cannot_be_written_are_found_before_anything_is_made(
    spcl, tmp_path, monkeypatch
):
    (tmp_path / "file").touch()
    monkeypatch.setenv("SPCL_RESULTS", str(tmp_path / "file"))
    monkeypatch.setattr(schedule, "prepare", lambda *given: pytest.fail("data were prepared"))
    outcome = spcl("reproduce", "--only", "an", "--seeds", "0", "--profile", "smoke")
    assert outcome.status == 2
    assert outcome.err.startswith(f"spcl: error: '{tmp_path / 'file'}': ")


# --- kill -9 --------------------------------------------------------------------------------------


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="needs Linux's /proc")
def test_killed_as_a_whole_it_leaves_no_process_and_goes_on_to_the_same_bits(
    results, tmp_path, tiny, own_kernels, monkeypatch
):
    settings = tiny | {"train_images": 200, "epochs": 6, "eval_every": 3}  # 150 steps
    settings |= {"scale_min": 0.5}
    configs = [make_config("scenes", method, 0, "smoke", settings) for method in ("an", "scl")]
    threads = torch.get_num_threads()
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // 2))  # what two runs side by side have
    monkeypatch.setenv("SPCL_RESULTS", str(tmp_path / "whole"))
    expected = [run(config) for config in configs]
    torch.set_num_threads(threads)

    killed = tmp_path / "killed"
    monkeypatch.setenv("SPCL_RESULTS", str(killed))
    monkeypatch.setenv("SPCL_CHECKPOINT_SECONDS", "0")
    folders = [store.run_folder(config) for config in configs]
    command = [sys.executable, "-m", "spcl_lib", "ablation", "crop_scale", "--profile", "smoke",
               "--scales", "0.5", "--only", "an", "scl", "--seeds", "0", "--jobs", "2"]  # fmt: skip
    for name, value in settings.items():
        command += ["--set", f"{name}={value}"] if name != "scale_min" else []
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(command, cwd=paths.project(), start_new_session=True, **quiet) as top:
        try:
            wait_until(lambda: any((f / "checkpoint.pt").exists() for f in folders), 900, top)
            time.sleep(random.Random(7).uniform(0, 0.5))
            assert len(processes_with(killed)) >= 3  # itself and its runs
            assert not any((folder / "metrics.json").exists() for folder in folders)
            top.kill()  # nobody tells its children
            wait_until(lambda: not processes_with(killed), 60)
        finally:
            for process in processes_with(killed):
                os.kill(process, signal.SIGKILL)
    assert top.returncode == -signal.SIGKILL
    assert not all((folder / "metrics.json").exists() for folder in folders)

    again = subprocess.run(command, cwd=paths.project(), capture_output=True, text=True)
    assert again.returncode == 0, again.stdout + again.stderr
    for folder, whole in zip(folders, expected, strict=True):
        metrics = json.loads((folder / "metrics.json").read_text())
        for key in ("mAP", "AP", "history", "at_0.5", "top_3"):
            assert metrics[key] == json.loads(json.dumps(whole[key]))
        last = f"{whole['method']} seed 0: epoch 6 of 6, loss"
        assert last in (folder / "log.txt").read_text()
    names = {file.name for file in killed.rglob("*") if file.is_file()}
    hidden = {name for name in names if name[0] == "."}
    assert hidden <= {".lock", ".log.txt.lock", ".summary.csv.lock"}
    assert not any(name.endswith(".tmp") or name == "checkpoint.pt" for name in names)
    assert not processes_with(killed)
