"""Full training of a league's best methods: who takes part, with what, and what is said of it."""

import json

import pytest

from spcl_lib.analysis import full_training
from spcl_lib.analysis.league import load_league
from spcl_lib.methods import METHODS, PAPER_METHODS
from spcl_lib.runs.league import full_training_configs
from spcl_lib.runs.settings import make_config
from spcl_lib.runs.store import run_folder
from spcl_lib.system import paths
from spcl_lib.system.errors import UserError


def entry(method, score, settings=None):
    return {"method": method, "pooling": "mean", "predicts": "mean", "settings": settings or {},
            "mAP": [score, score + 1]}  # fmt: skip


LEAGUE = {"final": [entry("an", 50.0), entry("gr", 60.0), entry("ren_scl", 65.0), entry("em", 55.0),
                    entry("en_scl", 58.0), entry("full", 70.0)]}  # fmt: skip


def kept(**scores):
    final = [{"method": m, "mAP": list(s), "train_seconds": 9.0} for m, s in scores.items()]
    return {"final": final}


def test_the_best_methods_besides_the_papers_take_part_with_their_settings():
    best = full_training.best_of_league(LEAGUE, 2, combined=True)
    assert list(best) == ["ren_scl", "gr"]
    league = load_league("voc2007")
    best = full_training.best_of_league(league, 8, combined=True)
    assert len(best) == 8 and not set(best) & set(PAPER_METHODS)
    assert any(best.values())


def test_a_loss_of_another_paper_with_scl_takes_part_only_where_it_counts():
    content = {"final": [entry("gr_scl", 66.0), *LEAGUE["final"]]}
    assert list(full_training.best_of_league(content, 2, combined=True)) == ["gr_scl", "ren_scl"]
    assert list(full_training.best_of_league(content, 2, combined=False)) == ["ren_scl", "gr"]
    assert sorted(full_training.best_of_league(load_league("coco18"), 4, combined=False)) == [
        "ll_cp", "ll_ct", "ren", "ren_scl",
    ]  # fmt: skip


def test_a_method_keeps_its_own_settings_and_the_profile_its_rates_and_start(voc):
    chosen = {"lr": 4e-3, "start": 9, "weight_decay": 0.1, "weight": 0.3, "prior_weight": 0.5}
    found = full_training_configs("voc2007", {"ren_scl": chosen}, (0, 4), voc)
    assert list(found) == [*PAPER_METHODS, "ren_scl"]
    usual = make_config("voc2007", "ren_scl", 4, "cpu")
    made = found["ren_scl"][1]
    assert (made.lr, made.weight_decay, made.seed) == (usual.lr, usual.weight_decay, 4)
    assert made.settings.start == usual.settings.start and made.trained == "network"
    assert (made.settings.weight, made.settings.prior_weight) == (0.3, 0.5)
    assert found["scl"][0].settings == make_config("voc2007", "scl", 0, "cpu").settings
    assert made.content and made.content == found["an"][0].content
    with pytest.raises(UserError, match="no full training of 'scenes'; there is of voc2007"):
        full_training_configs("scenes", {}, (0,))


def test_runs_are_collected_and_kept(voc, results, tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "reference", lambda: tmp_path)
    assert full_training.load_full_training("voc2007") is None
    found = full_training_configs("voc2007", {"gr": {}}, (0, 1), voc)
    with pytest.raises(UserError, match="--league --full-training --dataset voc2007"):
        full_training.collect_full_training(found)
    for method, configs in found.items():
        for config in configs:
            folder = run_folder(config)
            folder.mkdir(parents=True)
            metrics = {
                "mAP": 50.0 + config.seed, "config": config.flat(), "train_seconds": 2.0,
                "machine": {"device": "a machine"}, "train_images": 5, "report_images": 6,
                "classes": list("ab"), "method": method, "dataset": "voc2007", "profile": "cpu",
                "seed": config.seed, "epochs": 8,
            }  # fmt: skip
            (folder / "metrics.json").write_text(json.dumps(metrics))
    file = full_training.save_full_training(full_training.collect_full_training(found))
    assert file == tmp_path / "full-training-voc2007.json"
    content = full_training.load_full_training("voc2007")
    assert [e["method"] for e in content["final"]] == [*PAPER_METHODS, "gr"]
    assert content["final"][-1]["mAP"] == [50.0, 51.0] and content["seeds"] == [0, 1]


def test_the_table_has_both_kinds_of_training_side_by_side():
    content = kept(an=(40, 42), gr=(50, 52), full=(60, 62), cl=(41, 41))
    table = full_training.full_training_table(content, LEAGUE)
    assert list(table.index) == ["Full", "GR", "AN", "CL"]
    assert table.loc["GR", ["mAP", "gap_closed", "frozen", "frozen_gap_closed"]].tolist() == [
        51.0, 50.0, 60.5, 50.0,
    ]  # fmt: skip
    assert table["frozen"].isna()["CL"]  # the league lacks it


@pytest.mark.parametrize(("scores", "expected"), [((1, 2, 3), 1.0), ((3, 2, 1), -1.0)])
def test_the_rank_correlation_says_whether_the_order_is_the_same(scores, expected):
    an, gr, full = scores
    content = kept(an=(an, an), gr=(gr, gr), full=(full, full))
    table = full_training.full_training_table(content, LEAGUE)
    assert full_training.rank_correlation(table) == pytest.approx(expected)


def test_the_best_is_named_and_compared_with_the_best_competitor():
    content = kept(an=(40, 42), gr=(50, 52), ren_scl=(55, 57.2), en_scl=(49, 53), full=(60, 62))
    best, ours, papers, order = full_training.full_training_sentences(content, LEAGUE)
    assert best.startswith("REN + SCL is the best of 4 methods: 56.1 mAP, 76 % of the gap")
    assert ours == ("REN + SCL is ahead of the best loss of another paper, GR: +5.1 mAP "
                    "(deviation over seeds 0.1).")  # fmt: skip
    assert papers.startswith("EN + SCL is not settled against the best loss of another paper, GR")
    assert "over 5 methods is 0.97" in order  # GR and EN + SCL have one rank in one of them


def test_the_gain_by_scl_is_told_for_every_term_with_and_without_it():
    scores = {"an": (40, 42), "scl": (41, 41), "gr": (50, 52), "gr_scl": (53, 55)}
    content = kept(**scores, en_scl=(49, 53), full=(60, 62))
    *_, added, _ = full_training.full_training_sentences(content, LEAGUE)
    assert added == "SCL adds +3.0 to GR, +0.0 to AN (not settled)."


@pytest.mark.parametrize("dataset", ["voc2007", "coco18"])
def test_the_kept_file_has_every_method_with_as_many_scores_as_seeds(dataset):
    content = full_training.load_full_training(dataset)
    assert {e["method"] for e in content["final"]} <= set(METHODS)
    assert {len(e["mAP"]) for e in content["final"]} == {len(content["seeds"])}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--full-training"], "--full-training go with --league"),
        (["--league", "--full-training", "--only", "an"], "nor --only goes with it"),
        (["--league", "--full-training", "--kept-search"], "neither --kept-search"),
        (["--kept-search"], "go with --league"),
        (["--league", "--full-training", "--dataset", "scenes"], "no full training of 'scenes'"),
    ],
)
def test_what_does_not_go_together_is_refused(spcl, arguments, message):
    outcome = spcl("reproduce", *arguments)
    assert outcome.status == 2 and message in outcome.err
