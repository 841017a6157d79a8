"""Tables and verdicts are checked by hand; runs are read from the right place and kept."""

import json
import math
import re

import pytest
from fake_runs import fake_run, fake_runs, runs_of, write_results

from spcl_lib import methods
from spcl_lib.analysis import results
from spcl_lib.analysis.report import readable_table
from spcl_lib.analysis.results import claim_sentences, load_runs, references, save_reference
from spcl_lib.system.errors import UserError

# --- table ----------------------------------------------------------------------------------------


def test_table_by_hand():
    runs = runs_of(full=[90.0, 92.0, 94.0], scl=[75.0, 74.0, 79.0], an=[70.0, 72.0, 74.0])
    table = results.table(runs)
    assert list(table.index) == ["an", "scl", "full"]  # the order of METHODS
    assert list(table["mAP"]) == pytest.approx([72, 76, 92])
    # deviations of 75, 74, 79 from 76: -1, -2, 3; squares sum to 14; / 2 seeds - 1
    assert list(table["std"]) == pytest.approx([2, math.sqrt(7), 2])
    assert list(table["seeds"]) == [3, 3, 3]
    # paired gains of scl: 5, 2, 5: mean 4, squares of 1, -2, 1 sum to 6
    assert list(table["gain"]) == pytest.approx([0, 4, 20])
    assert list(table["gain_std"]) == pytest.approx([0, math.sqrt(3), 0])
    assert list(table["gap_closed"]) == pytest.approx([0, 100 * 4 / 20, 100])
    assert list(table["OF1"]) == pytest.approx([62, 66, 82])  # fake_run: mAP - 10
    assert list(table["CF1"]) == pytest.approx([62, 66, 82])
    assert list(table["train_seconds"]) == pytest.approx([41, 41, 41])  # 40 + seed


def test_gains_are_paired_by_the_seeds_that_both_have():
    runs = runs_of(an=[70.0, 80.0], cl=[None, 83.0, 99.0])
    row = results.table(runs).loc["cl"]
    assert row["gain"] == pytest.approx(3.0)
    assert math.isnan(row["gain_std"]) and row["seeds"] == 2


@pytest.mark.parametrize(
    "scores, method",
    [
        ({"an": [70.0]}, "an"),
        ({"an": [70.0], "scl": [75.0]}, "scl"),
        ({"scl": [75.0], "full": [90.0]}, "scl"),
        ({"an": [70.0], "scl": [75.0], "full": [69.0]}, "scl"),
    ],
    ids=["one run", "no full", "no an", "full below an"],
)
def test_without_a_gap_nothing_is_closed(scores, method):
    runs = runs_of(**scores)
    assert math.isnan(results.table(runs).loc[method, "gap_closed"])
    assert "%" not in readable_table(runs).loc[methods.title_of(method), "gap closed"]
    results.claim_sentences(runs)  # says something, whatever is missing


def test_methods_that_this_version_does_not_know_come_last():
    runs = runs_of(an=[70.0], full=[90.0])
    role = fake_run("an", 0, 71.0) | {"method": "role"}
    assert list(results.table([role, *runs]).index) == ["an", "full", "role"]


def test_per_class_and_learning_curves():
    runs = runs_of(an=[70.0, 72.0], scl=[75.0, 76.0])
    runs[0]["AP"]["cloud"], runs[1]["AP"]["cloud"] = 10.0, 20.0
    for run in runs:
        run["AP"]["skull"] = None  # a class without a positive
    ap = results.per_class(runs)
    assert list(ap.columns) == ["an", "scl"]
    assert ap.loc["cloud", "an"] == pytest.approx(15)
    assert ap.loc["skull"].isna().all()
    curves = results.histories(runs)
    assert sorted(set(curves["epoch"])) == [4, 8, 12, 16]  # fake_run evaluates every fourth
    assert len(curves) == 4 * len(runs)


# --- verdicts -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "scl, says",
    [
        ([74.0, 74.5, 75.0], "SCL beats AN: +4.5 ± 0.5 mAP over 3 seeds."),
        ([68.0, 67.5, 67.0], "SCL does not beat AN here: -2.5 ± 0.5 mAP over 3 seeds."),
        # +2, -1, +2: mean 1, standard deviation 1.73, two standard errors 2
        ([72.0, 69.0, 72.0], "Not settled by 3 seeds: SCL against AN, +1.0 ± 1.7 mAP."),
        ([70.0, 70.0, 70.0], "Not settled by 3 seeds: SCL against AN, +0.0 ± 0.0 mAP."),
        ([74.0], "Not settled: SCL against AN, +4.0 mAP for one seed; spread needs two."),
        ([None, None, None, 74.0], "No verdict on SCL against AN: they have no seed in common."),
        ([], "No verdict on SCL against AN: no run of SCL."),
    ],
)  # fmt: skip
def test_a_verdict_says_plainly_what_holds(scl, says):
    assert results.compare_methods(runs_of(an=[70.0, 70.0, 70.0], scl=scl), "scl", "an") == says


def test_two_standard_errors_are_the_rule():
    # differences d, d, d + 3: standard deviation 3 / sqrt(3), two standard errors exactly 2
    for lowest, settled in ((1.01, True), (0.99, False)):
        runs = runs_of(an=[70.0] * 3, cl=[70 + lowest, 70 + lowest, 73 + lowest])
        assert ("beats" in results.compare_methods(runs, "cl", "an")) is settled


def test_all_verdicts():
    sentences = results.claim_sentences(fake_runs())
    starts = [
        "Full beats AN",
        "CL beats AN",
        "SCL beats AN",
        "SCL beats CL",
        "EN beats AN",
        "EN + CL beats EN:",
        "EN + SCL beats EN:",
        "EN + SCL beats EN + CL",
        "The best method with SCL is EN +",
    ]
    for sentence, start in zip(sentences, starts, strict=True):
        assert sentence.startswith(start)


def test_the_best_spatial_method_and_its_share_of_the_gap():
    runs = runs_of(an=[70.0, 70.0], scl=[75.0, 75.0], cl=[76.0, 76.0], full=[90.0, 90.0])
    *_, last = results.claim_sentences(runs)
    assert last == (
        "The best method with SCL is SCL: 75.0 mAP, +5.0 against AN; it closes 25 % of the gap "
        "between AN and Full. CL is better (76.0)."
    )
    *_, last = results.claim_sentences(runs_of(an=[70.0], scl=[75.0]))
    assert last.endswith("How much of the gap it closes needs runs of AN and of Full, above AN.")
    *_, last = results.claim_sentences(runs_of(an=[70.0], cl=[75.0]))
    assert last == "No verdict on the best method with SCL: no run of one."


def test_a_task_without_a_gap_is_not_worth_solving():
    first, *_ = results.claim_sentences(runs_of(an=[70.0, 71.0, 72.0], full=[69.0, 70.1, 71.0]))
    assert first.startswith("Full does not beat AN here") and "not worth solving" in first


# --- where runs come from -------------------------------------------------------------------------


def test_results_are_the_unmodified_finished_runs(results):  # the fixture: an empty folder

    runs = [r for r in fake_runs(methods=("scl", "an"), seeds=(1, 0))]
    write_results(runs)
    group = results / "scenes-cpu"
    for name, change in {
        "an-seed2-0123abcd": {},  # a modified configuration
        "an-seed3": {"config": {**runs[0]["config"], "lr": 1.0}},  # of other defaults than today's
        "other-seed0": {},
    }.items():
        (group / name).mkdir()
        (group / name / "metrics.json").write_text(json.dumps(runs[0] | change))
    (group / "cl-seed0").mkdir()
    (group / "cl-seed0" / "metrics.json").write_text('{"mAP": 7')  # torn
    found = [(r["method"], r["seed"]) for r in load_runs("results", "scenes", "cpu")]
    assert found == [("an", 0), ("an", 1), ("scl", 0), ("scl", 1)]


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("results", "scenes", "cpu"), "reproduce.sh --dataset scenes --profile cpu"),
        (("reference", "voc2007", "cpu"), "python -m spcl_lib reference --dataset voc2007"),
        (("refrence", "scenes", "cpu"), "Did you mean 'reference'"),
        (("results", "scene", "cpu"), "Did you mean 'scenes'"),
        (("results", "scenes", "gpu"), "Valid: cpu, smoke"),
    ],
)
def test_no_runs_or_unknown_names_give_one_message(results, reference, arguments, message):

    with pytest.raises(UserError, match=re.escape(message)):
        load_runs(*arguments)


def test_reference_keeps_what_the_tables_need(results, reference):
    from spcl_lib.analysis.results import load_runs

    assert references() == []
    write_results(fake_runs(seeds=(2, 0, 1)))
    file = save_reference("scenes", "cpu")
    assert file == reference / "scenes-cpu.json" and references() == [("scenes", "cpu")]
    assert [f.name for f in reference.iterdir()] == ["scenes-cpu.json"]  # nothing left beside it
    first = file.read_bytes()
    assert save_reference("scenes", "cpu").read_bytes() == first
    assert len(first.splitlines()) == 5 + 21 and len(first) < 70_000

    kept, here = load_runs("reference", "scenes", "cpu"), load_runs("results", "scenes", "cpu")
    assert readable_table(kept).equals(readable_table(here)) and claim_sentences(
        kept
    ) == claim_sentences(here)
    for old, new in zip(here, kept, strict=True):
        for name in ("config", "machine", "finished", "method", "seed", "classes"):
            assert new[name] == old[name]
        assert new["mAP"] == pytest.approx(old["mAP"], abs=1e-4)


def test_a_damaged_reference_is_named(reference):
    reference.mkdir()
    (reference / "scenes-cpu.json").write_text('{"runs": [')
    with pytest.raises(UserError, match="scenes-cpu.json.*damaged"):
        results.load_runs("reference", "scenes", "cpu")


@pytest.mark.parametrize("damage", [lambda t: t.replace("76.6", "67.6"), lambda t: t[:-9],
                                    lambda t: t.replace("at_0.5", "at_0_5"),
                                    lambda t: "[" * 50_000, lambda t: "[]"])  # fmt: skip
def test_damage_in_a_reference_file_is_named(damage, results, reference):
    write_results(fake_runs())
    file = save_reference("scenes", "cpu")
    file.write_text(damage(file.read_text()))
    with pytest.raises(UserError, match="scenes-cpu.json' is damaged"):
        load_runs("reference", "scenes", "cpu")
