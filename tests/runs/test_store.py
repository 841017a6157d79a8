"""The store: one row of the summary per run, and what is damaged is named and does not count."""

import csv
import json
import shutil

import pytest
import torch
from fake_runs import fake_run, write_results

from spcl_lib.runs.run import run
from spcl_lib.runs.settings import make_config
from spcl_lib.runs.store import (
    load_metrics,
    load_run,
    metrics_with_sum,
    read_config,
    read_metrics,
    run_folder,
    write_summary,
)
from spcl_lib.system.errors import UserError
from spcl_lib.system.files import write_json
from spcl_lib.system.weights import load_tensors, save_tensors


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


# --- damage ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("damage", [lambda text: text[:-5], lambda text: text.replace("50", "51"),
                                    lambda text: "[" * 50_000,
                                    lambda text: f'{{"config": {text}}}'])  # fmt: skip
def test_damaged_metrics_do_not_count_and_are_named_once(damage, results, capsys):
    folder = write_run(50)
    file, config = folder / "metrics.json", read_metrics(folder)[0]
    write_json(file, metrics_with_sum(read_metrics(folder)[1]))
    assert load_metrics(config)["mAP"] == 50
    file.write_text(damage(file.read_text()))
    assert load_metrics(config) is load_metrics(config) is None
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith(f"spcl: '{file}' is damaged (") and line.endswith("run it again")
    with pytest.raises(UserError, match="metrics.json' is damaged"):
        read_metrics(folder)
    assert summary() == [] and f"'{file}' is damaged" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"epochs": "3"}, "'epochs' must be of type int"), ({"lr": None}, "'lr' must be of type"),
        ({"seed": 1.5}, "'seed' must be of type int"), ({"flip": True}, "'flip' must be of type"),
        ({"momentum": [0.5]}, "'momentum'"), ({"epochs": -1}, "'epochs' must be above 0"),
        ({"method": "none"}, "unknown method"), ({"profile": "none"}, "unknown profile"),
        ({"dataset": "none"}, "unknown data set"), ({"novelty": 1}, "novelty"),
    ],
)  # fmt: skip
def test_a_configuration_with_a_wrong_value_is_named(change, said, tmp_path):
    values = make_config("scenes", "scl").flat() | change
    file = tmp_path / "config.json"
    file.write_text(json.dumps({"config": values, "data_root": None}))
    with pytest.raises(UserError, match=said) as error:
        read_config(file)
    assert f"'{file}'" in str(error.value)


@pytest.mark.parametrize("content", ["null", '{"config": null, "data_root": null}', "[" * 50_000,
                                     '{"config": {}, "data_root": 5}'])  # fmt: skip
def test_what_is_no_configuration_is_named(content, tmp_path):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(UserError, match="config.json' is no configuration of a run"):
        read_config(tmp_path)


def test_a_bank_of_another_shape_is_named(results, tiny):
    config = make_config("scenes", "scl", 0, "smoke", tiny)
    run(config)
    file = run_folder(config) / "bank.safetensors"
    sound = load_tensors(file)
    for change in (
        {name: sound[name][:-1] for name in ("heatmaps", "seen")}, {"seen": sound["seen"][1:]},
        {"heatmaps": sound["heatmaps"].flatten(1)}, {"other": torch.ones(1)},
    ):  # fmt: skip
        save_tensors(sound | change, file)
        with pytest.raises(UserError, match="bank.safetensors' does not hold"):
            load_run(config)
    save_tensors({"heatmaps": sound["heatmaps"]}, file)
    with pytest.raises(UserError, match="bank.safetensors' does not hold"):
        load_run(config)
