"""`python -m spcl_lib run`: the files that it writes, and one clear line for every mistake."""

import csv
import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from PIL import Image
from refusals import full_disk_for, no_file_above

from spcl_lib.config import RunConfig
from spcl_lib.evaluate import mean_average_precision, predict_scores
from spcl_lib.runs import run, store
from spcl_lib.runs.network import build_network
from spcl_lib.runs.splits import load_splits
from spcl_lib.system import paths
from spcl_lib.system.weights import load_tensors

RUN = ("run", "--dataset", "scenes", "--profile", "smoke")
# The tiny VOC with a network from random weights: only the way of the data matters.
VOC = ("run", "--dataset", "voc2007", "--profile", "smoke", "--method", "an")
UNTRAINED = {"backbone": "small_resnet", "weights": "none", "image_side": 16, "crop_side": 16,
             "eval_side": 16, "epochs": 1}  # fmt: skip


def files_in(folder):
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


def metrics_in(results):
    (file,) = results.glob("*/*/metrics.json")
    return json.loads(file.read_text())


def assert_mistake(outcome, results, *said):
    """Status 2, one line on stderr that says all of `said`, and no results."""
    assert outcome.status == 2
    (line,) = outcome.err.splitlines()
    assert line.startswith("spcl: error: ")
    for text in said:
        assert text in line
    assert outcome.out == ""
    assert all(name.endswith("/.lock") for name in files_in(results))


# --- what a run writes ----------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["an", "en_scl"])
def test_a_run_writes_its_folder_and_a_row_of_the_summary(method, spcl, results, tiny):
    outcome = spcl(*RUN, "--method", method, "--seed", 3, **tiny)
    assert outcome.status == 0
    metrics = metrics_in(results)
    assert f"mAP {metrics['mAP']:.2f} %" in outcome.out and "metrics.json" in outcome.out
    assert "the number means nothing" in outcome.out  # the profile is smoke

    (folder,) = results.glob("scenes-smoke/*")
    assert folder.name.startswith(f"{method}-seed3-")
    tensors = {"weights", "scores"} | ({"bank"} if method == "en_scl" else set())
    expected = {".lock", "config.json", "metrics.json"}
    expected |= {f"{name}.safetensors" for name in tensors}
    assert set(files_in(folder)) == expected  # no checkpoint is left, nothing temporary

    own = store.Run.find(folder)
    config, root = own.config, own.data_root
    assert config.method == method and config.seed == 3 and config.epochs == 3
    assert root is None and metrics["config"] == config.flat()
    for key in ("spcl", "commit", "python", "torch", "torchvision", "device", "threads"):
        assert key in metrics["machine"]
    assert 0 < metrics["mAP"] < 100
    assert len(metrics["AP"]) == 12 and metrics["classes_without_positive"] == 0
    for group in ("at_0.5", "top_3"):
        assert all(0 <= value <= 100 for value in metrics[group].values())
    assert metrics["train_seconds"] > 0 and metrics["wall_seconds"] >= metrics["train_seconds"]
    assert [row["epoch"] for row in metrics["history"]] == [1, 2, 3]
    assert all(math.isfinite(row["loss"]) for row in metrics["history"])
    assert metrics["history"][-1]["mAP"] == metrics["mAP"]

    with open(results / "summary.csv", newline="") as file:
        (row,) = csv.DictReader(file)
    columns = "dataset,profile,method,seed,mAP,epochs,train_seconds".split(",")
    assert list(row)[:7] == columns
    assert [row[c] for c in columns] == [str(metrics[c]) for c in columns]


def test_the_weights_that_are_kept_are_the_ones_that_were_measured(spcl, results, tiny):
    spcl(*RUN, "--method", "scl", **tiny)
    metrics = metrics_in(results)
    config = RunConfig.from_flat(metrics["config"])
    model = build_network(config, 12)
    (file,) = results.rglob("weights.safetensors")
    model.load_state_dict(load_tensors(file))
    _, report = load_splits(config, None)
    model.to(memory_format=torch.channels_last)
    (scores,) = predict_scores(model, report.images, config.eval_side, [model.pooling])
    assert mean_average_precision(scores, report.labels) == pytest.approx(metrics["mAP"])


def test_a_finished_run_is_not_done_again_unless_forced(spcl, results, tiny):
    first = spcl(*RUN, "--method", "an", **tiny)
    (file,) = results.rglob("metrics.json")
    before = file.stat().st_mtime_ns
    again = spcl(*RUN, "--method", "an", **tiny)
    assert again.status == 0 and again.out == first.out
    assert file.stat().st_mtime_ns == before
    assert spcl(*RUN, "--method", "an", "--force", **tiny).status == 0
    assert file.stat().st_mtime_ns > before


def content_of(folder):
    """The files of a run's folder, without its lock."""
    return {name: (folder / name).read_bytes() for name in files_in(folder) if name != ".lock"}


def test_a_repeat_on_a_full_disk_leaves_the_run_as_it_was(spcl, results, tiny):
    spcl(*RUN, "--method", "scl", **tiny)
    (folder,) = results.glob("scenes-smoke/*")
    before = content_of(folder)
    with no_file_above(100_000):  # enough for all but the checkpoint
        outcome = spcl(*RUN, "--method", "scl", "--force", **tiny)
    assert outcome.status == 2 and "File too large" in outcome.err
    now = content_of(folder)
    assert {name: now.get(name) for name in before} == before
    assert spcl(*RUN, "--method", "scl", **tiny).out  # it still counts as finished
    assert content_of(folder)["metrics.json"] == before["metrics.json"]
    assert spcl(*RUN, "--method", "scl", "--force", **tiny).status == 0
    again = content_of(folder)
    assert again.keys() == before.keys()  # nothing of the repeat is left beside it
    assert again["weights.safetensors"] == before["weights.safetensors"]


@pytest.mark.parametrize("place", ["in training", "in the replacement"])
def test_a_repeat_that_is_killed_loses_nothing_and_goes_on(place, spcl, results, tiny, monkeypatch):
    spcl(*RUN, "--method", "an", **tiny)
    (folder,) = results.glob("scenes-smoke/*")
    before = content_of(folder)

    class Killed(BaseException):
        pass

    with monkeypatch.context() as patch:
        if place == "in training":
            patch.setattr(run, "choose_threshold", lambda *given: (_ for _ in ()).throw(Killed))
        else:
            replace, moved = os.replace, []

            def replace_two(source, target):
                if Path(source).parent.name == "repeat" and Path(target).parent == folder:
                    moved.append(target)
                    if len(moved) == 3:
                        raise Killed
                replace(source, target)

            patch.setattr(run.os, "replace", replace_two)
        with pytest.raises(Killed):
            spcl(*RUN, "--method", "an", "--force", **tiny)
    if place == "in training":
        now = content_of(folder)
        assert {name: now[name] for name in before} == before
        trained = []
        monkeypatch.setattr(run, "train", lambda *given: trained.append(given[6]) or given[6])
        assert spcl(*RUN, "--method", "an", "--force", **tiny).status == 0
        assert [progress.epoch for progress in trained] == [tiny["epochs"]]  # it had been trained
    else:
        assert not (folder / "metrics.json").exists()
        monkeypatch.setattr(run, "train", lambda *given: pytest.fail("it was trained again"))
        assert spcl(*RUN, "--method", "an", **tiny).status == 0
    after = content_of(folder)
    assert after.keys() == before.keys()
    assert after["weights.safetensors"] == before["weights.safetensors"]


def test_another_configuration_is_another_run(spcl, results, tiny):
    for changes in ({}, {"epochs": 2}, {"lr": 1e-3}):
        spcl(*RUN, "--method", "an", **(tiny | changes))
    spcl(*RUN, "--method", "an", "--seed", 1, **tiny)
    folders = [p.parent.name for p in results.rglob("metrics.json")]
    assert len(set(folders)) == 4
    with open(results / "summary.csv", newline="") as file:
        assert len(list(csv.DictReader(file))) == 4


def test_photographs_in_the_layout_of_voc_are_trained_on(spcl, results, voc):
    outcome = spcl(*VOC, "--data-root", voc, **UNTRAINED)
    assert outcome.status == 0
    metrics = metrics_in(results)
    assert (metrics["train_images"], metrics["report_images"]) == (6, 4)
    assert metrics["classes_without_positive"] > 0
    assert None in metrics["AP"].values()


def test_real_photographs_with_the_pretrained_network(spcl, results, real_data):
    voc2007 = ("run", "--dataset", "voc2007", "--profile", "smoke", "--data-root", real_data)
    few = {"train_images": 24, "eval_images": 24, "batch": 8, "epochs": 2}
    outcome = spcl(*voc2007, "--method", "scl", **few)
    assert outcome.status == 0, outcome.err
    metrics = metrics_in(results)
    assert (metrics["train_images"], metrics["report_images"]) == (24, 24)
    assert metrics["config"]["backbone"] == "mobilenet_v2"
    assert 0 < metrics["mAP"] <= 100


def test_a_folder_that_is_named_is_what_is_trained_on(spcl, results, tmp_path):
    """`run --data-root photos` without --dataset trained on drawn scenes."""
    for name in ("cat", "dog"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for i in range(6):
            Image.new("RGB", (20, 20), (40 * i, 0, 0)).save(tmp_path / f"photos/{name}/{i}.png")
    outcome = spcl("run", "--data-root", tmp_path / "photos", "--profile", "smoke", **UNTRAINED)
    assert outcome.status == 0, outcome.err
    metrics = metrics_in(results)
    assert (metrics["dataset"], metrics["classes"]) == ("folder", ["cat", "dog"])


# --- mistakes in the command ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "COMMAND"),
        (("rum",), "rum"),
        (("run", "--method"), "--method"),
        (("run", "--method", "an", "--sead", "1"), "--sead"),
        (("run", "--method", "an", "--seed", "one"), "one"),
        (("run", "--method", "an", "--seed", "-1"), "seed"),
        (("run", "--method", "sccl"), "Did you mean 'scl'? Valid: an, cl, scl"),
        (("run", "--method", "an", "--dataset", "scene"), "Did you mean 'scenes'?"),
        (("run", "--method", "an", "--profile", "smok"), "Did you mean 'smoke'?"),
        (("run", "--method", "an", "--set", "momentun=0.5"), "Did you mean 'momentum'?"),
        (("run", "--method", "an", "--set", "epochs=many"), "'epochs' must be of type int"),
        (("run", "--method", "an", "--set", "momentum=1.5"), "'momentum' must be in"),
        (("run", "--method", "an", "--set", "distance=l3"), "Valid: bce, l1, l2"),
        (("reproduce", "--jobs", "0"), "at least 1"),
        (("reproduce", "--all", "--only", "an"), "--only does not go with it"),
    ],
)
def test_a_mistake_in_the_command_is_one_line(arguments, said, spcl, results):
    assert_mistake(spcl(*arguments), results, said)


# The real command, once; afterwards it tells what it has imported.
SHELL = """
import atexit, runpy, sys
atexit.register(lambda: print(*sys.modules))
sys.argv[1:] = "run --dataset voc2007 --method an --data-root nowhere".split()
runpy.run_module("spcl_lib", run_name="__main__", alter_sys=True)
"""


def test_from_a_shell_a_mistake_is_one_line_and_plots_and_notebooks_are_not_loaded(tmp_path):
    """It runs where only torch, torchvision, numpy and pillow (and small tools) are installed."""
    environment = os.environ | {"SPCL_RESULTS": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", SHELL], cwd=paths.project(),
                          env=environment, capture_output=True, text=True)  # fmt: skip
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("spcl: error: data root '") and "nowhere' does not exist" in line
    loaded = {name.partition(".")[0] for name in done.stdout.split()}
    assert {"spcl_lib", "torch"} <= loaded
    assert not loaded & {"matplotlib", "seaborn", "pandas", "papermill", "nbformat", "nbclient",
                         "anywidget", "IPython", "pycocotools", "sklearn"}  # fmt: skip


# --- mistakes in the data -------------------------------------------------------------------------


def test_a_missing_data_root_is_named_with_the_ways_to_give_it(spcl, results, tmp_path):
    outcome = spcl(*VOC, "--data-root", tmp_path / "nowhere")
    assert_mistake(outcome, results, str(tmp_path / "nowhere"), "--data-root", "SPCL_DATA")


def test_a_data_root_without_the_data_set_is_named(spcl, results, tmp_path):
    assert_mistake(spcl(*VOC, "--data-root", tmp_path), results, str(tmp_path / "VOCdevkit"))


def test_missing_weights_are_named(spcl, results, tmp_path, voc, tiny):
    file = tmp_path / "weights.pth"
    outcome = spcl(*RUN, "--method", "an", **(tiny | {"weights": file}))
    assert_mistake(outcome, results, str(file), "--set weights=FILE")


@pytest.mark.parametrize("fault", ["missing", "truncated"])
def test_an_unreadable_image_is_named(fault, spcl, results, voc):
    file = voc / "VOCdevkit" / "VOC2007" / "JPEGImages" / "000005.jpg"
    intact = file.read_bytes()
    file.unlink()
    if fault == "truncated":
        file.write_bytes(intact[:-300])
    outcome = spcl(*VOC, "--data-root", voc, **UNTRAINED)
    assert outcome.status == 2 and "Traceback" not in outcome.err
    last = outcome.err.replace("\r", "\n").splitlines()[-1]  # a progress bar may precede it
    assert last.startswith("spcl: error: 1 of 6 images of voc2007-train") and str(file) in last
    assert all(name.endswith("/.lock") for name in files_in(results))


def test_a_mistake_does_not_cost_the_results_that_were_there(spcl, results, voc, tmp_path):
    assert spcl(*VOC, "--data-root", voc, **UNTRAINED).status == 0
    before = {name: (results / name).read_bytes() for name in files_in(results)}
    outcome = spcl(*VOC, "--force", "--data-root", tmp_path / "nowhere", **UNTRAINED)
    assert outcome.status == 2
    assert {name: (results / name).read_bytes() for name in files_in(results)} == before


def test_a_run_is_evaluated_where_its_data_are_now(spcl, results, voc):
    """`evaluate` took no --data-root, which its own message told people to give."""
    assert spcl(*VOC, "--data-root", voc, **UNTRAINED).status == 0
    moved = voc.rename(voc.with_name("moved"))
    assert "--data-root" in spcl("evaluate", "--run", "results").err
    assert spcl("evaluate", "--run", "results", "--data-root", moved).status == 0


# --- a system that refuses ------------------------------------------------------------------------


def names_in(folder):
    return {Path(name).name for name in files_in(folder)}


def test_a_full_disk_in_the_middle_is_one_message_and_costs_no_more_than_a_checkpoint(
    spcl, results, tiny
):
    with no_file_above(100_000):  # enough for all but the checkpoint, and then the weights
        outcome = spcl(*RUN, "--method", "an", **tiny)
    assert outcome.status == 2 and "Traceback" not in outcome.err
    assert outcome.err.count("spcl: error: ") == 1
    last = outcome.err.splitlines()[-1]
    (folder,) = results.glob("scenes-smoke/*")
    assert last.startswith(f"spcl: error: '{folder / 'checkpoint.pt'}' cannot be written: ")
    assert "File too large; SPCL_RESULTS=DIR" in last
    assert names_in(results) == {".lock", "config.json"}
    assert spcl(*RUN, "--method", "an", **tiny).status == 0


@pytest.mark.parametrize("name", ["metrics.json", "summary.csv"])
def test_a_disk_that_is_full_at_the_very_end_is_one_message_and_the_training_is_kept(
    name, spcl, results, tiny, monkeypatch
):
    with monkeypatch.context() as patch:
        full_disk_for(patch, name)
        outcome = spcl(*RUN, "--method", "an", **tiny)
    assert outcome.status == 2 and "Traceback" not in outcome.err
    last = outcome.err.splitlines()[-1]
    assert last.startswith("spcl: error: '") and "No space left on device" in last
    left = names_in(results)
    assert name not in left and not any(file.endswith(".tmp") for file in left)
    monkeypatch.setattr(run, "train", lambda *given: given[6])  # no step is needed
    assert spcl(*RUN, "--method", "an", **tiny).status == 0
    assert {"metrics.json", "summary.csv"} <= names_in(results)




# --- other ends -----------------------------------------------------------------------------------


def test_a_training_that_diverges_says_so_without_a_traceback(spcl, results, tiny):
    outcome = spcl(*RUN, "--method", "an", **(tiny | {"lr": 1e30, "amp": "off"}))
    assert outcome.status == 2 and "Traceback" not in outcome.err
    last = outcome.err.replace("\r", "\n").splitlines()[-1]
    assert last.startswith("spcl: error: the loss became nan") and "--set lr=" in last
    assert not list(results.rglob("metrics.json"))


def test_ctrl_c_says_how_to_go_on(spcl, tiny, monkeypatch):
    def interrupted(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(run, "train", interrupted)
    outcome = spcl(*RUN, "--method", "an", **tiny)
    assert outcome.status == 130
    assert outcome.err.splitlines()[-1].startswith("spcl: stopped; the same command goes on")


def test_sigterm_during_a_run_says_how_to_go_on(results, tiny, own_kernels):
    settings = [part for k, v in tiny.items() for part in ("--set", f"{k}={v}")]
    command = [sys.executable, "-m", "spcl_lib", *RUN, "--method", "an", *settings]
    command += ["--set", "epochs=2000"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        while not list(results.rglob("config.json")):
            assert process.poll() is None
            time.sleep(0.01)
        process.terminate()
        last = process.stderr.read().replace("\r", "\n").splitlines()[-1]
    assert process.returncode == 128 + signal.SIGTERM
    assert last.startswith("spcl: stopped; the same command goes on from the last checkpoint")
