"""pytest --nbval runs the notebooks here: anew, not on results that an earlier run left behind."""

import os
import tempfile

import pytest

_temporary = tempfile.TemporaryDirectory(prefix="spcl-notebooks-")


def pytest_configure(config: pytest.Config) -> None:
    """The notebooks' runs go to a folder of their own, unless the person has chosen one."""
    os.environ.setdefault("SPCL_RESULTS", _temporary.name)


def pytest_unconfigure(config: pytest.Config) -> None:
    """Leaves nothing behind."""
    if os.environ.get("SPCL_RESULTS") == _temporary.name:
        del os.environ["SPCL_RESULTS"]
    _temporary.cleanup()
