"""Fixtures for all tests: own folders, the command line, a tiny Pascal VOC."""

import importlib.util
import os
from types import SimpleNamespace

import pytest
import torch
from small_folder import save_noise, set_options
from small_voc import voc_ids, write_lists

from spcl_lib.__main__ import main
from spcl_lib.system import paths

torch.set_num_threads(1)  # the models are tiny, and bit-identical results need a fixed number


@pytest.fixture
def tiny():
    """Settings of a run on scenes that takes about a second, after the session's first."""
    return {
        "image_side": 32, "crop_side": 32, "eval_side": 32, "train_images": 48, "eval_images": 64,
        "report": "val", "epochs": 3, "batch": 8, "start": 1, "ramp": 1.0, "eval_every": 1,
        "bank_size": 8,
    }  # fmt: skip


@pytest.fixture(scope="session")
def shared_cache(tmp_path_factory):
    """The caches of the whole session: scenes are drawn once."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def results(tmp_path, shared_cache, monkeypatch):
    """An empty folder that runs write their results to; real data are out of sight."""
    monkeypatch.setenv("SPCL_RESULTS", str(tmp_path / "results"))
    monkeypatch.setenv("SPCL_CACHE", str(shared_cache))
    for name in ("SPCL_DATA", "SPCL_PARENT"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "results"


@pytest.fixture
def own_kernels(monkeypatch):
    """Other processes find the package that is tested, installed or not."""
    found = [str(paths.project()), *filter(None, [os.environ.get("PYTHONPATH")])]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(found))


@pytest.fixture(scope="session")
def make():
    """The program that makes the kept files."""
    spec = importlib.util.spec_from_file_location("make", paths.reference() / "make.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def spcl(results, capsys):
    """Calls `python -m spcl_lib` in this process; gives its status, and what it said."""

    def call(*arguments, **settings):
        capsys.readouterr()
        status = main([*map(str, arguments), *set_options(settings)])
        out, err = capsys.readouterr()
        return SimpleNamespace(status=status, out=out, err=err)

    return call


@pytest.fixture
def voc(tmp_path):
    """A data root with a VOC2007 of 6 + 4 images in seeded noise; see `voc_flags` for labels."""
    folder = tmp_path / "root" / "VOCdevkit" / "VOC2007"
    write_lists(folder)
    for ids in voc_ids().values():
        for i in ids:
            save_noise(folder / "JPEGImages" / f"{i}.jpg")
    return tmp_path / "root"
