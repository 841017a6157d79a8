"""The scheduler: what it says, and that a killed one loses nothing and leaves no process."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from fake_runs import fake_runs, write_results

from spcl_lib.runs import schedule, store
from spcl_lib.runs.run import run
from spcl_lib.runs.settings import make_config
from spcl_lib.system import paths

# --- processes ------------------------------------------------------------------------------------


@pytest.fixture
def tasks(tmp_path, monkeypatch):
    """Makes tasks that run some code, without this package, which takes seconds to load."""

    def start(task):
        task.log.parent.mkdir(exist_ok=True)
        with open(task.log, "a") as log:
            command = [sys.executable, "-c", task.arguments[0]]
            return subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)

    def make(name, code, is_done=lambda: True):
        return schedule.Task(name, [code], tmp_path / name / "log.txt", is_done)

    monkeypatch.setattr(schedule, "_start", start)
    return make


@pytest.mark.parametrize(
    ("code", "cause"),
    [
        ("import os; os.kill(os.getpid(), 9)",
         "killed by signal 9 (Killed); perhaps the memory was full"),
        ("print('epoch 1\\rspcl: error: disk full'); exit(2)", "spcl: error: disk full"),
    ],
)  # fmt: skip
def test_a_task_that_fails_is_named_with_the_cause_and_its_log(code, cause, tasks, capsys):
    bad = tasks("bad", code)
    bad.log.parent.mkdir()
    bad.log.write_text("of an earlier try\n")
    assert schedule.run_tasks([bad, tasks("good", "print('fine')")], 2, "runs") == [bad]
    assert f"FAILED bad: {cause} (log: {bad.log})" in capsys.readouterr().out
    assert bad.log.read_text().startswith("of an earlier try")


def test_a_task_without_a_result_has_failed(tasks, capsys):
    first, second = tasks("first", "print('mAP 63 %')", lambda: False), tasks("second", "")
    assert schedule.run_tasks([first, second], 1, "runs") == [first]
    assert "FAILED first: it ended without a result" in capsys.readouterr().out


def test_ctrl_c_ends_every_process(tasks):
    def interrupt():
        raise KeyboardInterrupt

    code = "import os, time; print(os.getpid(), flush=True); time.sleep(600)"
    long, never = tasks("long", code), tasks("never", code)
    quick = tasks("quick", "import time; time.sleep(1)", interrupt)
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        schedule.run_tasks([long, quick, never], 2, "runs")
    assert time.monotonic() - began < 60 and not never.log.exists()
    with pytest.raises(ProcessLookupError):
        os.kill(int(long.log.read_text()), 0)


# --- runs -----------------------------------------------------------------------------------------


@pytest.fixture
def asked(monkeypatch):
    """The tasks that would be carried out."""
    found = []
    monkeypatch.setattr(schedule, "run_tasks", lambda tasks, *given: found.extend(tasks) or [])
    monkeypatch.setattr(schedule, "prepare", lambda *given: None)
    return found


def test_a_run_is_started_with_one_file_that_says_all_of_it(results, asked):
    config = make_config("scenes", "scl", 3, "smoke", {"weight": 0.5, "lr": 1e-3})
    schedule.run_all([config, config], "somewhere", 1, True)
    (task,) = asked
    module, command, option, file, force = task.arguments
    assert (command, option, force) == ("run", "--config", "--force")
    assert Path(file).parent == store.run_folder(config) == task.log.parent
    assert store.Run.find(file).config == config
    assert store.Run.find(file).data_root == str(Path("somewhere").resolve())


def test_what_is_finished_is_not_run_again_and_short_runs_share_a_process(results, asked):
    write_results(fake_runs(methods=("an",), seeds=(0,)))
    configs = [make_config("scenes", "an", seed) for seed in range(6)]
    assert schedule.run_all(configs, None, 2) == []
    assert [task.count for task in asked] == [len(task.arguments) - 3 for task in asked] == [3, 2]
    assert [task.name for task in asked] == ["an-seed1 and 2 more", "an-seed2 and 1 more"]
    assert not any(task.is_done() for task in asked)
    write_results(fake_runs(methods=("an",), seeds=(1, 3, 5)))
    assert [task.is_done() for task in asked] == [True, False]


# Schedules runs: its arguments are their configurations, as JSON, and the runs side by side.
SCHEDULER = """
import json, sys
from spcl_lib.config import RunConfig
from spcl_lib.runs.schedule import run_all
configs = [RunConfig.from_flat(values) for values in json.loads(sys.argv[1])]
sys.exit(len(run_all(configs, None, int(sys.argv[2]))))
"""


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
    monkeypatch.setenv("SPCL_RESULTS", str(tmp_path / "whole"))
    expected = [run(config) for config in configs]

    killed = tmp_path / "killed"
    monkeypatch.setenv("SPCL_RESULTS", str(killed))
    monkeypatch.setenv("SPCL_CHECKPOINT_SECONDS", "0")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    folders = [store.run_folder(config) for config in configs]
    values = json.dumps([config.flat() for config in configs])
    command = [sys.executable, "-c", SCHEDULER, values]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "cwd": paths.project()}
    with subprocess.Popen([*command, "2"], start_new_session=True, **quiet) as top:
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

    # Another number of runs side by side changes nothing.
    again = subprocess.run([*command, "1"], cwd=paths.project(), capture_output=True, text=True)
    assert again.returncode == 0, again.stdout + again.stderr
    logs = "".join((folder / "log.txt").read_text() for folder in folders)
    for folder, whole in zip(folders, expected, strict=True):
        metrics = json.loads((folder / "metrics.json").read_text())
        for key in ("mAP", "AP", "history", "at_0.5", "top_3"):
            assert metrics[key] == json.loads(json.dumps(whole[key]))
        assert f"{whole['method']} seed 0: epoch 6 of 6" in logs
    names = {file.name for file in killed.rglob("*") if file.is_file()}
    assert {name for name in names if name[0] == "."} <= {".lock", ".summary.csv.lock"}
    assert not any(name.endswith(".tmp") or name == "checkpoint.pt" for name in names)
    assert not processes_with(killed)
