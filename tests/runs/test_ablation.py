"""The ablation of crop sizes: its runs, the command that makes them, and their table."""

from dataclasses import replace

import pytest

from spcl_lib.__main__ import main
from spcl_lib.analysis.runs import read_kept
from spcl_lib.runs import ablation, schedule
from spcl_lib.runs.ablation import CROP_SCALES, command_of, crop_scale_configs, crop_scale_rows
from spcl_lib.runs.run import run
from spcl_lib.runs.settings import make_config
from spcl_lib.runs.store import run_folder
from spcl_lib.system.errors import UserError


def test_every_method_scale_and_seed_once():
    configs = crop_scale_configs("scenes")
    assert len(set(configs)) == len(configs) == 5 * 5 * 3 + 2 * 3
    own = {c.method for c in configs if c.scale_min == ablation.RECOVERY_SCALE}
    assert own == {*ablation.CROP_METHODS, "gr_scl", "ren_scl"}  # the best of the league
    assert len({run_folder(c) for c in configs}) == len(configs)
    assert {c.scale_min for c in configs} == set(CROP_SCALES) == {1.0, 0.5, 0.25, 0.1, 0.05}
    assert all((c.snapshots > 0) == (c.scale_min == ablation.RECOVERY_SCALE) for c in configs)


@pytest.mark.parametrize("dataset", list(ablation.CHOSEN))
def test_ours_have_what_the_league_chose_but_the_rates_of_the_profile(dataset):
    chosen = {e["method"]: e["settings"] for e in read_kept(f"league-{dataset}")["final"]}
    rates = {"lr", "weight_decay", "start"}
    for method, settings in ablation.CHOSEN[dataset].items():
        assert settings == {k: v for k, v in chosen[method].items() if k not in rates}
        (config,) = crop_scale_configs(dataset, "cpu", [0], [0.1], [method])
        usual = make_config(dataset, method)
        assert config.settings == replace(usual.settings, **settings) and config.lr == usual.lr


def test_the_profiles_own_scale_gives_the_profiles_own_runs():
    (own,) = crop_scale_configs("scenes", seeds=[2], scales=[0.25], methods=["scl"])
    assert own == make_config("scenes", "scl", 2)
    assert run_folder(own).name == "scl-seed2"


def test_what_is_named_twice_counts_once():
    once = crop_scale_configs("scenes", "cpu", [0], [0.5], ["an"])
    assert crop_scale_configs("scenes", "cpu", [0, 0], [0.5, 0.50], ["an", "an"]) == once
    found = ablation.ablations("scenes", "cpu", 1000)["weight"]
    once = ablation.ablation_configs(found, "scenes", "cpu", [1, 0])
    assert ablation.ablation_configs(found, "scenes", "cpu", [1, 0, 1]) == once


def test_other_settings_apply_to_all_and_the_varied_one_cannot_be_set():
    configs = crop_scale_configs("scenes", overrides={"epochs": 3, "snapshots": 5})
    assert {(c.epochs, c.snapshots) for c in configs} == {(3, 5)}
    with pytest.raises(UserError, match="scale_min is what this ablation varies.*--scales"):
        crop_scale_configs("scenes", overrides={"scale_min": 0.3})
    with pytest.raises(UserError, match="'scale_min' must be in .*; got 2.0"):
        crop_scale_configs("scenes", scales=[2.0])
    with pytest.raises(UserError, match="unknown method 'sclx'"):
        crop_scale_configs("scenes", methods=["sclx"])


def test_the_command_makes_these_very_runs(monkeypatch, capsys, results):

    asked = []
    monkeypatch.setattr(schedule, "run_all", lambda configs, *rest: asked.append(configs) or [])
    for scales, overrides in (
        ([0.1], {"epochs": 2}), ([0.1, 0.5], {}), ([0.1], {"snapshots": 7}),
        ([0.25], {"lr": 1e-5, "distance": "l2"}),
    ):  # fmt: skip
        configs = crop_scale_configs("scenes", "smoke", [0, 4], scales, overrides=overrides)
        main(command_of(configs).split()[3:])
        assert asked.pop() == configs


def test_only_finished_runs_are_collected(results, tiny):
    configs = crop_scale_configs("scenes", "smoke", [0], [0.5, 0.1], ["an"], tiny)
    metrics = run(configs[1])
    assert crop_scale_rows(configs) == [
        {"method": "an", "scale_min": 0.1, "seed": 0, "mAP": metrics["mAP"]}
    ]


# --- the command ----------------------------------------------------------------------------------

FEW = ("ablation", "crop_scale", "--profile", "smoke", "--seeds", "0", "--only", "an", "scl",
       "--scales", "0.5", "0.1")  # fmt: skip


def test_list_shows_the_plan_and_runs_nothing(spcl, results, tiny):
    outcome = spcl(*FEW, "--list", **tiny)
    assert outcome.status == 0
    assert "scl     scale_min 0.1   seed 0  to run" in outcome.out
    assert outcome.out.endswith("4 of 4 runs to do\n")
    assert not results.exists()


def test_it_runs_what_is_not_finished_and_ends_with_the_table(
    spcl, results, tiny, monkeypatch, own_kernels
):
    done = crop_scale_configs("scenes", "smoke", [0], [0.1], ["an"], tiny)
    run(done[0])
    finished = (run_folder(done[0]) / "metrics.json").stat().st_mtime_ns
    outcome = spcl(*FEW, "--jobs", "2", **tiny)
    assert outcome.status == 0, outcome.out
    assert "3 of 4 runs to do, 2 side by side" in outcome.out
    assert (run_folder(done[0]) / "metrics.json").stat().st_mtime_ns == finished
    lines = outcome.out.splitlines()
    assert f"an        scale_min 0.1   seed 0  mAP {crop_scale_rows(done)[0]['mAP']:.2f} %" in lines
    again = spcl(*FEW, "--list", **tiny)
    assert "0 of 4 runs to do" in again.out and "finished, mAP" in again.out
    assert (results / "summary.csv").read_text().count("scenes,smoke") == 4


def test_mistakes_are_one_line(spcl, results):
    for arguments, said in (
        (("ablation", "momentun"), "unknown ablation 'momentun'. Did you mean 'momentum'? Valid: "),
        (("ablation", "weight", "--only", "scl"), "--scales do not go with it"),
        (("ablation", "crop_scale", "--only", "sclx"), "unknown method 'sclx'. Did you mean"),
        (("ablation", "crop_scale", "--scales", "0"), "'scale_min' must be in"),
        (("ablation", "crop_scale", "--jobs", "0"), "--jobs must be at least 1"),
    ):
        outcome = spcl(*arguments)
        (line,) = outcome.err.splitlines()
        assert outcome.status == 2 and line.startswith("spcl: error: ") and said in line, line
