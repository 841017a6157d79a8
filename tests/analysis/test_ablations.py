"""The ablations: what they vary, what is kept of them, and what their sentences say."""

import pytest

from spcl_lib.analysis import ablations as kept
from spcl_lib.runs.ablation import Ablation, ablation_configs, ablations
from spcl_lib.runs.profiles import PROFILES
from spcl_lib.runs.run import run
from spcl_lib.runs.settings import make_config
from spcl_lib.runs.store import run_folder
from spcl_lib.system.errors import UserError
from spcl_lib.viewer import result_figures


@pytest.mark.parametrize(
    ("dataset", "profile"), [(d, p) for d in ("scenes", "voc2007", "coco18") for p in PROFILES[d]]
)
def test_every_value_is_another_valid_configuration(dataset, profile):
    found = ablations(dataset, profile, 800)
    assert ("grid" in found) == (profile == "frozen")
    for name, ablation in found.items():
        configs = [c for cs in ablation_configs(ablation, dataset, profile).values() for c in cs]
        assert len(set(configs)) == len(configs) >= 3 * 2 * len(ablation.methods), name


def test_one_value_is_the_usual_one_and_shares_its_runs():
    for dataset, profile in (("scenes", "cpu"), ("voc2007", "frozen")):
        for name, ablation in ablations(dataset, profile, 800).items():
            usual = [m for (_, m), runs in ablation_configs(ablation, dataset, profile).items()
                     if runs[0] == make_config(dataset, m, 0, profile)]  # fmt: skip
            assert usual == list(ablation.methods), name


def test_the_number_of_images_falls_to_an_eighth():
    values = ablations("scenes", "cpu", 1000)["train_images"].values
    assert list(values) == ["125", "250", "500", "1000"]
    assert values["125"] == {"train_images": 125} and values["1000"] == {}


CONTENT = {
    "dataset": "scenes", "profile": "cpu",
    "ablations": {"momentum": {"axis": "momentum"}, "draw": {"axis": "rule"}},
    "rows": [
        {"ablation": a, "value": v, "method": m, "usual": u, "mAP": scores}
        for a, v, m, u, scores in (
            ("momentum", "0.5", "scl", False, [70.0, 71.0, 72.0]),
            ("momentum", "0.8", "scl", True, [69.0, 70.1, 70.9]),
            ("momentum", "0.5", "en_scl", False, [70.0, 70.0, 70.0]),
            ("momentum", "0.8", "en_scl", True, [71.0, 70.0, 71.0]),
            ("draw", "uniform", "an", True, [60.0, 61.0, 62.0]),
            ("draw", "uniform", "scl", True, [62.0, 63.1, 63.9]),
            ("draw", "uniform", "en_scl", True, [60.0, 64.0, 59.0]),
            ("draw", "uniform", "full", True, [70.0, 71.1, 72.0]),
        )
    ],
}  # fmt: skip


def test_sentences_name_the_best_value_and_say_what_is_settled():
    scl, en_scl = kept.ablation_sentences(CONTENT, "momentum")
    assert scl == ("SCL: from the worst value to the best, mAP changes by 1.0; 0.5 is the best, "
                   "+1.0 ± 0.1 against our 0.8.")  # fmt: skip
    assert en_scl.endswith("mAP changes by 0.7; 0.8 is the best.")


def test_with_an_the_sentences_are_gains_over_it():
    scl, en_scl, full = kept.ablation_sentences(CONTENT, "draw")
    assert scl == "SCL against AN: +2.0 ± 0.1 at uniform."
    assert en_scl == "EN + SCL against AN: +0.0 ± 3.0 at uniform (not settled)."
    assert full == "Full against AN: +10.0 ± 0.1 at uniform."


def test_the_table_and_the_figure_mark_our_value():
    table = kept.ablation_table(CONTENT, "momentum")
    assert list(table.columns) == ["0.5", "0.8 *"] and table.loc["SCL", "0.5"] == "71.0 ± 1.0"
    axes = result_figures.ablation(CONTENT, "momentum").axes[0]
    assert [t.get_text() for t in axes.get_xticklabels()] == ["0.5", "0.8"]
    assert [line.get_label() for line in axes.get_lines()].count("SCL") == 1
    dashed = [line for line in axes.get_lines() if line.get_linestyle() == "--"]
    assert list(dashed[0].get_xdata()) == [1, 1]


def test_runs_are_collected_kept_and_read_again(spcl, results, reference, tiny, monkeypatch):
    few = {"weight": Ablation("How much?", "lambda", ("scl",),
                              {"1": {}, "0.1": {"weight": 0.1}})}  # fmt: skip
    monkeypatch.setattr("spcl_lib.reproduce.studies.ablations", lambda *about: few)
    monkeypatch.setitem(PROFILES["scenes"], "smoke", tiny)
    asked = ("ablation", "all", "--profile", "smoke", "--seeds", 0)
    plan, cost = spcl(*asked, "--list").out.splitlines()
    assert plan == "2 of 2 runs to do" and cost.startswith("one run: ")
    with pytest.raises(UserError, match="scl-seed0.* has not finished; make it with: python"):
        kept.collect_ablations(few, "scenes", "smoke", [0])
    with pytest.raises(UserError, match="no kept ablations of scenes.*ablation all"):
        kept.load_ablations("scenes", "smoke")
    for settings in few["weight"].values.values():
        run(make_config("scenes", "scl", 0, "smoke", settings))
    outcome = spcl(*asked, "--keep")
    assert outcome.status == 0 and "How much?" in outcome.out, outcome.err
    content = kept.load_ablations("scenes", "smoke")
    assert [(r["value"], r["usual"]) for r in content["rows"]] == [("1", True), ("0.1", False)]
    assert run_folder(make_config("scenes", "scl", 0, "smoke")).is_dir()
    (reference / "ablations-scenes-smoke.json").write_text("{")
    with pytest.raises(UserError, match="ablations-scenes-smoke.json' is damaged"):
        kept.load_ablations("scenes", "smoke")


def test_one_ablation_that_is_kept_leaves_the_others(monkeypatch, tmp_path):
    """`ablation momentum --keep` removed the eight others from the file."""
    monkeypatch.setattr(kept.paths, "reference", lambda: tmp_path)
    whole = CONTENT | {"seeds": [0, 1, 2], "machine": {}}
    kept.save_ablations(whole)
    changed = [row | {"mAP": [1.0, 2.0, 3.0]} for row in whole["rows"] if row["ablation"] == "draw"]
    part = whole | {"ablations": {"draw": {"axis": "rule"}}, "rows": changed}
    kept.save_ablations(part)
    found = kept.load_ablations("scenes", "cpu")
    assert found["ablations"] == whole["ablations"]
    assert found["rows"] == whole["rows"][:4] + changed
    with pytest.raises(UserError, match=r"same --seeds, not \[0\]"):
        kept.save_ablations(part | {"seeds": [0]})
