"""A run that was stopped at any moment continues to the metrics of an uninterrupted run."""

import json
import shutil
import threading
import time

import pytest
import torch

from spcl_lib import train
from spcl_lib.runs import checkpoint, run, store
from spcl_lib.runs.settings import make_config
from spcl_lib.system.files import lock_folder

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


def test_all_seeds_see_the_same_labels(results, tiny):
    def drawn(seed, **more):
        return run._prepare(make_config("scenes", "an", seed, "smoke", tiny | more), None).observed

    assert torch.equal(drawn(0), drawn(1)) and not torch.equal(drawn(0), drawn(0, label_seed=1))


class Stopped(BaseException):
    """As sudden as a signal: nothing in the library catches it."""


def die_after(patch, count):
    """A process saves a checkpoint after every step, and dies after so many; gives the steps."""
    save, reached = checkpoint.Checkpoint.save, []

    def save_and_die(self, progress):
        save(self, progress)
        reached.append((progress.epoch, progress.step))
        if len(reached) % count == 0:
            raise Stopped

    patch.setattr(checkpoint, "CHECKPOINT_SECONDS", 0.0)
    patch.setattr(checkpoint.Checkpoint, "save", save_and_die)
    return reached


METHODS = "an role apl ll_cp asset gpr_scl ren_scl".split()


@pytest.mark.parametrize("method", METHODS)
def test_stopped_after_any_step_it_goes_on_to_the_same_bits(
    method, results, tmp_path, tiny, monkeypatch
):
    """Every process makes two steps and then dies, until the end."""
    config = make_config("scenes", method, 0, "smoke", tiny | {"train_images": 40, "snapshots": 5})
    expected = run_in(tmp_path / "whole", config, monkeypatch)  # 3 epochs of 5 steps
    assert "snapshots.safetensors" in expected[1]
    reached = die_after(monkeypatch, 2)
    for _ in range(7):
        with pytest.raises(Stopped):
            run_in(tmp_path / "stopped", config, monkeypatch)
        assert not list((tmp_path / "stopped").rglob("metrics.json"))
    assert run_in(tmp_path / "stopped", config, monkeypatch) == expected
    assert reached == [divmod(i, 5) for i in range(1, 16)]  # each step once


def test_every_epoch_is_told_once(results, tiny, monkeypatch):
    config = make_config("scenes", "an", 0, "smoke", tiny | {"eval_every": 2})
    monkeypatch.setattr(checkpoint, "CHECKPOINT_SECONDS", 0.0)
    told = []

    def on_epoch(progress):
        told.append(progress.history[-1])
        if len(told) == 2:
            raise Stopped

    with pytest.raises(Stopped):
        run.run(config, on_epoch=on_epoch)
    metrics = run.run(config, on_epoch=on_epoch)  # it goes on
    assert told == metrics["history"] and [row["epoch"] for row in told] == [1, 2, 3]
    assert ["mAP" in row for row in told] == [False, True, True]


def test_every_run_on_a_cpu_has_one_thread_unless_the_user_says_otherwise(
    results, tiny, monkeypatch
):
    """With other threads, a run that was stopped went on to other bits."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    torch.set_num_threads(2)
    try:
        metrics = run.run(make_config("scenes", "an", 0, "smoke", tiny))
        assert metrics["machine"]["threads"] == 1 and torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert run.threads_of_a_run() == 3


@pytest.mark.parametrize(
    ("place", "name", "is_repeated"),
    [(checkpoint.Checkpoint, "save", False), (run, "save_tensors", False),
     (run, "save_tensors", True)],
)  # fmt: skip
def test_killed_before_its_first_checkpoint_or_while_it_writes_its_results_it_goes_on(
    place, name, is_repeated, results, tmp_path, tiny, monkeypatch
):
    config = make_config("scenes", "scl", 0, "smoke", tiny)
    expected = run_in(tmp_path / "whole", config, monkeypatch)
    if is_repeated:
        shutil.copytree(tmp_path / "whole", tmp_path / "stopped")

    def die(*arguments):
        raise Stopped

    with monkeypatch.context() as patch:
        patch.setattr(place, name, die)
        with pytest.raises(Stopped):
            run_in(tmp_path / "stopped", config, monkeypatch, force=is_repeated)
    assert (store.Run.of(config).metrics is not None) == is_repeated
    steps, train_step = [], train.train_step
    monkeypatch.setattr(train, "train_step", lambda *given: steps.append(1) or train_step(*given))
    assert run_in(tmp_path / "stopped", config, monkeypatch, force=is_repeated) == expected
    assert len(steps) == (18 if name == "save" else 0)  # the training itself was not lost


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
        while "waits for another process" not in capfd.readouterr().err:
            time.sleep(0.01)
        for file in (tmp_path / "whole").glob("*/*/[!.]*"):
            shutil.copy(file, folder)
    waiting.join()
    assert found[0]["mAP"] == store.Run.of(config).metrics["mAP"]


def test_a_checkpoint_of_other_settings_is_not_continued(results, tmp_path, tiny, monkeypatch):
    config = make_config("scenes", "an", 0, "smoke", tiny)
    expected = run_in(tmp_path / "whole", config, monkeypatch)
    monkeypatch.setenv("SPCL_RESULTS", str(tmp_path / "mixed"))
    folder = store.run_folder(config)
    folder.mkdir(parents=True)
    state = {"config": {"lr": 1e-4}, "progress": {"epoch": 2}}
    torch.save(state, folder / "checkpoint.pt")
    metrics, files = run_in(tmp_path / "mixed", config, monkeypatch)
    assert files.pop("checkpoint.pt.damaged") and (metrics, files) == expected


# --- damaged checkpoints --------------------------------------------------------------------------


NEWEST, PREVIOUS = "checkpoint.pt", "checkpoint.previous.pt"


def state_of(file):
    return torch.load(file, weights_only=True)


def cut(file):
    file.write_bytes(file.read_bytes()[:-1000])


def leave_out_a_weight(file):
    state = state_of(file)
    del state["model"]["head.weight"]
    torch.save(state, file)


@pytest.fixture
def stopped(results, tmp_path, tiny, monkeypatch):
    """The folder of a run that was stopped after 8 of 18 steps; the run; its expected outcome."""
    config = make_config("scenes", "scl", 0, "smoke", tiny)
    expected = run_in(tmp_path / "whole", config, monkeypatch)
    with monkeypatch.context() as patch:
        die_after(patch, 8)
        with pytest.raises(Stopped):
            run_in(tmp_path / "stopped", config, monkeypatch)
    return (
        store.run_folder(config),
        lambda: run_in(tmp_path / "stopped", config, monkeypatch),
        expected,
    )


@pytest.fixture
def first_steps(monkeypatch):
    """The number of steps done before every start of the training."""
    load, starts = checkpoint.Checkpoint.load, []

    def noted(self):
        progress = load(self)
        starts.append(progress.epoch * 6 + progress.step)
        return progress

    monkeypatch.setattr(checkpoint.Checkpoint, "load", noted)
    return starts


def without(outcome, *names):
    return outcome[0], {name: content for name, content in outcome[1].items() if name not in names}


@pytest.mark.parametrize("damage", [cut, leave_out_a_weight])
def test_the_run_goes_on_from_the_checkpoint_before(damage, stopped, first_steps, capsys):
    folder, run_again, expected = stopped
    damage(folder / NEWEST)
    damaged = (folder / NEWEST).read_bytes()
    outcome = run_again()
    assert first_steps == [7]
    aside = f"{NEWEST}.damaged"
    assert (folder / aside).read_bytes() == damaged
    assert without(outcome, aside) == expected
    (said,) = [line for line in capsys.readouterr().out.splitlines() if "is damaged" in line]
    assert f"'{folder / NEWEST}'" in said and f"kept as '{aside}'" in said


def test_the_run_starts_again_if_both_are_damaged(stopped, first_steps):
    folder, run_again, expected = stopped
    leave_out_a_weight(folder / NEWEST)  # the other weights are restored already
    cut(folder / PREVIOUS)
    outcome = run_again()
    assert first_steps == [0]
    assert without(outcome, f"{NEWEST}.damaged", f"{PREVIOUS}.damaged") == expected


def test_killed_between_its_two_renamings_a_save_loses_nothing(stopped, first_steps):
    folder, run_again, expected = stopped
    (folder / NEWEST).replace(folder / PREVIOUS)
    assert run_again() == expected and first_steps == [8]


@pytest.mark.parametrize("more", [{}, {"snapshots": 5}])
def test_a_checkpoint_of_before_a_setting_was_added_or_with_snapshots_counts(
    more, stopped, first_steps
):
    folder, run_again, expected = stopped
    state = state_of(folder / NEWEST)
    del state["config"]["snapshots"]
    state["config"] |= more
    torch.save(state, folder / NEWEST)
    assert run_again() == expected and first_steps == [8]
