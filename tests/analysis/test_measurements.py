"""Finished runs are measured, and what has been kept is one tidy table."""

import pandas as pd
import pytest
import torch
from small_voc import voc_ids, write_annotations

from spcl_lib.analysis import measurements, recovery, visibility
from spcl_lib.analysis.measurements import COLUMNS, kept, measure
from spcl_lib.runs.run import run
from spcl_lib.runs.settings import make_config
from spcl_lib.runs.store import Run


@pytest.fixture
def configs(results, tiny):
    """Finished runs of AN, CL and SCL with small crops, and of AN with large ones."""
    cases = [("an", 0.1), ("cl", 0.1), ("scl", 0.1), ("an", 0.5)]
    found = [make_config("scenes", m, 0, "smoke", tiny | {"scale_min": s}) for m, s in cases]
    for config in found:
        run(config)
    return found


def test_everything_is_measured_once_for_the_smallest_crops(configs, tmp_path):
    found = measure(configs)
    assert list(found.columns) == list(COLUMNS) and set(found.seed) == {0}
    assert not found.duplicated(list(COLUMNS[:-1])).any() and not found.value.isna().any()
    assert set(found[found.measure == "mAP"].scale) == {0.1, 0.5}
    wrong = found[found.measure == "wrong"].set_index("scale").value
    assert list(wrong.index) == list(measurements.SCALES) and wrong[1.0] == 0 < wrong[0.05]
    ranked = found[found.measure == "AUROC"]
    assert set(zip(ranked.method, ranked.source, ranked["read"], strict=True)) == {
        ("an", "label", "whole"), ("cl", "average", "whole"), ("scl", "heatmap", "whole"),
        ("scl", "heatmap", "view"), *(("scl", "heatmap", f"e={e}") for e in ("0.25", "0.5", "1")),
    }  # fmt: skip
    assert len(ranked) == 7 * 3 * 3  # targets, groups, limits
    placed = found[found.measure == "pointing"]
    assert set(zip(placed.method, placed.source, placed.split, strict=True)) == {
        *((m, "network", s) for m in ("an", "cl", "scl") for s in ("train", "report")),
        ("scl", "heatmap", "train"),
    }
    with (tmp_path / "crop-recovery-scenes-smoke.csv").open("w") as file:
        file.write("# how it was made\n")
        found.to_csv(file, index=False)
    pd.testing.assert_frame_equal(kept(folder=tmp_path), found, check_dtype=False)


def test_the_numbers_are_those_of_the_parts(configs):
    """Recomputed for one source: the heatmaps read through the same views."""
    config, found = configs[2], measure(configs)
    loaded = Run.of(config).load(objects=True)
    count, target, fraction = len(loaded.train), [], []
    for i in range(measurements.VIEWS):
        views = visibility.viewed_crops(count, config, 0, i)
        every = torch.arange(count)
        target.append(recovery.presence_in_views(loaded.bank, every, views, loaded.grid))
        fraction.append(visibility.visible_fraction(loaded.train.regions(every), views))
    asked = ~loaded.observed.repeat(measurements.VIEWS, 1)
    expected = recovery.score(torch.cat(target), torch.cat(fraction) >= 0.1, asked)
    (row,) = found.query(
        "source == 'heatmap' and read == 'view' and group == 'unlabelled' and least == 0.1 "
        "and measure == 'AUROC'"
    ).value
    assert row == pytest.approx(expected["AUROC"])


def test_voc_is_measured_by_its_boxes(voc, results):
    """The box covers the left third: the columns of 16 whose centres are left of it, 5 of 16."""
    for split, side in (("train", 8), ("val", 24)):
        objects = {i: [("person", 0, 0, side, 18)] for i in voc_ids()[split]}
        write_annotations(voc / "VOCdevkit" / "VOC2007", objects)
    untrained = {
        "backbone": "small_resnet", "weights": "none", "image_side": 16, "crop_side": 16,
        "eval_side": 16, "epochs": 2, "frozen": 0, "bank_size": 4,
    }  # fmt: skip
    config = make_config("voc2007", "an", 0, "smoke", untrained)
    run(config, voc)
    found = measure([config], voc).query("measure == 'iou_whole' and split == 'train'")
    assert set(found.query("group == 'all'").value) == {100 * 5 / 16}


def test_what_has_been_kept_covers_the_data_sets_of_the_notebook():
    found = kept()
    assert set(zip(found.dataset, found.profile, strict=True)) == {
        ("scenes", "cpu"), ("voc2007", "cpu"), ("voc2007", "frozen"),
    }  # fmt: skip
    assert not found.duplicated(list(COLUMNS[:-1])).any() and found.value.between(0, 100).all()
