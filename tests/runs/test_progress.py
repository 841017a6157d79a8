"""People can see how far a run is, but a notebook does not store this output."""

import csv
import re
import sys
import time
import types

import pytest

from spcl_lib.runs import checkpoint, progress, run, store
from spcl_lib.runs.settings import make_config

ROWS = [{"epoch": 1, "loss": 0.5}, {"epoch": 2, "loss": 0.25, "mAP": 41.26}]


def test_what_was_there_before_a_run_started_does_not_count(tmp_path):
    assert progress.Follower(tmp_path).rows() == []
    progress.write_history(tmp_path, ROWS)
    follower = progress.Follower(tmp_path)
    assert follower.rows() == []  # of the run before
    progress.write_history(tmp_path, ROWS[:1])
    assert [row["epoch"] for row in follower.rows()] == ["1"]
    progress.write_history(tmp_path, ROWS)
    assert [row["epoch"] for row in follower.rows()] == ["1", "2"]


def test_every_epoch_is_told_once_also_if_the_run_fails(tmp_path, capsys):
    config = make_config("scenes", "scl", 3)
    with pytest.raises(KeyError), progress.tell_epochs(tmp_path, progress.line_printer(config)):
        progress.write_history(tmp_path, ROWS[:1])
        progress.write_history(tmp_path, ROWS)
        raise KeyError
    captured = capsys.readouterr()
    first, second = captured.err.splitlines()
    assert re.fullmatch(r"\d\d:\d\d:\d\d scl seed 3: epoch 1 of 24, loss 0\.5000", first)
    assert second.endswith(" scl seed 3: epoch 2 of 24, loss 0.2500, mAP 41.3 %")
    assert captured.out == ""


def test_epochs_are_told_while_the_run_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr(progress, "_LOOK_SECONDS", 0.01)
    said = []  # not capsys: it loses what a thread writes while it is read
    monkeypatch.setattr(progress.tqdm, "write", lambda text, file: said.append(text))
    listener = progress.line_printer(make_config("scenes", "an"))
    with progress.tell_epochs(tmp_path, listener):
        progress.write_history(tmp_path, ROWS[:1])
        while not said:  # without the end of the block
            time.sleep(0.01)
    assert len(said) == 1 and "epoch 1 of 24" in said[0]


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


def test_tensorboard_gets_every_epoch_and_a_resumed_run_replaces_its_own(tmp_path, monkeypatch):
    module = types.SimpleNamespace(SummaryWriter=FakeWriter)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    monkeypatch.setattr(FakeWriter, "made", [])
    for _ in range(2):
        with progress.tell_epochs(tmp_path, progress.tensorboard_writer(tmp_path / "a" / "b")):
            progress.write_history(tmp_path, ROWS)
    for writer in FakeWriter.made:
        assert writer.scalars == [("loss", 0.5, 1), ("loss", 0.25, 2), ("mAP", 41.26, 2)]
        assert writer.start == 1 and writer.flushed == 3
        assert writer.folder == str(tmp_path / "a" / "b")
    assert len(FakeWriter.made) == 2


def test_tensorboard_that_is_missing_is_said_before_the_training(spcl, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    outcome = spcl("run", "--method", "an", "--tensorboard", tmp_path)
    assert outcome.status == 2 and "pip install tensorboard" in outcome.err


class Stopped(BaseException):
    """As sudden as a signal."""


def test_a_run_keeps_its_history_after_every_epoch(results, tiny, monkeypatch, capsys):
    config = make_config("scenes", "an", 0, "smoke", tiny | {"epochs": 4})
    file = store.run_folder(config) / "history.csv"
    seen, predict_scores = [], run.predict_scores

    def rows():
        with open(file, newline="") as handle:
            return [row["epoch"] for row in csv.DictReader(handle)]

    def look(*arguments):
        seen.append(rows())
        if len(seen) == 3:
            raise Stopped
        return predict_scores(*arguments)

    monkeypatch.setattr(run, "predict_scores", look)  # after every epoch
    monkeypatch.setattr(checkpoint, "CHECKPOINT_SECONDS", 0.0)
    with pytest.raises(Stopped):
        run.run(config)
    assert seen == [[], ["1"], ["1", "2"]]
    follower = progress.Follower(file.parent)
    run.run(config)  # it goes on
    assert seen[3:] == [["1", "2"], ["1", "2", "3", "4"]] and len(follower.rows()) == 4
    assert capsys.readouterr().out == ""  # in a notebook it would stay in the page


def test_the_command_tells_its_epochs_on_stderr(spcl, tiny):
    outcome = spcl("run", "--profile", "smoke", "--method", "an", "--seed", 2, **tiny)
    said = outcome.err.replace("\r", "\n")  # among progress bars
    line = r"^\d\d:\d\d:\d\d an seed 2: epoch (\d) of 3, loss \d\.\d{4}"
    epochs = re.findall(line, said, re.MULTILINE)
    assert epochs == ["1", "2", "3"]
    assert "epoch" not in outcome.out
    again = spcl("run", "--profile", "smoke", "--method", "an", "--seed", 2, **tiny)
    assert again.err == ""  # nothing was done


@pytest.mark.parametrize(
    "content",
    [b"", b"\xff", b"epoch,loss\n1,2\n", b"epoch,loss,mAP\n1,x,\n", b"epoch,loss,mAP\n1\n",
     b"epoch,loss,mAP\n1,0.5,\n\"", b"epoch,loss,mAP\nnan,0.5,\n"],
)  # fmt: skip
def test_a_damaged_history_is_not_shown(tmp_path, content):
    follower = progress.Follower(tmp_path)
    (tmp_path / "history.csv").write_bytes(content)
    assert follower.rows() == []
