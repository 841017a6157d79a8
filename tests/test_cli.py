"""`python -m spcl_lib run`: the files that it writes, and one clear line for every mistake."""

import csv
import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from refusals import full_disk_for, no_file_above
from small_folder import set_options

from spcl_lib.runs import run, store
from spcl_lib.runs.settings import make_config
from spcl_lib.system import paths

REAL = os.environ.get("SPCL_DATA")  # before the tests get folders of their own
RUN = ("run", "--dataset", "scenes", "--profile", "smoke")


def files_in(folder):
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


def content_of(folder):
    """The files below a folder, without locks."""
    return {n: (folder / n).read_bytes() for n in files_in(folder) if not n.endswith(".lock")}


def metrics_in(results):
    (file,) = results.glob("*/*/metrics.json")
    return json.loads(file.read_text())


# --- what a run writes ----------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["an", "en_scl"])
def test_a_run_writes_its_folder_and_a_row_of_the_summary(method, spcl, results, tiny):
    outcome = spcl(*RUN, "--method", method, "--seed", 3, **tiny)
    assert outcome.status == 0
    metrics = metrics_in(results)
    assert f"mAP {metrics['mAP']:.2f} %" in outcome.out and "metrics.json" in outcome.out
    said = re.findall(r"an seed 3: epoch (\d) of 3, loss \d", outcome.err.replace("\r", "\n"))
    assert said == (["1", "2", "3"] if method == "an" else [])  # among progress bars
    assert "the number means nothing" in outcome.out  # the profile is smoke

    (folder,) = results.glob("scenes-smoke/*")
    assert folder.name.startswith(f"{method}-seed3-")
    files = {".lock", "config.json", "metrics.json", "weights.safetensors", "scores.safetensors"}
    bank = {"bank.safetensors"} if method == "en_scl" else set()
    assert set(files_in(folder)) == files | bank  # no checkpoint is left, nothing temporary

    own = store.Run.find(folder)
    assert own.load().report.ids[0] == "val-00000"  # of report=val, never of the final data
    assert own.data_root is None and metrics["config"] == own.config.flat()
    for key in ("spcl", "commit", "python", "torch", "torchvision", "device", "threads"):
        assert key in metrics["machine"]
    assert 0 < metrics["mAP"] < 100 and re.fullmatch("[0-9a-f]{8}", metrics["pretrained"])
    assert len(metrics["AP"]) == 12 and metrics["classes_without_positive"] == 0
    assert metrics["train_seconds"] > 0 and metrics["wall_seconds"] >= metrics["train_seconds"]
    assert all(math.isfinite(row["loss"]) for row in metrics["history"])
    assert metrics["history"][-1]["mAP"] == metrics["mAP"]

    with open(results / "summary.csv", newline="") as file:
        (row,) = csv.DictReader(file)
    columns = "dataset,profile,method,seed,mAP,epochs,train_seconds".split(",")
    assert list(row)[:7] == columns
    assert [row[c] for c in columns] == [str(metrics[c]) for c in columns]


def test_of_several_runs_one_that_fails_does_not_keep_the_others_waiting(spcl, results, tiny):
    lost = store.Run.of(make_config("voc2007", "an", 0, "smoke"), results / "no data")
    sound = store.Run.of(make_config("scenes", "an", 0, "smoke", tiny))
    outcome = spcl("run", "--config", lost.write_config(), sound.write_config())
    assert outcome.status == 2 and "data root" in outcome.err and sound.metrics


def test_a_finished_run_is_not_done_again_unless_forced(spcl, results, tiny):
    first = spcl(*RUN, "--method", "an", **tiny)
    (file,) = results.rglob("metrics.json")
    before = file.stat().st_mtime_ns
    again = spcl(*RUN, "--method", "an", **tiny)
    assert again.status == 0 and again.out == first.out
    assert file.stat().st_mtime_ns == before
    assert spcl(*RUN, "--method", "an", "--force", **tiny).status == 0
    assert file.stat().st_mtime_ns > before


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
    assert spcl(*RUN, "--method", "scl", "--force", **tiny).status == 0
    again = content_of(folder)
    assert again.keys() == before.keys()  # nothing of the repeat is left beside it
    assert again["weights.safetensors"] == before["weights.safetensors"]


def test_a_repeat_that_is_killed_while_it_replaces_the_run_goes_on_with_it(
    spcl, results, tiny, monkeypatch
):
    spcl(*RUN, "--method", "an", **tiny)
    (folder,) = results.glob("scenes-smoke/*")
    before, replace = content_of(folder), os.replace

    def killed(source, target):
        if Path(source) == folder / store.REPEAT / "weights.safetensors":
            raise KeyboardInterrupt
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", killed)
        outcome = spcl(*RUN, "--method", "an", "--force", **tiny)  # as after Ctrl-C
    assert outcome.status == 130
    assert outcome.err.splitlines()[-1].startswith("spcl: stopped; the same command goes on")
    assert not (folder / "metrics.json").exists()
    monkeypatch.setattr(run, "train", lambda *given: pytest.fail("it was trained again"))
    assert spcl(*RUN, "--method", "an", **tiny).status == 0
    after = content_of(folder)
    assert after.keys() == before.keys()
    assert after["weights.safetensors"] == before["weights.safetensors"]


@pytest.mark.skipif(not REAL, reason="needs the real data: set SPCL_DATA to their folder")
def test_real_photographs_with_the_pretrained_network(spcl, results):
    voc2007 = ("run", "--dataset", "voc2007", "--profile", "smoke", "--data-root", REAL)
    few = {"train_images": 24, "eval_images": 24, "batch": 8, "epochs": 2}
    outcome = spcl(*voc2007, "--method", "scl", **few)
    assert outcome.status == 0, outcome.err
    metrics = metrics_in(results)
    assert (metrics["train_images"], metrics["report_images"]) == (24, 24)
    assert 0 < metrics["mAP"] <= 100


# --- mistakes in the command ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "COMMAND"),
        (("run", "--method", "an", "--sead", "1"), "'--sead'. Did you mean '--seed'? Valid: --dat"),
        (("run", "--config", "config.json", "--set", "lr=1"), "--set does not go with it"),
        (("run", "--config", "config.json", "--seed", "0"), "--seed does not go with it"),
        (("reproduce", "--jobs", "0"), "at least 1; got 0"),
        (("reproduce", "--all", "--only", "an"), "--only does not go with it"),
        (("reproduce", "--league", "--only", "scll"), "Did you mean 'scl'"),
        (("reproduce", "--league", "--profile", "cpu"), "--profile does not go with it"),
    ],
)
def test_a_mistake_in_the_command_is_one_line(arguments, said, spcl, results):
    outcome = spcl(*arguments)
    assert (outcome.status, outcome.out) == (2, "") and not results.exists()
    (line,) = outcome.err.splitlines()
    assert line.startswith("spcl: error: ") and said in line


# The real command, once; afterwards it tells what it has imported.
SHELL = """
import atexit, runpy, sys
atexit.register(lambda: print(*sys.modules, "a folder's name that is no text: \\udce9"))
sys.argv[1:] = "run --dataset voc2007 --method an --data-root nowhere".split()
runpy.run_module("spcl_lib", run_name="__main__", alter_sys=True)
"""


def test_from_a_shell_a_mistake_is_one_line_and_slow_packages_are_not_loaded(tmp_path):
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
                         "anywidget", "IPython", "pycocotools", "sklearn",
                         "torchvision"}  # fmt: skip


# --- a system that refuses ------------------------------------------------------------------------


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
    assert not [file for file in files_in(results) if file.endswith((name, ".tmp"))]
    monkeypatch.setattr(run, "train", lambda *given: given[6])  # no step is needed
    assert spcl(*RUN, "--method", "an", **tiny).status == 0
    assert metrics_in(results) and (results / "summary.csv").exists()


def test_sigterm_during_a_run_says_how_to_go_on(results, tiny, own_kernels):
    options = set_options(tiny | {"epochs": 2000})
    command = [sys.executable, "-m", "spcl_lib", *RUN, "--method", "an", *options]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        while not list(results.rglob("config.json")):
            assert process.poll() is None
            time.sleep(0.01)
        process.terminate()
        last = process.stderr.read().replace("\r", "\n").splitlines()[-1]
    assert process.returncode == 128 + signal.SIGTERM
    assert last.startswith("spcl: stopped; the same command goes on from the last checkpoint")
