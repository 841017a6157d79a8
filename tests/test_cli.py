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

from spcl_lib import __main__ as command_line
from spcl_lib.config import RunConfig
from spcl_lib.evaluate import mean_average_precision, predict_scores
from spcl_lib.runs import run, store
from spcl_lib.runs.network import build_network
from spcl_lib.runs.settings import make_config
from spcl_lib.runs.splits import load_splits
from spcl_lib.system import paths
from spcl_lib.system.errors import printable
from spcl_lib.system.weights import _read_weights

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


@pytest.mark.parametrize("method", ["an", "en_scl", "full"])
def test_a_run_writes_its_folder_and_a_row_of_the_summary(method, spcl, results, tiny):
    outcome = spcl(*RUN, "--method", method, "--seed", 3, **tiny)
    assert outcome.status == 0
    metrics = metrics_in(results)
    assert f"mAP {metrics['mAP']:.2f} %" in outcome.out and "metrics.json" in outcome.out
    assert "the number means nothing" in outcome.out  # the profile is smoke

    (folder,) = results.glob("scenes-smoke/*")
    assert folder.name.startswith(f"{method}-seed3-")
    expected = {
        ".lock",
        "config.json",
        "metrics.json",
        "weights.safetensors",
        "scores.safetensors",
    }
    expected |= {"bank.safetensors"} if method == "en_scl" else set()
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
    model.load_state_dict(_read_weights(file))
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


def test_all_files_of_a_run_have_the_mode_that_the_umask_gives(spcl, results, tiny):
    before = os.umask(0o022)
    try:
        spcl(*RUN, "--method", "scl", "--set", "snapshots=4", **tiny)
    finally:
        os.umask(before)
    modes = {file.name: file.stat().st_mode & 0o777 for file in results.rglob("*.*")}
    assert {"weights.safetensors", "bank.safetensors", "snapshots.safetensors"} < modes.keys()
    closed = {name: oct(mode) for name, mode in modes.items() if mode & 0o044 != 0o044}
    assert not {name for name in closed if not name.endswith(".lock")}, closed


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


def test_a_repeat_shows_its_epochs(spcl, results, tiny):
    spcl(*RUN, "--method", "an", **tiny)
    outcome = spcl(*RUN, "--method", "an", "--force", **tiny)
    assert outcome.err.count("an seed 0: epoch ") == tiny["epochs"]


def test_a_notebook_replaces_no_other_file_and_this_is_said_before_the_training(
    spcl, results, tiny, tmp_path
):
    photo = tmp_path / "photo.jpg"
    photo.write_text("a photo")
    (tmp_path / "folder.ipynb").mkdir()
    for file in (photo, tmp_path / "folder.ipynb"):
        outcome = spcl(*RUN, "--method", "an", "--notebook", file, **tiny)
        assert outcome.status == 2 and f"'{file}' cannot hold a notebook" in outcome.err
    assert photo.read_text() == "a photo" and not list(results.rglob("metrics.json"))


def test_another_configuration_is_another_run(spcl, results, tiny):
    for changes in ({}, {"epochs": 2}, {"lr": 1e-3}):
        spcl(*RUN, "--method", "an", **(tiny | changes))
    spcl(*RUN, "--method", "an", "--seed", 1, **tiny)
    folders = [p.parent.name for p in results.rglob("metrics.json")]
    assert len(set(folders)) == 4
    with open(results / "summary.csv", newline="") as file:
        assert len(list(csv.DictReader(file))) == 4


def test_the_profile_itself_has_the_plain_name_of_a_folder():
    plain = store.run_folder(make_config("scenes", "scl", 2, "smoke"))
    assert (plain.parent.name, plain.name) == ("scenes-smoke", "scl-seed2")


def test_photographs_in_the_layout_of_voc_are_trained_on(spcl, results, voc):
    outcome = spcl(*VOC, "--data-root", voc, **UNTRAINED)
    assert outcome.status == 0
    metrics = metrics_in(results)
    assert (metrics["train_images"], metrics["report_images"]) == (6, 4)
    assert metrics["classes_without_positive"] > 0
    assert None in metrics["AP"].values()


def test_real_photographs_with_the_pretrained_network(spcl, results, real_part):
    outcome = spcl(
        "run", "--dataset", "voc2007", "--profile", "smoke", "--method", "scl",
        "--data-root", real_part, batch=8, epochs=2,
    )  # fmt: skip
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
        (("run", "--method", "an", "--set", "seed=1"), "unknown setting 'seed'"),
        (("run", "--method", "an", "--set", "lr"), "--set key=value"),
        (("run", "--method", "an", "--set", "epochs=many"), "'epochs' must be of type int"),
        (("run", "--method", "an", "--set", "momentum=1.5"), "'momentum' must be in"),
        (("run", "--method", "an", "--set", "distance=l3"), "Valid: bce, l1, l2"),
        (("run", "--method", "an", "--set", "image_side=8"), "side=8"),
    ],
)
def test_a_mistake_in_the_command_is_one_line(arguments, said, spcl, results):
    assert_mistake(spcl(*arguments), results, said)


@pytest.mark.parametrize("name", ["x" * 5000, "a\nb\x07" * 2000], ids=["letters", "signs"])
def test_of_a_name_of_thousands_of_characters_the_ends_are_shown(name, spcl, results):
    outcome = spcl("run", "--method", name)
    start = f"unknown method '{printable(name[:40])}"
    assert_mistake(outcome, results, start, " ... ", "Valid: an")
    assert len(outcome.err) < 1500


# The real command, once; afterwards it tells what it has imported.
SHELL = """
import atexit, runpy, sys
atexit.register(lambda: print(*sys.modules))
sys.argv[1:] = "run --dataset voc2007 --method an --data-root nowhere".split()
runpy.run_module("spcl_lib", run_name="__main__", alter_sys=True)
"""


@pytest.fixture(scope="module")
def shell(tmp_path_factory):
    environment = os.environ | {"SPCL_RESULTS": str(tmp_path_factory.mktemp("shell"))}
    return subprocess.run([sys.executable, "-c", SHELL], cwd=paths.project(),
                          env=environment, capture_output=True, text=True)  # fmt: skip


def test_from_a_shell_a_mistake_is_the_same_line_and_exit_status(shell):
    assert shell.returncode == 2
    (line,) = shell.stderr.splitlines()
    assert line.startswith("spcl: error: data root 'nowhere' does not exist")


def test_the_core_needs_neither_plots_nor_notebooks(shell):
    """It runs where only torch, torchvision, numpy and pillow (and small tools) are installed."""
    loaded = {name.partition(".")[0] for name in shell.stdout.split()}
    assert {"spcl_lib", "torch"} <= loaded
    assert not loaded & {"matplotlib", "seaborn", "pandas", "papermill", "nbformat", "nbclient",
                         "anywidget", "IPython", "pycocotools", "sklearn"}  # fmt: skip


# --- mistakes in the data -------------------------------------------------------------------------


def test_a_missing_data_root_is_named_with_the_ways_to_give_it(spcl, results, tmp_path):
    outcome = spcl(*VOC, "--data-root", tmp_path / "nowhere")
    assert_mistake(outcome, results, str(tmp_path / "nowhere"), "--data-root", "SPCL_DATA")


def test_the_data_root_of_the_environment_is_checked_too(spcl, results, tmp_path, monkeypatch):
    monkeypatch.setenv("SPCL_DATA", str(tmp_path / "elsewhere"))
    assert_mistake(spcl(*VOC), results, str(tmp_path / "elsewhere"))


def test_a_data_root_without_the_data_set_is_named(spcl, results, tmp_path):
    assert_mistake(spcl(*VOC, "--data-root", tmp_path), results, str(tmp_path / "VOCdevkit"))


def test_missing_weights_are_named(spcl, results, tmp_path, voc, tiny):
    file = tmp_path / "weights.pth"
    outcome = spcl(*RUN, "--method", "an", **(tiny | {"weights": file}))
    assert_mistake(outcome, results, str(file), "--set weights=FILE")


def test_weights_of_another_network_are_named(spcl, results, tmp_path, tiny):
    torch.save(torch.nn.Linear(2, 2).state_dict(), tmp_path / "w.pth")
    outcome = spcl(*RUN, "--method", "an", **(tiny | {"weights": tmp_path / "w.pth"}))
    assert_mistake(outcome, results, str(tmp_path / "w.pth"), "small_resnet")


@pytest.mark.parametrize("fault", ["missing", "truncated", "text"])
def test_an_unreadable_image_is_named(fault, spcl, results, voc):
    file = voc / "VOCdevkit" / "VOC2007" / "JPEGImages" / "000005.jpg"
    intact = file.read_bytes()
    file.unlink()
    if fault == "truncated":
        file.write_bytes(intact[:-300])
    if fault == "text":
        file.write_text("404: not found")
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
    assert last.startswith(f"spcl: error: '{folder / 'checkpoint.pt'}': File too large. ")
    assert f"SPCL_RESULTS=DIR ('{results}')" in last
    assert names_in(results) == {".lock", "config.json"}
    assert spcl(*RUN, "--method", "an", **tiny).status == 0


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(), torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
    ],
    ids=["Python", "GPU", "torch"],
)  # fmt: skip
def test_too_little_memory_is_one_line_with_what_needs_less(
    error, spcl, results, tiny, monkeypatch
):
    def fail(*given):
        raise error

    monkeypatch.setattr(run, "train", fail)
    outcome = spcl(*RUN, "--method", "an", **tiny)
    assert outcome.status == 2 and "Traceback" not in outcome.err
    assert "Cannot allocate memory. Smaller images" in outcome.err.splitlines()[-1]


@pytest.mark.parametrize("name", ["metrics.json", "summary.csv"])
def test_a_disk_that_is_full_at_the_very_end_is_one_message_and_the_training_is_kept(
    name, spcl, results, tiny, monkeypatch
):
    with monkeypatch.context() as patch:
        full_disk_for(patch, name)
        outcome = spcl(*RUN, "--method", "an", **tiny)
    assert outcome.status == 2 and "Traceback" not in outcome.err
    last = outcome.err.splitlines()[-1]
    assert last.startswith("spcl: error: '") and f"{name}': No space left on device. Free" in last
    left = names_in(results)
    assert name not in left and not any(file.endswith(".tmp") for file in left)
    monkeypatch.setattr(run, "train", lambda *given: given[6])  # no step is needed
    assert spcl(*RUN, "--method", "an", **tiny).status == 0
    assert {"metrics.json", "summary.csv"} <= names_in(results)


@pytest.mark.parametrize("variable", ["SPCL_RESULTS", "SPCL_CACHE"])
@pytest.mark.parametrize("command", ["run", "reproduce"])
def test_a_file_where_a_folder_is_needed_is_named_with_its_variable(
    variable, command, spcl, tmp_path, tiny, monkeypatch
):
    (tmp_path / "file").write_text("mine")
    monkeypatch.setenv(variable, str(tmp_path / "file" / "folder"))
    what = ("--method", "an") if command == "run" else ("--only", "an", "--seeds", "0")
    outcome = spcl(command, "--profile", "smoke", *what, **tiny)
    assert outcome.status == 2
    (line,) = outcome.err.splitlines()
    assert line.startswith("spcl: error: '") and f"{variable}=DIR" in line
    assert "file where a folder is needed" in line
    assert (tmp_path / "file").read_text() == "mine"


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


@pytest.mark.parametrize("command", ["predict", "download"])
def test_ctrl_c_promises_no_checkpoint_where_there_is_none(command, spcl, monkeypatch):
    def interrupted(options):
        raise KeyboardInterrupt

    text, add_options, _ = command_line._COMMANDS[command]
    monkeypatch.setitem(command_line._COMMANDS, command, (text, add_options, interrupted))
    needed = ["--run", "r", "--images", "i"] if command == "predict" else ["--dataset", "voc2007"]
    outcome = spcl(command, *needed)
    assert (outcome.status, outcome.err) == (130, "spcl: stopped\n")


def start(results, *arguments, **options):
    """The command in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "spcl_lib", *map(str, arguments)], cwd=paths.project(), text=True,
        env=os.environ | {"SPCL_RESULTS": str(results)}, stderr=subprocess.PIPE, **options,
    )  # fmt: skip


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_torch_is_loaded_gives_one_line(number, results, monkeypatch, tmp_path):
    """A torch that takes for ever stands in for the real one, which takes seconds."""
    (tmp_path / "torch").mkdir()
    loading = tmp_path / "loading"
    (tmp_path / "torch" / "__init__.py").write_text(
        f"import pathlib, time\npathlib.Path({str(loading)!r}).touch()\ntime.sleep(600)"
    )
    found = [str(tmp_path), str(paths.project())]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(found))
    with start(results, "compare") as process:
        while not loading.exists():
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(number)
        assert process.stderr.read() == "spcl: stopped\n"
    assert process.returncode == 128 + number


def test_sigterm_during_a_run_says_how_to_go_on(results, tiny, own_kernels):
    settings = [part for k, v in tiny.items() for part in ("--set", f"{k}={v}")]
    settings += ["--set", "epochs=2000"]
    with start(results, *RUN, "--method", "an", *settings) as process:
        while not list(results.rglob("config.json")):
            assert process.poll() is None
            time.sleep(0.01)
        process.terminate()
        last = process.stderr.read().replace("\r", "\n").splitlines()[-1]
    assert process.returncode == 128 + signal.SIGTERM
    assert last.startswith("spcl: stopped; the same command goes on from the last checkpoint")
