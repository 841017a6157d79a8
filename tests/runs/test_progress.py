"""People can see how far a run is, but a notebook does not store this output."""

import csv
import re
import sys
import types

import pytest

from spcl_lib.runs import checkpoint, progress, run, store
from spcl_lib.runs.settings import make_config
from spcl_lib.train import Progress

ROWS = [{"epoch": 1, "loss": 0.5}, {"epoch": 2, "loss": 0.25, "mAP": 41.26}]


def tell(listener):
    for count in (1, 2):
        listener(Progress(epoch=count, history=ROWS[:count]))


def test_a_line_says_which_epoch_of_which_run_has_ended(capsys):
    tell(progress.line_printer(make_config("scenes", "scl", 3)))
    captured = capsys.readouterr()
    first, second = captured.err.splitlines()
    assert re.fullmatch(r"\d\d:\d\d:\d\d scl seed 3: epoch 1 of 24, loss 0\.5000", first)
    assert second.endswith(" scl seed 3: epoch 2 of 24, loss 0.2500, mAP 41.3 %")
    assert captured.out == ""


class FakeWriter:
    """TensorBoard's, as far as it is used."""

    made = []

    def __init__(self, folder, purge_step):
        self.folder, self.start, self.scalars = folder, purge_step, []
        FakeWriter.made.append(self)

    def add_scalar(self, *scalar):
        self.scalars.append(scalar)

    def flush(self):
        self.flushed = len(self.scalars)


def test_tensorboard_gets_every_epoch(tmp_path, monkeypatch):
    module = types.SimpleNamespace(SummaryWriter=FakeWriter)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    monkeypatch.setattr(FakeWriter, "made", [])
    tell(progress.tensorboard_writer(tmp_path / "a" / "b"))
    (writer,) = FakeWriter.made
    assert sorted(writer.scalars) == [("loss", 0.25, 2), ("loss", 0.5, 1), ("mAP", 41.26, 2)]
    assert writer.start == 1 and writer.flushed == 3 and writer.folder == str(tmp_path / "a" / "b")


def test_tensorboard_that_is_missing_is_said_before_the_training(spcl, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    outcome = spcl("run", "--method", "an", "--tensorboard", tmp_path)
    assert outcome.status == 2 and "pip install tensorboard" in outcome.err


class Stopped(BaseException):
    """As sudden as a signal."""


def test_every_step_and_epoch_is_told_once_and_the_history_is_kept(
    results, tiny, monkeypatch, capsys
):
    config = make_config("scenes", "an", 0, "smoke", tiny | {"eval_every": 2})  # 6 steps, 3 epochs
    file = store.run_folder(config) / "history.csv"
    monkeypatch.setattr(checkpoint, "CHECKPOINT_SECONDS", 0.0)
    steps, told, kept = [], [], []

    def on_step(progress):
        steps.append((progress.epoch, progress.step))

    def on_epoch(progress):
        told.append(progress.history[-1])
        with open(file, newline="") as handle:
            kept.append([int(row["epoch"]) for row in csv.DictReader(handle)])
        if len(told) == 2:
            raise Stopped

    with pytest.raises(Stopped):
        run.run(config, on_step=on_step, on_epoch=on_epoch)
    metrics = run.run(config, on_step=on_step, on_epoch=on_epoch)  # it goes on
    assert steps == [divmod(step, 6) for step in range(1, 19)]
    assert told == metrics["history"] and kept == [[1], [1, 2], [1, 2, 3]]
    assert ["mAP" in row for row in told] == [False, True, True]  # the last row has the final one
    assert capsys.readouterr().out == ""  # in a notebook it would stay in the page
    run.run(config, on_step=on_step, on_epoch=on_epoch)
    assert len(steps) == 18 and len(told) == 3  # nothing was done


def test_the_command_tells_its_epochs_on_stderr(spcl, tiny):
    arguments = ("run", "--profile", "smoke", "--method", "an", "--seed", 2)
    outcome = spcl(*arguments, **tiny)
    said = outcome.err.replace("\r", "\n")  # among progress bars
    line = r"^\d\d:\d\d:\d\d an seed 2: epoch (\d) of 3, loss \d\.\d{4}"
    assert re.findall(line, said, re.MULTILINE) == ["1", "2", "3"]
    assert "epoch" not in outcome.out
    assert spcl(*arguments, **tiny).err == ""  # nothing was done
