"""Fixtures for tests of runs."""

import subprocess
import sys

import pytest
from kills import FORKS, environment

from spcl_lib.system import paths


@pytest.fixture(scope="module")
def forks(shared_cache):
    """Starts commands, see `kills.FORKS`: it reads seconds, folder of results and arguments.

    It writes the process's id, and at its end the exit status.
    """
    process = subprocess.Popen(
        [sys.executable, "-c", FORKS], env=environment() | {"SPCL_CACHE": str(shared_cache)},
        cwd=paths.project(), stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    with process:
        yield process
        process.stdin.close()
