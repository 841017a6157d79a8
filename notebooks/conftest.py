"""pytest --nbval runs the notebooks here: anew, not on results that an earlier run left behind."""

import os
import tempfile

import pytest

_temporary = tempfile.TemporaryDirectory(prefix="spcl-")
_patch = pytest.MonkeyPatch()


def pytest_configure(config: pytest.Config) -> None:
    """The notebooks' files go to a folder of their own, the runs unless the person has chosen one.

    nbval kills its kernels, so that they cannot remove their temporary folders themselves.
    """
    _patch.setenv("TMPDIR", _temporary.name)
    if "SPCL_RESULTS" not in os.environ:
        _patch.setenv("SPCL_RESULTS", _temporary.name)


def pytest_unconfigure(config: pytest.Config) -> None:
    """Leaves nothing behind."""
    _patch.undo()
    _temporary.cleanup()
