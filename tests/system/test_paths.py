"""The places of files, and the cores of the machine."""

import os

import pytest

from spcl_lib import UserError
from spcl_lib.system import machine, paths


def test_a_home_folder_is_found(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("SPCL_RESULTS", "~/mine")
    assert paths.results() == tmp_path / "mine"


def test_weights_are_found_beside_the_data_or_where_other_data_are(tmp_path, monkeypatch):
    file = tmp_path / "weights" / "resnet50_imagenet.pth"
    file.parent.mkdir()
    file.touch()
    assert paths.weights("resnet50", tmp_path) == file
    monkeypatch.setenv("SPCL_DATA", str(tmp_path))
    assert paths.weights("resnet50", "photos") == file
    assert paths.weights("small_resnet").is_file()


def test_the_limit_of_the_cache_is_a_number(monkeypatch):
    monkeypatch.setenv("SPCL_CACHE_GB", "0.5")
    assert paths.cache_limit() == 5e8
    monkeypatch.setenv("SPCL_CACHE_GB", "much")
    with pytest.raises(UserError, match="SPCL_CACHE_GB must be a number of gigabytes; got 'much'"):
        paths.cache_limit()


def test_a_process_may_use_no_more_cores_than_its_container(tmp_path, monkeypatch):
    limit = tmp_path / "cpu.max"
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: range(6), raising=False)
    monkeypatch.setattr(machine, "_CPU_LIMIT", limit)
    assert machine.count_cores() == 6
    for text, cores in (("max", 6), ("250000", 2), ("50000", 1), ("900000", 6)):
        limit.write_text(f"{text} 100000\n")
        assert machine.count_cores() == cores
