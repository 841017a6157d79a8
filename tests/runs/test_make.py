"""The crop-scale runs of `make.py`: which there are, and that ours have what the league chose."""

from dataclasses import replace

import pytest

from spcl_lib.analysis.runs import read_kept
from spcl_lib.runs.settings import make_config


@pytest.mark.parametrize("dataset", ["scenes", "voc2007"])
def test_ours_have_what_the_league_chose_but_the_rates_of_the_profile(dataset, make):
    chosen = {e["method"]: e["settings"] for e in read_kept(f"league-{dataset}")["final"]}
    configs = {c.method: c for c in make.crop_scale_configs(dataset, "cpu", [0.1])}
    for method in ("gr_scl", "ren_scl"):
        rates = {"lr", "weight_decay", "start"}
        settings = {k: v for k, v in chosen[method].items() if k not in rates}
        config, usual = configs[method], make_config(dataset, method)
        assert config.settings == replace(usual.settings, **settings) and config.lr == usual.lr
