"""Runs are read from the right place, and kept; what is kept becomes one table."""

import json
import re

import pytest
from fake_runs import fake_runs, write_results

from spcl_lib.analysis.league import (
    added_by_scl,
    best_on_held_out,
    league_table,
    poolings,
)
from spcl_lib.analysis.runs import (
    COLUMNS,
    load_runs,
    read_kept,
    table_of,
)
from spcl_lib.methods import METHODS, PAPER_METHODS
from spcl_lib.runs.league import LEAGUES, own_pooling
from spcl_lib.system import paths
from spcl_lib.system.errors import UserError


def test_results_are_the_unmodified_finished_runs(results):
    runs = fake_runs(methods=("scl", "an"), seeds=(1, 0))
    write_results(runs)
    group = results / "scenes-cpu"
    for name, change in {
        "an-seed2-0123abcd": {"config": {**runs[0]["config"], "epochs": 3}},  # other settings
        "an-seed3": {"config": {**runs[0]["config"], "lr": 1.0}},  # of other defaults than today's
    }.items():
        (group / name).mkdir()
        (group / name / "metrics.json").write_text(json.dumps(runs[0] | change))
    found = table_of(load_runs("results", "scenes", "cpu"))
    assert list(zip(found["method"], found["seed"], strict=True)) == [
        ("an", 0), ("an", 1), ("scl", 0), ("scl", 1),
    ]  # fmt: skip
    assert list(found.columns) == list(COLUMNS)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("results", "scenes", "cpu"), "reproduce.sh --dataset scenes --profile cpu"),
        (("reference", "voc2007", "cpu"), "no results are kept as 'voc2007-cpu.json'"),
        (("results", "scene", "cpu"), "Did you mean 'scenes'"),
    ],
)
def test_no_runs_or_unknown_names_give_one_message(
    results, arguments, message, tmp_path, monkeypatch
):
    monkeypatch.setattr(paths, "reference", lambda: tmp_path)
    with pytest.raises(UserError, match=re.escape(message)):
        load_runs(*arguments)


@pytest.mark.parametrize("dataset", LEAGUES)
def test_a_kept_league_has_every_method_with_the_mean_and_with_its_own_pooling(dataset):
    content = read_kept(f"league-{dataset}")
    table = league_table(content)
    counts = table.groupby(["pooling", "method"])["seed"].nunique().unstack("pooling")
    assert set(counts.index) <= set(METHODS) and (counts == len(content["seeds"])).all(axis=None)
    means = table[table["pooling"] == "mean"].groupby("method")["mAP"].mean()
    scores = poolings(content).set_index(["method", "pooling"])["mAP"]
    for method, mean in means.items():
        assert scores[method, own_pooling(method)] == pytest.approx(mean, abs=1e-3)
    assert all(30 < entry["held_out"] < 100 for entry in content["final"])
    for pooling in ("mean", "own"):
        rival = best_on_held_out(content, pooling, "another paper")
        assert METHODS[rival].consistency == "" and rival not in PAPER_METHODS


def test_what_scl_adds_is_paired_with_its_own_term():
    content = {"dataset": "scenes", "profile": "cpu", "seeds": [3, 4], "final": [
        {"method": m, "mAP": scores}
        for m, scores in {"an": (40, 42), "scl": (41, 41), "gr": (50, 52), "gr_scl": (53, 55),
                          "en_scl": (49, 53)}.items()
    ]}  # fmt: skip
    found = added_by_scl(league_table(content).query("pooling == 'mean'"))
    assert list(found["title"]) == ["GR", "AN"] and list(found["gain"]) == [3, 0]
    assert list(found["low"] > 0) == [True, False]
