"""The summary has one row per run, and says which rows differ by their seed alone."""

import csv
import json
import shutil

from fake_runs import fake_run, write_results

from spcl_lib.runs.settings import make_config
from spcl_lib.runs.store import run_folder, write_summary


def write_run(score, **settings):
    """Puts a finished run of SCL, seed 0, where its settings belong; gives its folder."""
    config = make_config("scenes", "scl", 0).replace(**settings)
    folder = run_folder(config)
    folder.mkdir(parents=True)
    metrics = fake_run("scl", 0, score) | {"config": config.flat()}
    (folder / "metrics.json").write_text(json.dumps(metrics))
    return folder


def summary():
    with open(write_summary(), newline="") as file:
        return list(csv.DictReader(file))


def test_runs_with_other_settings_or_data_are_no_further_seeds(results):
    """A run of an ablation with the same seed counted as a seed, and moved the mean."""
    write_results([fake_run("scl", seed, 80 + seed) for seed in (0, 1)])
    write_run(50, scale_min=0.1, snapshots=64)
    write_run(60, content="0123abcd")
    rows = {float(row["mAP"]): (row["changes"], row["content"]) for row in summary()}
    assert rows == {
        80: ("", ""), 81: ("", ""), 50: ("scale_min=0.1 snapshots=64", ""), 60: ("", "0123abcd")
    }  # fmt: skip


def test_a_copy_of_a_run_is_no_further_seed(results):
    folder = write_run(50, epochs=3)
    for copy in (folder.with_name("a-copy"), results / "a-backup" / folder.name):
        shutil.copytree(folder, copy)
    (row,) = summary()
    assert row["folder"] == folder.name
    shutil.rmtree(folder)
    assert len(summary()) == 1


def test_a_run_of_another_version_has_a_row(results):
    folder = write_run(50)
    metrics = json.loads((folder / "metrics.json").read_text())
    metrics["config"] |= {"profile": "gone", "gone": 3}
    del metrics["config"]["asset_step"]
    (folder / "metrics.json").write_text(json.dumps(metrics))
    (row,) = summary()
    assert "gone=3" in row["changes"] and "asset_step" not in row["changes"]
