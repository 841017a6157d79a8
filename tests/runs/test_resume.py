"""A run that was stopped at any moment continues to the metrics of an uninterrupted run."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time

import pytest
import torch
from kills import environment

from spcl_lib.methods import PAPER_METHODS
from spcl_lib.runs import checkpoint, run, store
from spcl_lib.runs.settings import make_config
from spcl_lib.system import paths
from spcl_lib.system.errors import UserError
from spcl_lib.system.files import lock_folder
from spcl_lib.train import Progress

TIMES = {"train_seconds", "wall_seconds", "finished", "machine"}


def what_counts(folder):
    """Everything a run leaves that must not depend on interruptions: metrics and files."""
    metrics = json.loads((folder / "metrics.json").read_text())
    files = {
        path.name: path.read_bytes()
        for path in folder.iterdir()
        if path.name not in (".lock", "metrics.json", "log.txt", ".log.txt.lock")
    }
    return {k: v for k, v in metrics.items() if k not in TIMES}, files


def run_in(folder, config, monkeypatch, **options):
    """A run in this process, with `folder` for its results; returns what counts of it."""
    monkeypatch.setenv("SPCL_RESULTS", str(folder))
    run.run(config, **options)
    return what_counts(store.run_folder(config))


@pytest.mark.parametrize("method", PAPER_METHODS)
def test_the_same_seed_gives_the_same_bits_twice(method, results, tmp_path, tiny, monkeypatch):
    config = make_config("scenes", method, 5, "smoke", tiny)
    one = run_in(tmp_path / "one", config, monkeypatch)
    torch.rand(7)  # what happened before in the process does not matter
    assert run_in(tmp_path / "two", config, monkeypatch) == one
    assert ("bank.safetensors" in one[1]) == (method not in ("an", "full"))


def test_another_seed_gives_another_result(results, tmp_path, tiny, monkeypatch):
    one, other = (
        run_in(tmp_path / "r", make_config("scenes", "an", seed, "smoke", tiny), monkeypatch)
        for seed in (0, 1)
    )
    assert one[1]["weights.safetensors"] != other[1]["weights.safetensors"]
    assert one[0]["mAP"] != other[0]["mAP"]


class Stopped(BaseException):
    """As sudden as a signal: nothing in the library catches it."""


@pytest.mark.parametrize(
    "method",
    [
        "cl",
        "scl",
        "en",
        "en_scl",
        "role",
        "apl",
        "ll_cp",
        "crisp_scl",
        "asset",
        "gpr",
        "gpr_scl",
        "ren_scl",
    ],
)
def test_stopped_after_any_step_it_goes_on_to_the_same_bits(
    method, results, tmp_path, tiny, monkeypatch
):
    """Checkpoints after every step; every process makes two steps and then dies, until the end."""
    config = make_config("scenes", method, 0, "smoke", tiny | {"train_images": 40})
    expected = run_in(tmp_path / "whole", config, monkeypatch)  # 3 epochs of 5 steps

    monkeypatch.setattr(checkpoint, "CHECKPOINT_SECONDS", 0.0)
    save, reached = checkpoint.Checkpoint.save, []

    def save_and_die(self, progress):
        save(self, progress)
        reached.append((progress.epoch, progress.step))
        if len(reached) % 2 == 0:
            raise Stopped

    monkeypatch.setattr(checkpoint.Checkpoint, "save", save_and_die)
    got, starts = None, 0
    while got is None and starts < 20:
        starts += 1
        try:
            got = run_in(tmp_path / "stopped", config, monkeypatch)
        except Stopped:
            assert not list((tmp_path / "stopped").rglob("metrics.json"))
    every_step = [divmod(i, 5) for i in range(1, 16)]
    assert reached == every_step  # no step was done twice, none was left out
    assert starts == 8
    assert got == expected


def test_a_slow_disk_gets_fewer_checkpoints(tmp_path, monkeypatch):
    """At COCO's size a checkpoint has 5 GB."""
    now = [0.0]
    monkeypatch.setattr(checkpoint.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(checkpoint, "CHECKPOINT_SECONDS", 30.0)
    kept = checkpoint.Checkpoint(tmp_path, make_config("scenes", "an"), None, None, None)

    def save(progress):
        now[0] += 20.0
        kept.saved, kept.cost = now[0], 20.0

    monkeypatch.setattr(kept, "save", save)
    saves = []
    for _ in range(100):
        now[0] += 10.0
        if kept.after_step(Progress(epoch=1, step=1)):
            saves.append(now[0])
    assert saves[0] == 50.0 and saves[1] - saves[0] == 220.0


def test_a_run_killed_before_its_first_checkpoint_starts_again(
    results, tmp_path, tiny, monkeypatch
):
    config = make_config("scenes", "scl", 0, "smoke", tiny)
    expected = run_in(tmp_path / "whole", config, monkeypatch)
    with monkeypatch.context() as patch:

        def die(*arguments):
            raise Stopped

        patch.setattr(checkpoint.Checkpoint, "save", die)
        with pytest.raises(Stopped):
            run_in(tmp_path / "stopped", config, monkeypatch)
    assert run_in(tmp_path / "stopped", config, monkeypatch) == expected


@pytest.mark.parametrize("last", ["write_json", "save_weights"])
def test_a_run_killed_while_it_writes_its_results_has_none_and_writes_them_again(
    last, results, tmp_path, tiny, monkeypatch
):
    config = make_config("scenes", "scl", 0, "smoke", tiny)
    expected = run_in(tmp_path / "whole", config, monkeypatch)
    with monkeypatch.context() as patch:
        write = getattr(run, last)

        def half(*arguments):
            if "config.json" in str(arguments):  # written at the start, by the same function
                return write(*arguments)
            raise Stopped

        patch.setattr(run, last, half)
        with pytest.raises(Stopped):
            run_in(tmp_path / "stopped", config, monkeypatch)
    assert store.Run.of(config).metrics is None
    trained = []
    monkeypatch.setattr(
        checkpoint.Checkpoint, "after_step", lambda self, progress: trained.append(progress)
    )
    assert run_in(tmp_path / "stopped", config, monkeypatch) == expected
    assert trained == []  # the training itself was not lost


def test_a_run_that_another_process_is_at_is_waited_for_and_then_finished(
    results, tmp_path, tiny, monkeypatch, capfd
):
    config = make_config("scenes", "an", 0, "smoke", tiny)
    run_in(tmp_path / "whole", config, monkeypatch)
    monkeypatch.setenv("SPCL_RESULTS", str(tmp_path / "shared"))
    monkeypatch.setattr(run, "train", lambda *given: pytest.fail("it was trained again"))
    found, folder = [], store.run_folder(config)
    waiting = threading.Thread(target=lambda: found.append(run.run(config)))
    with lock_folder(folder, "training in"):
        waiting.start()
        while "waits for process" not in capfd.readouterr().err:
            time.sleep(0.01)
        for file in (tmp_path / "whole").glob("*/*/[!.]*"):
            shutil.copy(file, folder)
    waiting.join()
    assert found[0]["mAP"] == store.Run.of(config).metrics["mAP"]


def test_a_run_that_fails_before_it_trains_leaves_no_folder(results, tiny, monkeypatch):
    config = make_config("scenes", "an", 0, "smoke", tiny | {"weights": "missing.safetensors"})
    with pytest.raises(UserError, match="does not exist"):
        run.run(config)
    assert not store.run_folder(config).exists()


def test_a_checkpoint_of_other_settings_is_not_continued(results, tmp_path, tiny, monkeypatch):
    config = make_config("scenes", "an", 0, "smoke", tiny)
    expected = run_in(tmp_path / "whole", config, monkeypatch)
    other = run_in(tmp_path / "x", make_config("scenes", "an", 0, "smoke", tiny | {"lr": 1e-4}),
                   monkeypatch)  # fmt: skip
    assert other[1]["weights.safetensors"] != expected[1]["weights.safetensors"]
    monkeypatch.setenv("SPCL_RESULTS", str(tmp_path / "mixed"))
    folder = store.run_folder(config)
    folder.mkdir(parents=True)
    state = {"config": {"lr": 1e-4}, "progress": {"epoch": 2}}
    torch.save(state, folder / "checkpoint.pt")
    assert run_in(tmp_path / "mixed", config, monkeypatch) == expected


def test_what_a_killed_process_left_half_written_is_cleared_away(
    results, tmp_path, tiny, monkeypatch
):
    config = make_config("scenes", "an", 0, "smoke", tiny)
    monkeypatch.setenv("SPCL_RESULTS", str(tmp_path / "r"))
    folder = store.run_folder(config)
    folder.mkdir(parents=True)
    (folder / ".checkpoint.pt.99999.tmp").write_bytes(b"half")
    run.run(config)
    assert not list(folder.glob("*.tmp")) and not list(folder.glob(".*.tmp"))


# --- kill -9 --------------------------------------------------------------------------------------


def kill_after(forks, results, arguments, checkpoint, changes, extra):
    """SIGKILL once the checkpoint has changed so many times, and `extra` seconds later."""
    seen, last, deadline = 0, stamp(checkpoint), time.monotonic() + 60
    print(1e9, results, *arguments, file=forks.stdin, flush=True)
    child = int(forks.stdout.readline())
    while seen < changes and time.monotonic() < deadline:
        now = stamp(checkpoint)
        seen, last = seen + (now != last), now
        time.sleep(0.002)
    time.sleep(extra)
    os.kill(child, signal.SIGKILL)
    assert int(forks.stdout.readline()) == -signal.SIGKILL
    assert seen == changes


def stamp(path):
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    return status.st_ino, status.st_mtime_ns


@pytest.mark.parametrize("method", ["scl", "en_scl"])
def test_killed_three_times_it_goes_on_to_the_same_bits(
    method, forks, results, tmp_path, tiny, monkeypatch
):
    settings = tiny | {"train_images": 96, "epochs": 5, "eval_every": 2}  # 60 steps
    config = make_config("scenes", method, 1, "smoke", settings)
    expected = run_in(tmp_path / "whole", config, monkeypatch)

    killed = tmp_path / "killed"
    monkeypatch.setenv("SPCL_RESULTS", str(killed))
    folder = store.run_folder(config)
    arguments = ["run", "--dataset", "scenes", "--method", method, "--seed", "1",
                 "--profile", "smoke"]  # fmt: skip
    for name, value in settings.items():
        arguments += ["--set", f"{name}={value}"]
    rng, done = random.Random(method), [0]
    for _ in range(3):
        moment = rng.randint(2, 9), rng.uniform(0, 0.03)
        kill_after(forks, killed, arguments, folder / "checkpoint.pt", *moment)
        # A process that is killed between the two renamings of a save leaves the previous one.
        names = "checkpoint.pt", "checkpoint.previous.pt"
        newest = next(file for name in names if (file := folder / name).exists())
        progress = torch.load(newest, weights_only=True)["progress"]
        done.append(progress["epoch"] * 12 + progress["step"])
        assert done[-2] < done[-1] < 60  # it went on, and had more to do
        assert not (folder / "metrics.json").exists()
    command = [sys.executable, "-m", "spcl_lib", *arguments]
    last = subprocess.run(command, env=environment(killed), cwd=paths.project(), timeout=300,
                          capture_output=True, text=True)  # fmt: skip
    assert last.returncode == 0, last.stderr
    assert what_counts(folder) == expected
    assert [row["epoch"] for row in expected[0]["history"]] == [1, 2, 3, 4, 5]
    assert not (folder / "checkpoint.pt").exists()
