"""The memory that is left."""

import os
import sys

import pytest

from spcl_lib import UserError
from spcl_lib.runs import splits
from spcl_lib.runs.settings import make_config
from spcl_lib.system import machine


def test_memory_that_is_left_is_less_than_the_machine_has():
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert 0 < machine.available_memory() <= total


def test_the_limit_of_a_container_counts_less_what_it_holds(tmp_path):
    (tmp_path / "memory.max").write_text("5000000\n")
    (tmp_path / "memory.stat").write_text("anon 1500000\nfile 3000000\n")
    assert machine._left_below(tmp_path) == 3_500_000
    (tmp_path / "memory.max").write_text("max\n")
    assert machine._left_below(tmp_path) == machine._left_below(tmp_path / "none") == sys.maxsize


def test_averages_that_do_not_fit_are_refused_before_the_images_are_decoded(results, monkeypatch):
    config = make_config("scenes", "scl", 0, "smoke")
    monkeypatch.setattr(splits, "available_memory", lambda: 1_000_000)
    monkeypatch.setattr(splits, "_decode", lambda *given: pytest.fail("they were decoded"))
    with pytest.raises(UserError, match="500 images x 12 classes need 0.0 GB .*bank_classes"):
        splits.load_splits(config, None)
