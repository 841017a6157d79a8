"""Runs a function in two processes that work together, set up as torchrun does it."""

import multiprocessing
import os
import pickle
import socket
import sys

import torch

_CONTEXT = multiprocessing.get_context("forkserver")
# All that a run loads, also what torch loads late: the processes share it.
_CONTEXT.set_forkserver_preload(["spcl_lib.__main__", "spcl_lib.runs.run", "torch._dynamo"])


def on_two_ranks(function, *arguments, seconds=120, **environment):
    """What `function` gives on rank 0 and on rank 1, and the exit status of both processes.

    The result of a process that has failed is None. Both end after some seconds in any case.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    pipes = [_CONTEXT.Pipe(duplex=False) for _ in range(2)]
    folders = {name: value for name, value in os.environ.items() if name.startswith("SPCL_")}
    processes = [
        _CONTEXT.Process(
            target=_answer,
            args=(rank, port, folders | environment, pipe[1], function, arguments),
        )
        for rank, pipe in enumerate(pipes)
    ]
    results = []
    for process in processes:
        process.start()
    for reader, writer in pipes:
        writer.close()
        try:
            results.append(pickle.loads(reader.recv_bytes()) if reader.poll(seconds) else None)
        except EOFError:
            results.append(None)
    for process in processes:
        process.join(seconds)
        process.kill()
        process.join()
    return results, [process.exitcode for process in processes]


def _answer(rank, port, environment, pipe, function, arguments):
    os.environ.update(
        environment, RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", LOCAL_WORLD_SIZE="2",
        MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), TORCHELASTIC_RUN_ID="test",
    )  # fmt: skip
    torch.set_num_threads(1)
    pipe.send_bytes(pickle.dumps(function(*arguments)))  # torch's own way needs the sender alive
    sys.stdout.flush()
