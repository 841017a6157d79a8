"""`reproduce`: what it shows, and that nothing is lost or left behind when it is killed."""

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

from spcl_lib.analysis import plan
from spcl_lib.runs import run, schedule, store
from spcl_lib.runs.progress import Follower, write_history
from spcl_lib.runs.settings import make_config
from spcl_lib.system import paths

# --- what it shows --------------------------------------------------------------------------------


class FakeProcess:
    """A run that has ended after some looks at it."""

    def __init__(self, looks, returncode):
        self.looks, self.returncode = looks, returncode

    def poll(self):
        self.looks -= 1
        return None if self.looks > 0 else self.returncode

    def terminate(self):
        pass


@pytest.fixture
def fake_starts(monkeypatch):
    """No process is started; every run has finished two epochs, and says `presence_in_views` before it ends."""
    monkeypatch.setattr(reproduce.time, "sleep", lambda seconds: None)

    def use(returncode, said):
        def start(config, data_root, threads, force):
            folder = store.run_folder(config)
            follower = Follower(folder)
            write_history(folder, [{"epoch": 1, "loss": 0.5}, {"epoch": 2, "loss": 0.4}])
            (folder / "log.txt").write_text(said)
            return schedule.Job(config, FakeProcess(3, returncode), folder / "log.txt", follower)

        monkeypatch.setattr(schedule, "_start", start)

    return use


def test_the_bar_shows_what_is_running_and_how_far_it_is(results, fake_starts, monkeypatch, capsys):
    monkeypatch.setattr(schedule, "_LOG_SECONDS", 0.0)
    fake_starts(0, "")
    configs = [make_config("scenes", method, 1) for method in ("an", "scl")]
    schedule._run_waiting(configs, None, 2, False)
    assert "0/2" in (bar := capsys.readouterr().err) and "an-seed1 2/24, scl-seed1 2/24" in bar


def test_a_run_that_fails_is_named_with_its_last_words_and_its_log(results, fake_starts, capsys):
    fake_starts(2, "epoch 1\rspcl: error: '/x': No space left on device. Free some space\n\n")
    config = make_config("scenes", "an", 1)
    (failed,) = schedule._run_waiting([config], None, 1, False)
    log = store.run_folder(config) / "log.txt"
    words = "spcl: error: '/x': No space left on device. Free some space"
    assert f"FAILED an-seed1: {words} (log: {log})" in capsys.readouterr().out
    assert failed.config == config


def test_what_a_killed_process_left_beside_finished_runs_is_removed(results, monkeypatch):
    write_results(fake_runs(methods=("an",), seeds=(0,)))
    config = make_config("scenes", "an", 0)
    left = [store.run_folder(config) / ".train.ipynb.99999.ipynb",
            results / ".report.html.99999.tmp"]  # fmt: skip
    for file in left:
        file.write_text("half")
    monkeypatch.setattr(schedule, "_write_report", lambda configs: True)
    assert plan.reproduce([config], None, 1, False, only_list=True) == 0
    assert all(file.exists() for file in left)  # looking changes nothing
    assert plan.reproduce([config], None, 1, False, only_list=False) == 0
    assert not any(file.exists() for file in left)


def test_results_that_cannot_be_written_are_found_before_anything_is_made(
    spcl, tmp_path, monkeypatch
):
    (tmp_path / "file").touch()
    monkeypatch.setenv("SPCL_RESULTS", str(tmp_path / "file"))
    monkeypatch.setattr(schedule, "prepare", lambda *given: pytest.fail("data were prepared"))
    outcome = spcl("reproduce", "--only", "an", "--seeds", "0", "--profile", "smoke")
    assert outcome.status == 2 and outcome.out == ""
    assert outcome.err.startswith(f"spcl: error: '{tmp_path / 'file'}': ")


# --- kill -9 --------------------------------------------------------------------------------------


def processes_with(results):
    """Ids of all processes that were started for a folder of results, by their environment."""
    mark, found = f"SPCL_RESULTS={results}".encode(), set()
    for file in Path("/proc").glob("[0-9]*/environ"):
        try:
            if mark in file.read_bytes().split(b"\0"):
                found.add(int(file.parent.name))
        except OSError:  # ended meanwhile
            continue
    return found - {os.getpid()}


def wait_until(condition, seconds, process=None):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it took too long"
        assert process is None or process.poll() is None, "it ended before it could be killed"
        time.sleep(0.01)


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="needs Linux's /proc")
def test_killed_as_a_whole_it_leaves_no_process_and_goes_on_to_the_same_bits(
    results, tmp_path, tiny, own_kernels, monkeypatch
):
    settings = tiny | {"train_images": 200, "epochs": 6, "eval_every": 3}  # 150 steps
    configs = [make_config("scenes", method, 0, "smoke", settings) for method in ("an", "scl")]
    threads = torch.get_num_threads()
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // 2))  # what two runs side by side have
    monkeypatch.setenv("SPCL_RESULTS", str(tmp_path / "whole"))
    expected = [run.run(config) for config in configs]
    torch.set_num_threads(threads)

    killed = tmp_path / "killed"
    monkeypatch.setenv("SPCL_RESULTS", str(killed))
    monkeypatch.setenv("SPCL_CHECKPOINT_SECONDS", "0")
    folders = [store.run_folder(config) for config in configs]
    command = [sys.executable, "-m", "spcl_lib", "reproduce", "--profile", "smoke",
               "--only", "an", "scl", "--seeds", "0", "--jobs", "2"]  # fmt: skip
    for name, value in settings.items():
        command += ["--set", f"{name}={value}"]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(command, cwd=paths.project(), start_new_session=True, **quiet) as top:
        try:
            wait_until(lambda: any((f / "checkpoint.pt").exists() for f in folders), 900, top)
            time.sleep(random.Random(7).uniform(0, 0.5))
            assert len(processes_with(killed)) >= 3  # itself and its runs (with their kernels)
            assert not any((folder / "metrics.json").exists() for folder in folders)
            top.kill()  # nobody tells its children
            wait_until(lambda: not processes_with(killed), 60)
        finally:
            for process in processes_with(killed):
                os.kill(process, signal.SIGKILL)
    assert top.returncode == -signal.SIGKILL
    assert not all((folder / "metrics.json").exists() for folder in folders)
    assert any(folder.glob(".train.ipynb.*") for folder in folders)  # what must be cleared away

    again = subprocess.run(command, cwd=paths.project(), capture_output=True, text=True)
    assert again.returncode == 0, again.stdout + again.stderr
    for folder, whole in zip(folders, expected, strict=True):
        metrics = json.loads((folder / "metrics.json").read_text())
        for key in ("mAP", "AP", "history", "at_0.5", "top_3"):
            assert metrics[key] == json.loads(json.dumps(whole[key]))
        log, notebook = ((folder / name).read_text() for name in ("log.txt", "train.ipynb"))
        said = f"{whole['method']} seed 0: epoch 6 of 6, loss"
        assert said in log and "epoch 6 of 6" not in notebook
    names = {file.name for file in killed.rglob("*") if file.is_file()}
    assert {name for name in names if name[0] == "."} <= {".lock", ".summary.csv.lock"}
    assert not any(name.endswith(".tmp") or name == "checkpoint.pt" for name in names)
    assert not processes_with(killed)
