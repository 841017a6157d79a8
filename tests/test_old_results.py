"""Results of earlier commits stay readable; the code of these commits made them.

The formats changed at these commits: settings were added, a method's state got more tables, the
folders of runs got other names, and snapshots and the scores of the report came. An archive has a
finished run of EN + SCL, and a checkpoint. `git show a37ef73:tests/old/make.py` makes another one.
"""

import math
import tarfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from spcl_lib import Predictor
from spcl_lib.analysis.intervals import summary
from spcl_lib.analysis.runs import load_runs, table_of
from spcl_lib.config import RunConfig
from spcl_lib.runs import network
from spcl_lib.runs.run import run
from spcl_lib.runs.snapshots import load_trace
from spcl_lib.runs.store import Run, run_folder, write_summary
from spcl_lib.system import paths

OLD = Path(__file__).parent / "old"
FIRST = "4ace774"  # its folders of runs had other names
COMMITS = (FIRST, "b2b796e", "ec318b1", "34f83f4")


def unpack(name, folder):
    with tarfile.open(OLD / f"{name}.tar.xz") as tar:
        tar.extractall(folder, filter="data")


def tiny_backbone(*_):
    """So small that its weights need no place in the repository."""
    pool = nn.AvgPool2d(8, ceil_mode=True)  # takes images of a single pixel, as real networks do
    return nn.Sequential(pool, nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ReLU()), 4


@pytest.fixture(params=COMMITS)
def commit(request, results, monkeypatch):
    """Puts the results of a commit where results are."""
    monkeypatch.setattr(network, "build_backbone", tiny_backbone)
    unpack(request.param, results)
    return request.param


def test_a_finished_run_is_found_read_and_shown(commit, results):
    (file,) = results.rglob("metrics.json")
    config, metrics = Run.find(file.parent).config, Run.find(file.parent).metrics
    assert config.method == "en_scl" and config.epochs == len(metrics["history"]) == 3
    if file.parent != run_folder(config):  # settings that are gone were part of its name
        file.parent.rename(run_folder(config))
    folder = run_folder(config)
    assert Run.of(config).metrics == metrics == run(config)  # it is not trained again
    loaded = Run.of(config).load()
    for name, tensor in load_file(folder / "weights.safetensors").items():
        assert torch.equal(loaded.model.state_dict()[name].to(tensor.dtype), tensor)
    stored = load_file(folder / "bank.safetensors")
    assert torch.equal(loaded.bank.heatmaps, stored["heatmaps"]) and loaded.bank.seen.any()
    assert write_summary().read_text().count("scenes,smoke,en_scl,0") == 1
    scores = Predictor.load(folder)(torch.zeros(2, 3, 32, 32, dtype=torch.uint8))
    assert scores.shape == (2, 12)
    if commit != FIRST:
        assert list(load_trace(config).epochs) == [1, 2, 3]


def test_a_stopped_run_starts_again_with_a_word(commit, results, capsys):
    """The state of a method has changed since; that of a finished run is read."""
    (file,) = results.rglob("checkpoint.pt")
    config = RunConfig.from_flat(torch.load(file, weights_only=True)["config"])
    if file.parent != run_folder(config):
        file.parent.rename(run_folder(config))
    metrics = run(config)
    assert len(metrics["history"]) == 3 and math.isfinite(metrics["history"][-1]["loss"])
    said = capsys.readouterr().out
    assert "checkpoint.pt' is damaged or of another version" in said


def test_references_are_read_and_put_into_words(tmp_path, monkeypatch):
    unpack("reference", tmp_path)
    monkeypatch.setattr(paths, "reference", lambda: tmp_path)
    runs = load_runs("reference", "scenes", "cpu")
    assert len(runs) == 21 and summary(table_of(runs))["share"].notna().all()
