"""Fixtures for tests of runs."""

import importlib.util

import pytest

from spcl_lib.system import paths


@pytest.fixture(scope="session")
def make():
    """The program that makes the kept files."""
    spec = importlib.util.spec_from_file_location("make", paths.reference() / "make.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
