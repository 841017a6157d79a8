"""The measurements: a training step, the input of images, the heatmap bank and mAP."""

import sys
import time

import pytest
import torch

from spcl_lib import HeatmapBank, Views
from spcl_lib.methods import PAPER_METHODS
from spcl_lib.model import SpatialClassifier
from spcl_lib.runs import bench, speed
from spcl_lib.runs.settings import make_config

QUICK = {
    "backbone": "small_resnet", "weights": "none", "frozen": 0, "image_side": 32, "crop_side": 24,
    "batch": 4, "bank_size": 4, "train_images": 0, "eval_images": 0,
}  # fmt: skip


@pytest.fixture
def of_voc(voc, spcl, tmp_path, monkeypatch):
    """Calls `bench` on the tiny VOC."""
    monkeypatch.setenv("SPCL_CACHE", str(tmp_path / "cache"))

    def call(*arguments, **settings):
        data = "--dataset", "voc2007", "--data-root", voc, "--profile", "smoke"
        return spcl("bench", *arguments, *data, **(QUICK | settings))

    return call


@pytest.mark.parametrize("limit", ["20", "0"])
def test_steps_of_all_methods_are_timed_from_the_cache_and_from_files(of_voc, monkeypatch, limit):
    monkeypatch.setenv("SPCL_CACHE_GB", limit)
    outcome = of_voc("--steps", 1, "--only", "step")
    assert outcome.status == 0, outcome.err
    table, of_an, of_en_scl = outcome.out.split("where a step of ")
    lines = [line.split(maxsplit=1) for line in table.splitlines()]
    rows = dict(line for line in lines if line[0] in PAPER_METHODS)
    assert set(rows) == set(PAPER_METHODS)
    assert all(float(cell) > 0 for row in rows.values() for cell in row.split())
    assert "heatmaps" not in of_an and "update heatmaps" in of_en_scl
    shares = [float(line.split()[-2]) for line in of_en_scl.splitlines()[1:]]
    assert sum(shares) == pytest.approx(100, abs=0.5)


@pytest.mark.parametrize("trained", ["network", "head"])
def test_the_parts_of_a_step_are_timed_apart(voc, tmp_path, monkeypatch, trained):
    """Each part is made slow in turn, and only its own time grows."""
    monkeypatch.setenv("SPCL_CACHE", str(tmp_path / "cache"))
    size = {"eval_side": 32} if trained == "head" else {}
    config = make_config("voc2007", "en_scl", 0, "smoke", QUICK | size | {"trained": trained})
    slow = {
        "crop": (Views, "crop"),
        "network": (SpatialClassifier, "classify" if trained == "head" else "forward"),
        "read heatmaps": (HeatmapBank, "read"), "update heatmaps": (HeatmapBank, "update"),
        "optimizer": (torch.optim.AdamW, "step"), "gradient": (torch.Tensor, "backward"),
    }  # fmt: skip
    for part, (owner, name) in slow.items():
        call = getattr(owner, name)

        def slowly(*arguments, call=call, **options):
            time.sleep(0.2)
            return call(*arguments, **options)

        with monkeypatch.context() as patch:
            patch.setattr(owner, name, slowly)
            seconds = bench.step_parts(config, str(voc), "en_scl", 1, warm_up=1)
        assert max(seconds, key=seconds.get) == part and seconds[part] >= 0.2


@pytest.mark.parametrize("limit", ["20", "0"])
def test_the_input_is_timed_against_torchvision_and_the_training_step(
    of_voc, monkeypatch, tmp_path, limit
):
    monkeypatch.setenv("SPCL_CACHE_GB", limit)
    outcome = of_voc("--input", "--steps", 2)
    assert outcome.status == 0, outcome.err
    *_, said, head = outcome.out.splitlines()[:-5]
    rows = outcome.out.splitlines()[-5:]
    assert "6 images, squares of 32 px, batches of 4 crops of 24 px" in said
    assert head.split() == ["images/s", "x", "AN's", "step"]
    names = [row[:42].strip() for row in rows]
    assert names[0] == "torchvision Dataset + DataLoader" and names[-1] == "AN's training step"
    rates, shares = torch.tensor([[float(cell) for cell in row[42:].split()] for row in rows]).T
    assert (rates > 0).all() and shares[-1] == 1
    torch.testing.assert_close(shares, rates / rates[-1], atol=0.006, rtol=0.02)
    assert not list((tmp_path / "cache").glob("bench-*"))


def test_damaged_images_that_are_left_out_are_not_timed(of_voc, voc):
    (voc / "VOCdevkit" / "VOC2007" / "JPEGImages" / "000005.jpg").write_bytes(b"")
    assert "000005.jpg' cannot be read" in of_voc("--input").err
    outcome = of_voc("--input", "--steps", 1, damaged="skip")
    assert outcome.status == 0 and "5 images, squares" in outcome.out


def test_scenes_are_said_to_be_drawn_not_read(spcl):
    outcome = spcl("bench", "--input")
    assert outcome.status == 0 and "scenes are drawn, not read" in outcome.out
    assert outcome.out.count("\n") == 1


def test_a_number_of_steps_that_is_none_is_an_error(spcl):
    outcome = spcl("bench", "--steps", 0)
    assert outcome.status == 2 and "--steps must be at least 1; got 0" in outcome.err


SMALL = speed.Shape("tiny", 3, 6, 2, batch=4, images=8)


def test_the_bank_is_timed_against_the_loop_and_the_bytes(spcl, monkeypatch, tmp_path):
    monkeypatch.setenv("SPCL_CACHE", str(tmp_path))
    monkeypatch.setattr(speed, "SHAPES", (SMALL,))
    outcome = spcl("bench", "--only", "bank", "--steps", 3)
    assert outcome.status == 0, outcome.err
    head, _, *rows = outcome.out.rstrip().splitlines()
    assert "3 classes, 6 x 6 cells, uint8, batch 4, grid 2" in head and "3 turns" in head
    assert [row[:15].strip() for row in rows] == [
        "plain loop", "bank", "bank in a file", "bytes moved",
    ]  # fmt: skip
    assert "1.00 (1.00 to 1.00)" in rows[0] and rows[-1].endswith("1.00 (1.00 to 1.00)")
    assert not list(tmp_path.glob("bench-*"))


def test_the_plain_loop_does_what_the_bank_does():
    """On boxes of whole cells, which are all that it knows, and to its rounding."""
    bank, loop = HeatmapBank(4, 3, 8, momentum=0.8), speed.PlainLoop(4, 3, 8)
    indices, boxes = (
        torch.arange(4),
        torch.tensor([[0, 0, 1, 1], [0.25, 0.5, 0.75, 1]]).repeat(2, 1),
    )
    views = Views(boxes, torch.tensor([False, False, True, True]))
    bank.update(indices, Views.whole(4), torch.zeros(4, 3, 2, 2))  # the loop starts from 0, too
    for seed in range(3):
        maps = torch.rand(4, 3, 4, 4, generator=torch.Generator().manual_seed(seed))
        bank.update(indices, views, maps)
        loop.update(indices, views, maps)
    apart = bank.heatmaps.int() - loop.heatmaps.int()
    assert apart.abs().max() <= 4 and loop.heatmaps.max() > 50
    read, _ = bank.read(indices, views, 4)
    torch.testing.assert_close(loop.read(indices, views, 4), read, atol=5 / 255, rtol=0)


def test_map_is_timed_against_scikit_learn_or_says_that_it_is_missing(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.metrics", None)
    speed.bench_map(1)
    assert "scikit-learn is not installed" in capsys.readouterr().out
    monkeypatch.undo()
    pytest.importorskip("sklearn.metrics", reason="not needed to run, only to compare")
    speed.bench_map(2, images=200, classes=5)
    said, head, *rows = capsys.readouterr().out.strip().splitlines()
    assert "200 x 5" in said and len(rows) == 2
    assert all(float(row.split()[-1]) < 1e-6 for row in rows)


def test_a_training_with_heatmaps_in_a_file_takes_no_memory_for_them(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("SPCL_CACHE", str(tmp_path))
    if not speed.Path("/proc/self/status").exists():
        pytest.skip("only Linux tells how much memory a process takes")
    speed.bench_memory(speed.Shape("tiny", 20, 60, 2, 16, 2000))
    said, *rows = capsys.readouterr().out.strip().splitlines()
    assert "0.14 GB" in said and [row.split()[0] for row in rows] == ["an", "scl"]
    assert float(rows[0].split()[3]) == 0 and float(rows[1].split()[3]) < 0.07
    assert not list(tmp_path.glob("bench-*"))


def test_a_spread_is_the_median_and_the_tenths():
    assert speed.spread([1.0, 3.0, 2.0]) == "2.00 (1.20 to 2.80)"
    assert speed.spread([2.0]) == "2.00"
