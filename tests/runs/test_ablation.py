"""The crop-scale ablation: which runs it has, and that ours have what the league chose."""

from dataclasses import replace

import pytest

from spcl_lib.analysis.runs import read_kept
from spcl_lib.runs import ablation
from spcl_lib.runs.ablation import CROP_SCALES, crop_scale_configs
from spcl_lib.runs.settings import make_config
from spcl_lib.runs.store import run_folder


def test_every_method_scale_and_seed_once():
    configs = crop_scale_configs("scenes")
    assert len(set(configs)) == len(configs) == 5 * 5 * 3 + 2 * 3
    own = {c.method for c in configs if c.scale_min == ablation.RECOVERY_SCALE}
    assert own == {*ablation.CROP_METHODS, "gr_scl", "ren_scl"}  # the best of the league
    assert len({run_folder(c) for c in configs}) == len(configs)
    assert {c.scale_min for c in configs} == set(CROP_SCALES) == {1.0, 0.5, 0.25, 0.1, 0.05}
    assert all((c.snapshots > 0) == (c.scale_min == ablation.RECOVERY_SCALE) for c in configs)
    assert crop_scale_configs("scenes", "cpu", [0, 0], [0.5, 0.50]) == crop_scale_configs(
        "scenes", "cpu", [0], [0.5]
    )


@pytest.mark.parametrize("dataset", list(ablation.CHOSEN))
def test_ours_have_what_the_league_chose_but_the_rates_of_the_profile(dataset):
    chosen = {e["method"]: e["settings"] for e in read_kept(f"league-{dataset}")["final"]}
    rates = {"lr", "weight_decay", "start"}
    configs = {c.method: c for c in crop_scale_configs(dataset, "cpu", [0], [0.1])}
    for method, settings in ablation.CHOSEN[dataset].items():
        assert settings == {k: v for k, v in chosen[method].items() if k not in rates}
        config, usual = configs[method], make_config(dataset, method)
        assert config.settings == replace(usual.settings, **settings) and config.lr == usual.lr


def test_the_profiles_own_scale_gives_the_profiles_own_runs():
    own = crop_scale_configs("scenes", seeds=[2], scales=[0.25])
    assert make_config("scenes", "scl", 2) in own
    assert {run_folder(c).name for c in own} >= {"scl-seed2", "an-seed2"}
