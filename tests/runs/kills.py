"""Starts commands in processes of their own, kills them, and finds those that are left."""

import os
import time
from pathlib import Path

# Importing torch takes seconds, so one process does it once and forks a process for every command.
# It kills the command after some seconds; only the parent of a process knows that an id is its own.
FORKS = """
import os, signal, sys, time
import torch
import spcl_lib.runs.run
from spcl_lib.__main__ import main
torch.set_num_threads(1)
for line in sys.stdin:
    seconds, results, *arguments = line.split()
    os.environ["SPCL_RESULTS"] = results
    end = time.monotonic() + float(seconds)
    child = os.fork()
    if child == 0:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        os._exit(main(arguments))
    print(child, flush=True)
    while not (ended := os.waitpid(child, os.WNOHANG))[0]:
        if time.monotonic() > end:
            os.kill(child, signal.SIGKILL)
        time.sleep(0.002)
    print(os.waitstatus_to_exitcode(ended[1]), flush=True)
"""

# Schedules runs: its arguments are their configurations, as JSON, and the runs side by side.
SCHEDULER = """
import json, sys
from spcl_lib.config import RunConfig
from spcl_lib.runs.schedule import run_all
configs = [RunConfig.from_flat(values) for values in json.loads(sys.argv[1])]
sys.exit(len(run_all(configs, None, int(sys.argv[2]))))
"""


def environment(results=None):
    """A checkpoint after every step, and the folders of this test."""
    changes = {"SPCL_CHECKPOINT_SECONDS": "0", "OMP_NUM_THREADS": "1"}
    return os.environ | changes | ({"SPCL_RESULTS": str(results)} if results else {})


def processes_with(results):
    """Ids of all processes that were started for a folder of results, by their environment."""
    mark, found = f"SPCL_RESULTS={results}".encode(), set()
    for file in Path("/proc").glob("[0-9]*/environ"):
        try:
            if mark in file.read_bytes().split(b"\0"):
                found.add(int(file.parent.name))
        except OSError:  # ended meanwhile
            continue
    return found - {os.getpid()}


def wait_until(condition, seconds, process=None):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it took too long"
        assert process is None or process.poll() is None, "it ended before it could be killed"
        time.sleep(0.01)
