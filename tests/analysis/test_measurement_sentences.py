"""Tables and sentences about made-up findings agree with the numbers and change with them."""

import json

import pytest
from fake_measurements import fake_measurements

from spcl_lib.analysis import measurement_sentences, measurement_tables, statistics
from spcl_lib.analysis.measurement_sentences import (
    HEADLINES,
    compare_supervision,
    crop_scale_sentences,
    localisation_sentences,
    recovery_claim,
    recovery_sentences,
    sentences_on_ours,
)


def said(sentences, *parts):
    """The one sentence that has all parts."""
    (found,) = [s for s in sentences if all(part in s for part in parts)]
    return found


# --- choosing -------------------------------------------------------------------------------------


def test_values_and_differences_by_seed():
    rows = [{"seed": 2, "x": 5.0}, {"seed": 0, "x": 1.0}, {"seed": 1, "x": None}]
    others = [{"seed": 0, "x": 3.0}, {"seed": 2, "x": 4.5}, {"seed": 1, "x": 0.0}]
    assert measurement_tables.values(rows, "x") == [1.0, 5.0]
    assert measurement_tables.differences(rows, others, "x") == [-2.0, 0.5]
    assert statistics.mean_and_spread([1.0, 2.0, 6.0]) == "3.0 ± 2.6"
    assert statistics.mean_and_spread([1.0], "+") == "+1.0"
    assert statistics.mean_and_spread([]) == "-"


# --- sentences ------------------------------------------------------------------------------------


def test_the_claim_follows_the_numbers():
    assert "holds here" in recovery_claim(fake_measurements())
    assert "does not hold" in recovery_claim(fake_measurements(scl=40.0))
    assert "does not hold" in recovery_claim(fake_measurements(cl=95.0))
    assert "not settled" in recovery_claim(fake_measurements(seeds=(0,)))
    without_cl = fake_measurements(sources=("an", "scl"))
    assert "not settled" in recovery_claim(without_cl)
    assert "not tested" in recovery_claim(fake_measurements(sources=("an", "cl")))
    without_scl = fake_measurements(sources=("an", "cl", "en_scl"))
    assert "holds here" in recovery_claim(without_scl)  # EN + SCL instead


def test_sources_are_compared_with_sign_margin_and_spread():
    wide, better = compare_supervision(fake_measurements(), "labelled", "AUROC", "scl", "an")
    assert better == 1
    assert "beats the raw label (AN) by a wide margin: 90.1 ± 0.1 against 50.1 ± 0.1" in wide
    assert "difference +40.0 ± 0.0" in wide
    found = fake_measurements(scl=53.0)
    close, better = compare_supervision(found, "labelled", "AUROC", "scl", "an")
    assert better == 1 and "wide" not in close
    worse, better = compare_supervision(fake_measurements(scl=30.0), "all", "AP", "scl", "an")
    assert better == -1 and "does worse than the raw label (AN) by a wide margin" in worse
    same, better = compare_supervision(fake_measurements(scl=50.0), "all", "AP", "scl", "an")
    assert better == 0 and "not settled" in same
    found = fake_measurements(sources=("scl",))
    none, better = compare_supervision(found, "all", "AP", "scl", "cl")
    assert better == 0 and "no verdict" in none


def test_a_lower_calibration_error_is_better():
    found = fake_measurements()  # the higher the AUROC, the lower the made-up error
    text, better = compare_supervision(found, "all", "ECE", "scl", "an")
    assert better == 1 and "beats" in text and "-4.0" in text
    _, better = compare_supervision(found, "all", "ECE", "an", "scl")
    assert better == -1


def test_all_verdicts_of_a_whole_table():
    sentences = recovery_sentences(fake_measurements())
    assert said(sentences, "the label is wrong for 22.6 ± 0.1 %", "100 % on, for 0.1 ± 0.1 %")
    assert said(sentences, "target of CL corrects 0.1 ± 0.1 %", "spoils 4.0 ± 0.0 %")
    assert said(sentences, "target of EN + SCL corrects 70.1")
    assert said(sentences, "labelled class in the view? (AUROC)", "the whole heatmap (SCL)")
    assert sentences[1] == recovery_claim(fake_measurements())
    assert "target of SCL corrects" in sentences[HEADLINES - 1]


def test_the_gain_over_scales_grows_or_not():
    sentences = crop_scale_sentences(fake_measurements())
    (scl,) = [s for s in sentences if s.startswith("SCL's gain")]
    assert "grows as crops get smaller: +0.0 ± 0.0 mAP with crops from 100 %" in scl
    assert scl.endswith("+3.8 ± 0.0 from 5 %.")
    assert "neither grows nor shrinks" in said(sentences, "Full's gain")
    found = fake_measurements()
    found["crop_scale"] = [r for r in found["crop_scale"] if r["scale_min"] == 0.1]
    assert "no verdict" in said(crop_scale_sentences(found), "Full's gain")


def test_localisation_is_compared_with_an():
    sentences = localisation_sentences(fake_measurements())
    assert said(sentences, "point at objects that were never labelled in 54.1 ± 0.1 %", "12.0")
    assert said(sentences, "SCL's heatmaps lie on training images' objects better than AN's (poin")
    assert said(sentences, "SCL's maps find objects in new images better than AN's (IoU): 32.1")
    found = fake_measurements()
    for row in found["localisation"]:
        row["iou"] = 10.0 if row["method"] == "scl" else row["iou"]
    assert said(localisation_sentences(found), "in new images less well than AN's (IoU)")
    (none,) = localisation_sentences(fake_measurements(sources=("an", "cl"), methods=("an", "cl")))
    assert "No verdict" in none


def test_the_leagues_best_are_compared_with_scl():
    found = fake_measurements(sources=("an", "scl", "gr_scl"), gr_scl=95.0)
    found["localisation"] += [
        row | {"method": "gr_scl"} for row in found["localisation"] if row["method"] == "scl"
    ]
    sentences = sentences_on_ours(found)
    assert len(sentences) == 3  # nothing on REN + SCL, which was not measured
    assert said(sentences, "(AUROC)", "through the view (GR + SCL)", "through the view (SCL)")
    for row in found["localisation"]:
        row["iou"] = row["seed"] + (50.0 if row["method"] == "gr_scl" else 10.0)
    assert said(sentences_on_ours(found), "GR + SCL's maps", "than SCL's (IoU): 51.0", "+40.0")
    assert sentences_on_ours(fake_measurements()) == []


# --- tables ---------------------------------------------------------------------------------------


def test_tables_by_hand():
    found = fake_measurements()
    wrong = measurement_tables.wrongness_table(found)
    assert list(wrong.index) == ["1", "0.5", "0.25", "0.1", "0.05"]
    assert wrong.loc["0.5", "label is wrong"] == "12.6 ± 0.1"
    sources = measurement_tables.source_table(found, "labelled")
    assert sources.loc["heatmap through the view (SCL)", "AUROC"] == "90.1 ± 0.1"
    assert sources.loc["raw label (AN)", "AP of wrong labels"] == "20.2 ± 0.2"
    assert "AP of wrong labels" not in measurement_tables.source_table(found, "all")
    assert list(measurement_tables.limit_table(found).columns) == [
        "any pixel", "10 % visible", "50 % visible"
    ]  # fmt: skip
    decisions = measurement_tables.decision_table(found)
    assert decisions.loc["SCL"].tolist() == ["60.1 ± 0.1", "4.0 ± 0.0"]
    scales = measurement_tables.crop_scale_table(found)
    assert list(scales.columns) == ["1", "0.5", "0.25", "0.1", "0.05"]
    assert scales.loc["SCL", "1"] == "70.3 ± 0.3"
    report = measurement_tables.localisation_table(found, "report")
    assert list(report.index) == ["AN, network", "CL, network", "SCL, network", "EN + SCL, network",
                                  "Full, network", "chance"]  # fmt: skip
    assert report.loc["SCL, network", "pointing, all"] == "54.1 ± 0.1"
    assert report.loc["chance", "IoU, all"] == "4.0"
    train = measurement_tables.localisation_table(found, "train")
    assert "SCL, heatmaps" in train.index and "pointing, unlabelled" in train.columns


def test_where_they_come_from_is_told():
    found = fake_measurements()
    assert len(measurement_tables.provenance(found)) == 3
    found["about"] |= {"settings": {"epochs": 2}, "missing": ["cl seed 1"]}
    text = "\n".join(measurement_tables.provenance(found))
    assert "NOT the profile's settings: epochs=2" in text
    assert "not finished: cl seed 1\nmake: python -m x" in text


@pytest.mark.parametrize("seeds", [(0,), (0, 1, 2)])
@pytest.mark.parametrize("sources", [("an",), ("an", "en_scl_whole", "en_scl")])
def test_whatever_is_missing_there_are_sentences_and_tables(seeds, sources):
    methods = ("an", "full") if len(sources) == 1 else ("an", "en_scl")
    found = json.loads(json.dumps(fake_measurements(sources, methods, seeds)))
    for part in (recovery_sentences, crop_scale_sentences, localisation_sentences):
        assert all(sentence.endswith(".") for sentence in part(found))
    for group in measurement_tables.QUESTIONS:
        assert len(measurement_tables.source_table(found, group)) >= 1
    for split in ("train", "report"):
        assert len(measurement_tables.localisation_table(found, split)) >= 2
    measurement_tables.decision_table(found)


def test_the_first_source_with_heatmaps_is_spoken_of():
    assert measurement_sentences.heatmap_source(fake_measurements()) == "scl"
    found = fake_measurements(sources=("an", "en_scl"))
    assert measurement_sentences.heatmap_source(found) == "en_scl"
    assert measurement_sentences.heatmap_source(fake_measurements(sources=("an", "cl"))) == ""
