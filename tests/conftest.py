"""Fixtures for all tests: own folders, the command line, a tiny Pascal VOC, real data."""

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from small_voc import voc_ids, write_lists

from spcl_lib.__main__ import main
from spcl_lib.system import paths

torch.set_num_threads(1)  # the models are tiny, and bit-identical results need a fixed number

# Settings under which a run on scenes takes a second or two, after the session's first.
TINY = {
    "image_side": 32, "crop_side": 32, "eval_side": 32, "train_images": 48, "eval_images": 64,
    "report": "val", "epochs": 3, "batch": 8,
    "start": 1, "ramp": 1.0, "eval_every": 1, "bank_size": 8,
}  # fmt: skip


@pytest.fixture
def tiny():
    """Settings of a run that takes about a second."""
    return dict(TINY)


@pytest.fixture(scope="session")
def shared_cache(tmp_path_factory):
    """The caches of the whole session: scenes are drawn once."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def real_data():
    """The folder of the real data; skips where there is none."""
    root = os.environ.get("SPCL_DATA")
    if not root:
        pytest.skip("needs the real data: set SPCL_DATA to their folder")
    return Path(root)


@pytest.fixture
def results(tmp_path, shared_cache, monkeypatch):
    """An empty folder that runs write their results to; real data are out of sight."""
    monkeypatch.setenv("SPCL_RESULTS", str(tmp_path / "results"))
    monkeypatch.setenv("SPCL_CACHE", str(shared_cache))
    for name in ("SPCL_DATA", "SPCL_PARENT"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "results"


@pytest.fixture
def reference(tmp_path, monkeypatch):
    """An empty folder of reference results."""
    monkeypatch.setattr(paths, "reference", lambda: tmp_path / "reference")
    return tmp_path / "reference"


@pytest.fixture
def own_kernels(monkeypatch):
    """Other processes find the package that is tested, installed or not."""
    found = [str(paths.project()), *filter(None, [os.environ.get("PYTHONPATH")])]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(found))


@dataclass
class Outcome:
    """What a command gave back."""

    status: int
    out: str
    err: str


@pytest.fixture
def spcl(results, capsys):
    """Calls `python -m spcl_lib` in this process."""

    def call(*arguments, **settings):
        capsys.readouterr()
        pairs = [text for k, v in settings.items() for text in ("--set", f"{k}={v}")]
        status = main([str(a) for a in arguments] + pairs)
        return Outcome(status, *capsys.readouterr())

    return call


@pytest.fixture
def voc(tmp_path):
    """A data root with a VOC2007 of 6 + 4 images in seeded noise; see `voc_flags` for labels."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "root" / "VOCdevkit" / "VOC2007"
    (folder / "JPEGImages").mkdir(parents=True)
    write_lists(folder)
    for ids in voc_ids().values():
        for i in ids:
            noise = rng.integers(0, 256, (18, 24, 3), dtype=np.uint8)
            Image.fromarray(noise).save(folder / "JPEGImages" / f"{i}.jpg", quality=95)
    return tmp_path / "root"
