"""Runs a function in two processes that work together, as torchrun does; or a command in one."""

import multiprocessing
import os
import pickle
import socket
import sys
import tempfile
import threading
from pathlib import Path

import torch
from tqdm import tqdm

from spcl_lib.__main__ import main
from spcl_lib.runs import checkpoint

_CONTEXT = multiprocessing.get_context("forkserver")
# All that a run loads, also what torch loads late: the processes share it.
_CONTEXT.set_forkserver_preload(["spcl_lib.__main__", "spcl_lib.runs.run", "torch._dynamo"])


def on_two_ranks(function, *arguments):
    """What `function` gives on rank 0 and on rank 1, and the exit status of both processes.

    The result of a process that has failed is None. Both end after two minutes in any case.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folders = {name: value for name, value in os.environ.items() if name.startswith("SPCL_")}
    with tempfile.TemporaryDirectory() as place:
        files = [Path(place, str(rank)) for rank in range(2)]
        processes = [
            _CONTEXT.Process(
                target=_answer,
                args=(rank, port, folders, file, function, arguments),
            )
            for rank, file in enumerate(files)
        ]
        for process in processes:
            process.start()
        for process in processes:
            process.join(120)
            process.kill()
            process.join()
        results = [pickle.loads(f.read_bytes()) if f.exists() else None for f in files]
    return results, [process.exitcode for process in processes]


def _answer(rank, port, environment, file, function, arguments):
    os.environ.update(
        environment, RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", LOCAL_WORLD_SIZE="2",
        MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), TORCHELASTIC_RUN_ID="test",
    )  # fmt: skip
    torch.set_num_threads(1)
    file.write_bytes(pickle.dumps(function(*arguments)))
    sys.stdout.flush()


def run_command(arguments, environment, seconds):
    """The exit status of a command that saves a checkpoint after every step.

    It is killed after so many seconds, if it has not ended.
    """
    process = _CONTEXT.Process(target=_command, args=(arguments, environment))
    process.start()
    process.join(seconds)
    if process.is_alive():
        process.kill()
    process.join()
    return process.exitcode


def _command(arguments, environment):
    os.environ.update(environment)
    checkpoint.CHECKPOINT_SECONDS = 0.0
    torch.set_num_threads(1)
    tqdm.set_lock(threading.RLock())  # a lock of all processes outlives a killed one
    sys.exit(main(list(arguments)))
