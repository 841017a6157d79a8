"""Finished runs are loaded, measured once, and kept."""

import json
from dataclasses import replace

import pytest
import torch
from small_coco import write_coco
from small_voc import voc_ids, write_annotations

from spcl_lib.analysis import measurement_files, measurements, recovery, visibility
from spcl_lib.analysis.measurement_files import load_measurements
from spcl_lib.analysis.measurement_sentences import recovery_sentences
from spcl_lib.data.objects import Boxes
from spcl_lib.evaluate import evaluate
from spcl_lib.runs.ablation import crop_scale_configs
from spcl_lib.runs.run import run
from spcl_lib.runs.settings import make_config
from spcl_lib.runs.splits import load_splits
from spcl_lib.runs.store import Run, run_folder
from spcl_lib.system.errors import UserError

SETTINGS = {"snapshots": 6}


@pytest.fixture
def runs(results, tiny):
    """The finished runs of AN, CL and SCL with crops from 0.1, two seeds, and their settings."""
    settings = tiny | SETTINGS
    configs = crop_scale_configs("scenes", "smoke", [0, 1], [0.1], ["an", "cl", "scl"], settings)
    for config in configs:
        run(config)
    return configs, settings


def measured(settings, seeds=(0, 1), source="results"):
    return load_measurements(source, "scenes", "smoke", seeds, 0.1, settings)


# --- loading a run --------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["an", "scl", "full"])
def test_a_loaded_run_predicts_what_it_predicted(method, results, tiny):
    config = make_config("scenes", method, 0, "smoke", tiny)
    with pytest.raises(UserError, match="has not finished; make it with: python"):
        Run.of(config).load()
    metrics = run(config)
    loaded = Run.of(config).load()
    assert evaluate(loaded.model, loaded.report, config.eval_side)["mAP"] == metrics["mAP"]
    assert (loaded.bank is None) == (method != "scl")
    assert loaded.observed.sum(1).unique().tolist() == [1]  # single labels, for Full too
    assert loaded.grid == 4 and loaded.folder == run_folder(config)
    (loaded.folder / "weights.safetensors").write_bytes(b"torn")
    with pytest.raises(UserError, match="weights.safetensors' cannot be read"):
        Run.of(config).load()


# --- measuring ------------------------------------------------------------------------------------


def test_everything_is_measured_on_the_runs_that_are_finished(runs, reference):
    configs, settings = runs
    found = measured(settings)
    about = found["about"]
    assert about["methods"] == ["an", "cl", "scl"] and about["seeds"] == [0, 1]
    assert about["missing"] == [
        f"{m} seed {s}" for m in ("en_scl", "gr_scl", "ren_scl", "full") for s in (0, 1)
    ]
    assert about["settings"]["epochs"] == 3 and "scale_min" not in about["settings"]
    assert {r["source"] for r in found["sources"]} == {"an", "cl", "scl", "scl_whole"}
    assert len(found["sources"]) == 4 * 2 * 3 * 3  # sources, seeds, groups, limits
    assert len(found["wrongness"]) == 5 * 2
    followed = [r for r in found["decisions"] if r["images"] == "followed"]
    assert {(r["method"], r["epoch"]) for r in followed} == {
        (m, e) for m in ("cl", "scl") for e in (1, 2, 3)
    }
    kinds = {(r["method"], r["maps"], r["split"]) for r in found["localisation"]}
    assert kinds == {
        *((m, "network", s) for m in ("an", "cl", "scl") for s in ("train", "report")),
        ("scl", "heatmaps", "train"),
    }
    assert {(r["method"], r["seed"]) for r in found["crop_scale"]} == {
        (c.method, c.seed) for c in configs
    }
    assert found["crop_scale"][0]["mAP"] == pytest.approx(
        Run.of(configs[0]).load().metrics["mAP"], abs=1e-4
    )
    assert len(recovery_sentences(found)) > 5


def test_the_numbers_are_those_of_the_parts(runs):
    """Recomputed by hand for one source: the heatmaps read through the same views."""
    configs, settings = runs
    found = measured(settings)
    loaded = Run.of(configs[4]).load()  # SCL, seed 0
    many = measurements.watch(loaded.train, loaded.observed, loaded.config, measurements.VIEWS)
    assert len(many.indices) == 48 * measurements.VIEWS
    target = recovery.presence_in_views(loaded.bank, many.indices, many.views, loaded.grid)
    expected = recovery.score_target(target, many.fraction, many.observed)
    kept = [r for r in found["sources"] if r["source"] == "scl" and r["seed"] == 0]
    for row, should in zip(kept, expected, strict=True):
        assert {k: row[k] for k in should} == {
            k: pytest.approx(v, abs=1e-4) if isinstance(v, float) else v for k, v in should.items()
        }
    wrong = 100 * float((~visibility.in_view(many.fraction[many.observed])).float().mean())
    (row,) = [r for r in found["wrongness"] if (r["seed"], r["scale_min"]) == (0, 0.1)]
    assert row["wrong"] == pytest.approx(wrong, abs=1e-3)
    end = [r for r in found["decisions"]
           if (r["method"], r["seed"], r["images"]) == ("scl", 0, "all")]  # fmt: skip
    assert [r["fall"] for r in end] == sorted(recovery.FALLS)
    assert end[0]["wrong"] + end[0]["right"] == 48 * measurements.VIEWS


def test_views_are_those_of_the_training_and_differ_between_seeds(results, tiny):
    config = make_config("scenes", "scl", 0, "smoke", tiny | {"scale_min": 0.5})
    data, _ = load_splits(config, None)
    observed = torch.zeros_like(data.labels)
    one = measurements.watch(data, observed, config, 2)
    other = measurements.watch(data, observed, replace(config, seed=1), 2)
    area = (one.views.boxes[:, 2:] - one.views.boxes[:, :2]).prod(1)
    assert area.min() >= 0.5 - 1e-5
    assert not torch.equal(one.views.boxes, other.views.boxes)
    assert not torch.equal(one.views.boxes[:48], one.views.boxes[48:])


def test_boxes_do_where_there_are_no_masks_and_without_either_it_says_so(runs, monkeypatch):
    configs, _ = runs
    train, report = load_splits(configs[0], None)
    image, label = train.labels.nonzero(as_tuple=True)
    boxes = Boxes(image, label, torch.tensor([[0.2, 0.2, 0.8, 0.8]]).repeat(len(image), 1))
    boxed = replace(train, class_map=None, boxes=boxes)
    monkeypatch.setattr(measurements, "load_splits", lambda *_, **__: (boxed, report))
    tables = measurements.measure(configs[:1] + configs[4:5])
    assert tables["wrongness"] and tables["localisation"]
    assert all(0 <= r["wrong"] <= 100 for r in tables["wrongness"])
    bare = replace(train, class_map=None)
    monkeypatch.setattr(measurements, "load_splits", lambda *_, **__: (bare, report))
    with pytest.raises(UserError, match="cannot be measured on scenes: .*neither masks nor boxes"):
        measurements.measure(configs)


# The way of real data sets, with a network from random weights.
UNTRAINED = {"backbone": "small_resnet", "weights": "none", "image_side": 16, "crop_side": 16,
             "eval_side": 16, "epochs": 2, "frozen": 0, "bank_size": 4, "snapshots": 3}  # fmt: skip


def measured_untrained(dataset, root):
    """Measurements of AN and SCL on a data set below `root`; of every table there are rows."""
    methods = ["an", "scl"]
    for config in crop_scale_configs(dataset, "smoke", [0], [0.1], methods, UNTRAINED):
        run(config, root)
    found = load_measurements("auto", dataset, "smoke", [0], 0.1, UNTRAINED, root)
    assert all(found[table] for table in ("wrongness", "crop_scale", *measurements.TABLES))
    recovery_sentences(found)
    return found


def test_voc_is_measured_by_its_boxes(voc, results):
    for split, side in (("train", 8), ("val", 24)):
        objects = {i: [("person", 0, 0, side, 18)] for i in voc_ids()[split]}
        write_annotations(voc / "VOCdevkit" / "VOC2007", objects)
    found = measured_untrained("voc2007", voc)
    (train,) = [r for r in found["localisation"] if r["group"] == "all" and r["method"] == "an"
                and r["split"] == "train"]  # fmt: skip
    # The box covers the left third: the columns of 16 whose centres are left of it, 5 of 16.
    assert train["iou_everywhere"] == pytest.approx(100 * 5 / 16)
    assert train["pairs"] == 3  # of 6 images, the odd ones


def test_coco_is_measured_by_its_masks(tmp_path, results):
    for split in ("train", "val"):
        write_coco(tmp_path, split)
    found = measured_untrained("coco2017", tmp_path)
    assert found["about"]["train_images"] == 4  # one of five has no object
    assert [r["wrong"] for r in found["wrongness"] if r["scale_min"] == 1.0] == [0.0]


def test_real_voc(real_part, results):
    found = measured_untrained("voc2007", real_part)
    assert found["about"]["train_images"] >= 20
    small = [r["wrong"] for r in found["wrongness"] if r["scale_min"] == 0.05]
    assert 0 < small[0] < 50


def test_real_coco(real_data, results):
    if not (real_data / "coco").is_dir():
        pytest.skip(f"needs {real_data / 'coco'}")
    found = measured_untrained("coco2017", real_data)
    small = [r["wrong"] for r in found["wrongness"] if r["scale_min"] == 0.05]
    assert 0 < small[0] < 60


# --- keeping --------------------------------------------------------------------------------------


def test_they_are_measured_once_and_again_only_if_a_run_changes(runs, monkeypatch):
    configs, settings = runs
    first = measured(settings)
    calls = []
    measure = measurements.measure
    monkeypatch.setattr(measurements, "measure", lambda *a: calls.append(a) or measure(*a))
    assert measured(settings) == first and not calls
    (other,) = crop_scale_configs("scenes", "smoke", [0], [0.5], ["an"], settings)
    run(other)  # of another scale: a new row of mAP, nothing to measure again
    again = measured(settings)
    assert len(again["crop_scale"]) == len(first["crop_scale"]) + 1 and not calls
    assert {k: again[k] for k in measurements.TABLES} == {k: first[k] for k in measurements.TABLES}
    file = run_folder(configs[0]) / "metrics.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"wall_seconds": 0.125}))
    measured(settings)
    assert len(calls) == 1


def test_the_reference_is_kept_small_and_read_again(runs, reference, monkeypatch):
    _, settings = runs
    found = measured(settings)
    file = measurement_files.keep_as_reference(found)
    assert file.name == "crop-recovery-scenes-smoke.json" and file.parent == reference
    assert file.stat().st_size < 60_000
    json.loads(file.read_text(), parse_constant=lambda name: pytest.fail(name))  # no NaN
    monkeypatch.setattr(measurements, "measure", lambda *_: pytest.fail("measured again"))
    assert load_measurements("reference", "scenes", "smoke") == found
    assert load_measurements("auto", "scenes", "smoke", scale=0.1) == found
    with pytest.raises(UserError, match="no finished run.*crops from 0.5"):
        load_measurements("auto", "scenes", "smoke", scale=0.5)  # not what the file is about
    about = found["about"] | {"scale_min": 0.25}
    measurement_files.keep_as_reference(found | {"about": about})
    assert load_measurements("auto", "scenes", "smoke")["about"] == about  # whatever there is


def test_what_is_missing_or_damaged_is_told_with_the_command(results, reference, tiny):
    with pytest.raises(UserError, match="no finished run of scenes .*ablation crop_scale") as error:
        load_measurements("auto", "scenes", "smoke", [0], 0.1, {"epochs": 2})
    assert "--profile smoke --scales 0.1 --seeds 0 --set epochs=2" in str(error.value)
    named = "no results are kept as 'crop-recovery-scenes-cpu.json'"
    with pytest.raises(UserError, match=named):
        load_measurements("reference", "scenes")
    with pytest.raises(UserError, match="unknown source 'refrence'. Did you mean 'reference'"):
        load_measurements("refrence", "scenes")
    reference.mkdir()
    for content in ("{", "[]"):
        (reference / "crop-recovery-scenes-cpu.json").write_text(content)
        with pytest.raises(UserError, match="is damaged"):
            load_measurements("auto", "scenes")
    run(make_config("scenes", "an", 0, "smoke", tiny | {"scale_min": 0.1, "snapshots": 64}))
    with pytest.raises(UserError, match="with running averages"):  # AN keeps none
        load_measurements("results", "scenes", "smoke", [0], 0.1, tiny)


def test_without_small_crops_the_main_jobs_runs_are_measured(results, reference, tiny, monkeypatch):
    run(make_config("scenes", "scl", 0, "smoke", tiny))
    monkeypatch.setattr(measurements, "measure", lambda done, root: {"sources": []})
    found = load_measurements("auto", "scenes", "smoke", [0], None, tiny)
    assert found["about"]["scale_min"] == make_config("scenes", "scl", 0, "smoke").scale_min
    with pytest.raises(UserError, match="crops from 0.1 of the image.*--scales 0.1"):
        load_measurements("auto", "scenes", "smoke", [1], None, tiny)


def test_the_command_measures_says_and_keeps(runs, reference, spcl):
    _, settings = runs
    outcome = spcl("recovery", "--profile", "smoke", "--seeds", 0, 1, "--keep", **settings)
    assert outcome.status == 0
    assert "The claim that SCL recovers" in outcome.out
    assert outcome.out.rstrip().endswith("crop-recovery-scenes-smoke.json")
    assert (reference / "crop-recovery-scenes-smoke.json").is_file()
