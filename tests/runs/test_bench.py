"""The two measurements: the cost of a training step, and the speed of reading images."""

import pytest
import torch

from spcl_lib.methods import PAPER_METHODS

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
    outcome = of_voc("--steps", 1)
    assert outcome.status == 0, outcome.err
    rows = dict(line.split(maxsplit=1) for line in outcome.out.splitlines()[-len(PAPER_METHODS) :])
    assert set(rows) == set(PAPER_METHODS)
    assert all(float(cell) > 0 for row in rows.values() for cell in row.split())


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
