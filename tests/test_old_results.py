"""Results of earlier commits stay readable; `old/make.py` made them with the code of these commits.

The formats changed at these commits: settings were added, a method's state got more tables, the
folders of runs got other names, and snapshots and the scores of the report came.
"""

import importlib.util
import math
import tarfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from spcl_lib import Predictor
from spcl_lib.analysis.intervals import summary
from spcl_lib.analysis.runs import load_runs, table_of
from spcl_lib.config import RunConfig
from spcl_lib.methods import Method
from spcl_lib.runs import network
from spcl_lib.runs.run import run
from spcl_lib.runs.snapshots import load_snapshots
from spcl_lib.runs.store import Run, run_folder, write_summary
from spcl_lib.system import paths
from spcl_lib.train import Progress, make_optimizer

OLD = Path(__file__).parent / "old"
FIRST = "4ace774"  # its folders of runs had other names
COMMITS = (FIRST, "b2b796e", "ec318b1", "34f83f4")


def unpack(name, folder):
    with tarfile.open(OLD / f"{name}.tar.xz") as tar:
        tar.extractall(folder, filter="data")


@pytest.fixture(params=COMMITS)
def commit(request, results, monkeypatch):
    """Puts the results of a commit where results are."""
    spec = importlib.util.spec_from_file_location("make", OLD / "make.py")
    make = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(make)
    monkeypatch.setattr(network, "build_backbone", make.tiny_backbone)
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
        assert len(load_snapshots(folder)) == 3


def test_a_stopped_run_goes_on(commit, results):
    (file,) = results.rglob("checkpoint.pt")
    state = torch.load(file, weights_only=True)
    config = RunConfig.from_flat(state["config"])
    progress = Progress(**state["progress"])
    assert progress.epoch == len(progress.history) == 1
    method = Method(config.method, 6, 12, config.settings, labels=torch.zeros(6, 12))
    method.load_state_dict(state["method"])
    model = network.build_network(config, 12)
    model.load_state_dict(state["model"])
    optimizer = make_optimizer(model, config.lr, 1.0, 0.0, method.parameters())
    optimizer.load_state_dict(state["optimizer"])

    if file.parent != run_folder(config):  # settings that are gone were part of its name
        file.parent.rename(run_folder(config))
    metrics = run(config)
    assert metrics["history"][0] == progress.history[0]  # it does not start again
    assert len(metrics["history"]) == 3 and math.isfinite(metrics["history"][-1]["loss"])


def test_references_are_read_and_put_into_words(tmp_path, monkeypatch):
    unpack("reference", tmp_path)
    monkeypatch.setattr(paths, "reference", lambda: tmp_path)
    runs = load_runs("reference", "scenes", "cpu")
    assert len(runs) == 21 and summary(table_of(runs))["share"].notna().all()
