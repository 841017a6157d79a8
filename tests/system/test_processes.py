"""No process lives longer than its parent."""

import subprocess
import sys

from spcl_lib.system import paths

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
assert "SPCL_PARENT" not in os.environ  # the children of this process have another parent
time.sleep(30)
sys.stderr.write("it goes on")
"""


def test_a_process_whose_parent_died_ends():
    """The output ends when the last of both processes has ended."""
    command = [sys.executable, "-c", PARENT, LATE]
    done = subprocess.run(command, cwd=paths.project(), capture_output=True, text=True, timeout=80)
    assert (done.stdout, done.stderr) == ("first", "")
