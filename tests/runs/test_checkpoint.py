"""A damaged checkpoint is put aside; the run goes on from the one before, to the same result."""

import pytest
import torch
from test_resume import Stopped, die_after, run_in

from spcl_lib.runs import checkpoint, store
from spcl_lib.runs.settings import make_config

NEWEST, PREVIOUS = "checkpoint.pt", "checkpoint.previous.pt"


def state_of(file):
    return torch.load(file, weights_only=True)


def steps_of(file):
    progress = state_of(file)["progress"]
    return progress["epoch"] * 6 + progress["step"]


def cut(file):
    file.write_bytes(file.read_bytes()[:-1000])


def flip_a_bit_of_the_weights(file):
    content = bytearray(file.read_bytes())
    weights = state_of(file)["model"]["head.weight"].numpy().tobytes()
    content[content.index(weights) + 7] ^= 64
    file.write_bytes(content)


def leave_out_a_weight(file):
    state = state_of(file)
    del state["model"]["head.weight"]
    torch.save(state, file)


def change_a_shape(file):
    state = state_of(file)
    state["method"]["bank.heatmaps"] = torch.zeros(2, 2, 7, 7)
    torch.save(state, file)


DAMAGES = [cut, flip_a_bit_of_the_weights, leave_out_a_weight, change_a_shape]


@pytest.fixture
def stopped(results, tmp_path, tiny, monkeypatch):
    """The folder of a run that was stopped after 8 of 18 steps; the run; its expected outcome."""
    config = make_config("scenes", "scl", 0, "smoke", tiny)
    expected = run_in(tmp_path / "whole", config, monkeypatch)
    with monkeypatch.context() as patch:
        die_after(patch, 8)
        with pytest.raises(Stopped):
            run_in(tmp_path / "stopped", config, monkeypatch)
    folder = store.run_folder(config)
    assert (steps_of(folder / NEWEST), steps_of(folder / PREVIOUS)) == (8, 7)
    return folder, lambda: run_in(tmp_path / "stopped", config, monkeypatch), expected


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


@pytest.mark.parametrize("damage", DAMAGES)
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


def test_a_checkpoint_of_before_a_setting_was_added_counts(stopped, first_steps):
    folder, run_again, expected = stopped
    state = state_of(folder / NEWEST)
    del state["config"]["snapshots"]
    torch.save(state, folder / NEWEST)
    assert run_again() == expected and first_steps == [8]
