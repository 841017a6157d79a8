"""No process lives longer than its parent."""

import os
import subprocess
import sys

import pytest

from spcl_lib.system import paths, processes

# It starts a process, which runs the code that is given, and dies.
PARENT = """
import os, subprocess, sys
child = [sys.executable, "-c", sys.argv[1]]
process = subprocess.Popen(child, env=os.environ | {"SPCL_PARENT": str(os.getpid())},
                           stdin=subprocess.PIPE, stdout=subprocess.PIPE)
sys.stdout.buffer.write(process.stdout.read(5))
sys.stdout.flush()
os._exit(0)
"""
LATE = """
import os, sys, time
from spcl_lib.system.processes import end_with_parent
sys.stdout.write("first"); sys.stdout.flush()
while str(os.getppid()) == os.environ["SPCL_PARENT"]:
    time.sleep(0.01)
end_with_parent()
sys.stderr.write("it goes on")
"""
BUSY = """
import ctypes, sys
from spcl_lib.system.processes import end_with_parent
end_with_parent()
sys.stdout.write("first"); sys.stdout.flush()
ctypes.PyDLL(None).sleep(100)  # no thread of Python runs meanwhile
sys.stderr.write("it goes on")
"""


@pytest.mark.parametrize(
    "code",
    [LATE, pytest.param(BUSY, marks=pytest.mark.skipif(sys.platform != "linux", reason="Linux"))],
    ids=["its parent died before it knew it", "no thread can end it"],
)
def test_a_process_whose_parent_died_ends(code):
    """The output ends when the last of both processes has ended."""
    command = [sys.executable, "-c", PARENT, code]
    done = subprocess.run(command, cwd=paths.project(), capture_output=True, text=True, timeout=80)
    assert (done.stdout, done.stderr) == ("first", "")


def test_only_the_children_of_a_process_end_with_it(monkeypatch):
    monkeypatch.setenv("SPCL_PARENT", str(os.getppid()))
    monkeypatch.setattr(processes.threading.Thread, "start", lambda self: None)
    monkeypatch.setattr(processes.sys, "platform", "another")
    processes.end_with_parent()
    assert "SPCL_PARENT" not in os.environ
