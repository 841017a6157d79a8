"""Fixtures for tests of data."""

import pytest


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """Every test has a cache of its own."""
    monkeypatch.setenv("SPCL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"
