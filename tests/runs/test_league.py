"""The league: the same search for every method, choices on validation data, honest intervals."""

import json

import pytest
from fake_runs import fake_run

from spcl_lib.analysis import league as tables
from spcl_lib.analysis.intervals import summary
from spcl_lib.reproduce import plan
from spcl_lib.runs import league
from spcl_lib.runs.league import League, grid, league_methods
from spcl_lib.runs.settings import make_config
from spcl_lib.runs.store import run_folder

SEEDS = (0, 1)


@pytest.fixture
def small(results, monkeypatch):
    """A league on the smoke profile of scenes."""
    monkeypatch.setattr(league, "LEAGUES", {"scenes": "smoke"})
    return League("scenes", ["an", "gr", "gr_scl", "ren", "full"], SEEDS)


def finish(config, score, by_pooling=None):
    """Pretends that a run has finished with this mAP."""
    folder = run_folder(config)
    folder.mkdir(parents=True, exist_ok=True)
    metrics = fake_run(config.method, config.seed, score, config.dataset, "smoke") | {
        "mAP_by_pooling": {"mean": score, "lse:0.3": score - 1} | (by_pooling or {}),
        "config": config.flat(), "at_threshold": {"OF1": 50.0, "CF1": 40.0},
    }  # fmt: skip
    (folder / "metrics.json").write_text(json.dumps(metrics))


def finish_rounds(made, score_of=lambda config: 50.0):
    for _, configs in made.rounds():
        for config in configs:
            finish(config, score_of(config))


def test_every_method_gets_the_same_number_of_settings():
    for dataset in league.LEAGUES:
        for method in league_methods(dataset):
            assert len(grid(method, dataset)) == league.SEARCHED, method
            assert len({json.dumps(s, sort_keys=True) for s in grid(method, dataset)}) == 4


def test_choices_are_made_on_validation_data_with_one_seed(small):
    finish_rounds(small)
    for title, configs in small.rounds():
        if title == "final":
            assert {c.report for c in configs} == {"test"} and {c.seed for c in configs} == {0, 1}
        else:
            assert {c.report for c in configs} == {"val"} and {c.seed for c in configs} == {0}


def test_the_search_on_fewer_photographs_makes_as_many_steps():
    found = league.search_settings("voc2007", "ll_r", {"start": 6, "rejected": 0.4})
    final = make_config("voc2007", "ll_r", 0, "frozen", {"start": 6, "rejected": 0.4})
    assert final.epochs * 2500 == found["epochs"] * 1500, "the search lacks 40 % of the images"
    assert found["start"] == 10 and found["ramp"] == pytest.approx(final.settings.ramp * 25 / 15)
    # LL-R rejects as many labels at the end, because it counts them per epoch
    assert found["rejected"] * found["epochs"] == pytest.approx(0.4 * final.epochs)
    usual = make_config("scenes", "an", 0).epochs
    assert league.search_settings("scenes", "an", {})["epochs"] == usual


def test_the_best_settings_and_poolings_are_taken(small):
    def score_of(config):
        score = 50.0 + 5 * (config.settings.hidden_share == 0.5)
        score += 3 * (config.settings.weight == 0.1 and config.method == "gr_scl")
        return score + 2 * (config.lr == 8e-3) + (config.pooling == "top")

    finish_rounds(small, score_of)
    chosen = {"lr": 4e-3, "prior_weight": 1.0, "hidden_share": 0.5, "robustness": 0.7}
    assert small.chosen("ren") == chosen
    assert small.chosen("gr_scl") == {"lr": 8e-3, "weight": 0.1}
    assert small.chosen_pooling("gr") == ({"lr": 8e-3, "pooling": "top"}, "mean")
    finals = {(c.seed, c.pooling) for _, configs in small.rounds() for c in configs
              if (c.method, c.report) == ("gr_scl", "test")}  # fmt: skip
    assert finals == {(0, "mean"), (1, "mean"), (0, "top"), (1, "top")}


def test_the_best_length_is_taken_with_all_times_in_proportion(small):
    finish_rounds(small, lambda config: 50.0 + (config.epochs == 16))
    found = make_config("scenes", "gr_scl", 0, "smoke", small.chosen("gr_scl"))
    usual = make_config("scenes", "gr_scl", 0, "smoke")
    assert (found.epochs, found.settings.start) == (2 * usual.epochs, 2 * usual.settings.start)
    assert found.settings.ramp == 2 * usual.settings.ramp


def test_classes_that_compete_are_read_by_their_own_pooling(results, monkeypatch):
    monkeypatch.setattr(league, "LEAGUES", {"scenes": "smoke"})
    made = League("scenes", ["softmax"], SEEDS)
    for _, configs in made.rounds():
        for config in configs:
            finish(config, 50.0, {"softmax": 60.0 + (config.scale_min == 1), "mean": 70.0})
    assert made.chosen("softmax")["scale_min"] == 1
    assert [s.get("pooling") for s in made.tried("softmax", "pooling")] == [None]
    assert tables.collect(made)["final"][0]["mAP"] == [61.0, 61.0]


def test_another_pooling_in_prediction_can_be_chosen(small):
    finish_rounds(small)
    settings = small.tried("ren", "settings")[0]
    finish(small.config("ren", settings), 50.0, {"lse:0.3": 58.0})
    assert small.chosen_pooling("ren") == (settings, "lse:0.3")


def test_on_photographs_the_mean_over_held_out_parts_decides_between_the_best_settings(
    voc, results, monkeypatch
):
    usual = make_config("voc2007", "wan", 0, "smoke").lr
    first_part = {usual / 2: 60.0, usual: 59.0, usual * 2: 58.0}
    other_parts = {usual / 2: 50.0, usual: 56.0}

    def score_of(config):
        scores = other_parts if config.held_out else first_part
        return scores[config.lr] - 5 * (config.weight_decay == 0.1)

    monkeypatch.setattr(league, "LEAGUES", {"voc2007": "smoke"})
    photographs = League("voc2007", ["wan"], [0], voc)
    finish_rounds(photographs, score_of)
    repeated = dict(photographs.rounds())["search: settings, other parts"]
    assert {(c.lr, c.held_out) for c in repeated} == {
        (r, p) for r in (usual / 2, usual) for p in (1, 2)
    }
    # The first part alone would take half the rate, which the others do not confirm.
    assert photographs.chosen("wan") == {"lr": usual}
    kept = tables.collect(photographs)
    assert kept["final"][0]["held_out"] == (59.0 + 56.0 + 56.0) / 3


def test_the_cost_is_told_before_the_start(small, capsys):
    plan.show_league_plan(small, 2)
    # 4 terms x (4 settings + 2 lengths), 4 of gr_scl, 5 x 4 poolings, 5 x 2 x 2 at the end
    assert "to do: at most 68 runs, about 6 min in all with 2 side" in capsys.readouterr().out
    finish_rounds(small, lambda c: 50.0 + (c.pooling == "top"))
    assert sum(len(configs) for _, configs in small.rounds()) == small.most_runs() == 68


def test_a_league_is_kept_and_shown(small):
    finish_rounds(
        small,
        lambda c: {"an": 40.0, "full": 60.0}.get(c.method, 50.0) + c.seed + (c.pooling == "top"),
    )
    kept = tables.collect(small)
    assert kept["seeds"] == [0, 1] and len(kept["search"]) == 5 * 8 + 4 * 2
    found = summary(tables.league_table(kept)).set_index(["pooling", "method"])
    # The scale goes from AN with the mean, 40.5, to the best Full, 61.5 with the pooling "top".
    assert found["share"].round(1).to_dict() == {
        ("mean", "an"): 0.0, ("mean", "gr"): 47.6, ("mean", "gr_scl"): 47.6, ("mean", "ren"): 47.6,
        ("mean", "full"): 95.2, ("own", "an"): 4.8, ("own", "gr"): 52.4, ("own", "gr_scl"): 52.4,
        ("own", "ren"): 52.4, ("own", "full"): 100.0,
    }  # fmt: skip
    scores = tables.poolings(kept).set_index(["method", "pooling"])["mAP"]
    assert scores["gr", "mean"] == 50.5 and scores["gr", "lse:0.3"] == 49.5
