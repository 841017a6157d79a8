"""`compare` gives a row for all runs that differ by their seed, with paired intervals."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from spcl_lib import mean_average_precision
from spcl_lib.runs.splits import list_report
from spcl_lib.runs.store import Run
from spcl_lib.system.weights import save_tensors

RUN = ("run", "--dataset", "scenes", "--profile", "smoke", "--method")


@pytest.fixture
def runs(spcl, results, tiny):
    """Folders of three runs: AN with two seeds, and AN with another setting."""
    tiny["epochs"] = 1
    for seed in (0, 1):
        assert spcl(*RUN, "an", "--seed", seed, **tiny).status == 0
    assert spcl(*RUN, "an", **tiny, lr=1e-4).status == 0
    found = sorted(results.glob("*/*"), key=lambda f: Run.find(f).config.lr != 2e-3)
    return sorted(found[:2], key=lambda f: f.name) + found[2:]


def cells(line):
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_rows_have_means_and_intervals_of_paired_resamples(spcl, runs):
    outcome = spcl("compare", *runs, "--markdown")
    assert outcome.status == 0, outcome.err
    header, _, first, second = map(cells, outcome.out.strip().splitlines())
    assert header[:5] == ["runs", "seeds", "mAP %", "difference", "95 % interval"]
    maps = [Run.find(folder).metrics["mAP"] for folder in runs]
    assert first[:2] == ["an lr=0.002", "2"] and second[:2] == ["an lr=0.0001", "1"]
    assert first[2].startswith(f"{(maps[0] + maps[1]) / 2:.1f} ± ") and first[3:5] == ["", ""]
    assert second[2] == f"{maps[2]:.1f}"
    assert second[3] == f"{maps[2] - (maps[0] + maps[1]) / 2:+.1f}"
    low, high = map(float, second[4].split(" to "))
    assert low <= float(second[3]) <= high
    config, metrics = Run.find(runs[0]).config, Run.find(runs[0]).metrics
    labels = list_report(config, None).labels
    scores = load_file(runs[0] / "scores.safetensors")["scores"]
    assert mean_average_precision(scores, labels) == pytest.approx(metrics["mAP"])


def test_better_scores_are_better_with_certainty(spcl, runs):
    labels = list_report(Run.find(runs[2]).config, None).labels
    metrics = json.loads((runs[2] / "metrics.json").read_text()) | {"mAP": 100.0}
    del metrics["crc32"]  # as in older files: it would not fit the new score
    (runs[2] / "metrics.json").write_text(json.dumps(metrics))
    (runs[2] / "scores.safetensors").unlink()
    save_tensors({"scores": labels.float()}, runs[2] / "scores.safetensors")
    row = spcl("compare", *runs, "--latex").out.splitlines()[-3]
    assert row.startswith("an lr=0.0001 & 1 & 100.0 & +") and row.endswith(r" \\")
    low, high = map(float, row.split(" & ")[4].split(" to "))
    assert 20 < low <= high


def test_a_folder_of_runs_is_all_of_them_and_none_counts_twice(spcl, runs, results):
    both = spcl("compare", runs[0], results)
    assert both.out == spcl("compare", *runs).out and both.out.count("an lr=") == 2


def test_runs_on_other_images_are_refused(spcl, runs, results, tiny, tmp_path):
    tiny |= {"epochs": 1, "eval_images": 32}
    assert spcl(*RUN, "an", **tiny).status == 0
    outcome = spcl("compare", results)
    assert outcome.status == 2 and "different images: eval_images is '" in outcome.err
    (tmp_path / "empty").mkdir()
    outcome = spcl("compare", tmp_path / "empty")
    assert outcome.status == 2 and "holds no finished run" in outcome.err
    save_file({"scores": torch.zeros(3, 2)}, runs[0] / "scores.safetensors")
    outcome = spcl("compare", runs[0])
    assert outcome.status == 2 and "of other images" in outcome.err
