"""The store: one row of the summary per run, and what is damaged is named and does not count."""

import csv
import json
import os
import shutil
from pathlib import Path

import pytest
from fake_runs import fake_run, write_results
from refusals import message_of

from spcl_lib.runs.settings import make_config
from spcl_lib.runs.store import REPEAT, Run, run_folder, write_metrics, write_summary
from spcl_lib.system.errors import UserError


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
        80: ("", ""), 81: ("", ""), 50: ("scale_min=0.1", ""), 60: ("", "0123abcd")
    }  # fmt: skip


def test_a_copy_of_a_run_is_no_further_seed(results):
    folder = write_run(50, epochs=3)
    for copy in (folder.with_name("a-copy"), results / "a-backup" / folder.name):
        shutil.copytree(folder, copy)
    (row,) = summary()
    assert row["folder"] == folder.name


def test_a_run_is_found_by_its_folder_its_files_and_alone_below_a_folder(results):
    folder = write_run(50)
    config = make_config("scenes", "scl", 0)
    Run(config, folder, "data").write_config()
    (folder / REPEAT).mkdir()
    shutil.copy(folder / "metrics.json", folder / REPEAT)  # of a repeat that was stopped
    for place in (folder, folder / "metrics.json", folder / "config.json", results, folder.parent):
        found = Run.find(place)
        assert (found.config, found.folder) == (config, folder) and found.metrics["mAP"] == 50
        assert found.data_root == str(Path("data").resolve())
    assert Run.find(folder, "elsewhere").data_root == "elsewhere"
    moved = folder.rename(results / "moved")
    assert Run.find(moved).metrics["mAP"] == 50 and Run.of(config).metrics is None


def test_several_runs_are_listed_and_none_is_taken(results):
    """After ./reproduce.sh, `--run results` took AN's run, because it had finished last."""
    write_results([fake_run("en_scl", 0, 82.5), fake_run("an", 0, 76.6)])
    place = results / "scenes-cpu"
    os.utime(place / "an-seed0" / "metrics.json", (1, 1))
    (place / "scl-seed0").mkdir()
    (place / "scl-seed0" / "config.json").write_text("{}")  # it has not finished
    with pytest.raises(UserError, match="holds 2 finished runs; give the folder of one") as error:
        Run.find(results)
    last, first = place / "en_scl-seed0", place / "an-seed0"
    assert str(error.value).endswith(f"{last}, {first}")


def test_results_means_the_place_where_runs_go_in_any_folder(results, tmp_path, monkeypatch):
    folder = write_run(50)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    assert Run.find("results").folder == Run.find("results/scenes-cpu").folder == folder
    (elsewhere / "results").mkdir()
    with pytest.raises(UserError, match=f"holds 0 finished runs.* Runs go to '{results}'"):
        Run.find("results")
    with pytest.raises(UserError, match="missing.json' does not exist"):
        Run.find("missing.json")


def test_an_unfinished_run_is_found_but_not_loaded(results):
    config = make_config("scenes", "scl", 3)
    file = Run.of(config).write_config()
    assert Run.find(file.parent).config == config and Run.find(file.parent).metrics is None
    for call in (Run.find(file).load, Run.of(config).load):
        with pytest.raises(UserError, match="has not finished; start its command"):
            call()


@pytest.mark.parametrize("damage", [lambda text: text[:-5], lambda text: text.replace("50", "51"),
                                    lambda text: f'{{"config": {text}}}'])  # fmt: skip
def test_damaged_metrics_are_named_and_set_aside(damage, results, capsys):
    folder = write_run(50)
    file, run = folder / "metrics.json", Run.find(folder)
    write_metrics(folder, run.metrics)
    assert run.metrics["mAP"] == 50
    file.write_text(damage(file.read_text()))
    damaged = file.read_bytes()
    assert summary() == [] and run.metrics is None
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith(f"spcl: '{file}' is damaged ") and line.endswith("json.damaged'")
    assert file.with_name("metrics.json.damaged").read_bytes() == damaged


@pytest.mark.parametrize(
    ("change", "said"),
    [({"seed": 1.5}, "'seed' must be of type int"), ({"novelty": 1}, "novelty")],
)
def test_a_configuration_with_a_wrong_value_is_named(change, said, tmp_path):
    values = make_config("scenes", "scl").flat() | change
    file = tmp_path / "config.json"
    file.write_text(json.dumps({"config": values, "data_root": None}))
    message = message_of(Run.find, file)
    assert said in message and f"'{file}'" in message


def test_what_is_no_configuration_is_named(tmp_path):
    (tmp_path / "config.json").write_text('{"config": null}')
    assert "config.json' is no configuration of a run" in message_of(Run.find, tmp_path)
    (tmp_path / "weights").write_bytes(b"\xff" * 10_000)
    assert len(message_of(Run.find, tmp_path / "weights")) < 1000
