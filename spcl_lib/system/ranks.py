"""Several processes that train one network together; torchrun starts them, and each has a rank.

Rows are dealt like cards: row i of a whole is with rank i mod R, at place i // R. This holds for
the training images and all that is kept about them (so an image stays with one rank for good), for
the images of a batch, and for those of an evaluation. Without torchrun, R is 1: every function
gives back what it gets, and torch.distributed is not started.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from spcl_lib.system.errors import UserError

T = TypeVar("T")


def count_started() -> int:
    """R, the processes that torchrun has started; 1 without torchrun."""
    return int(os.environ["WORLD_SIZE"]) if "TORCHELASTIC_RUN_ID" in os.environ else 1


@contextlib.contextmanager
def join() -> Iterator[None]:
    """Lets the processes that torchrun has started work together in the block: see `count`.

    Each takes the GPU of its number, if there are GPUs. Ranks other than 0 print nothing.

    Raises:
        UserError: there are fewer GPUs than processes.
    """
    if count_started() == 1:
        yield
        return
    backend = "gloo"
    if torch.cuda.is_available():
        backend, gpus = "cpu:gloo,cuda:nccl", torch.cuda.device_count()
        if int(os.environ["LOCAL_WORLD_SIZE"]) > gpus:
            raise UserError(f"each process needs a GPU of its own; give --nproc_per_node={gpus}")
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group(backend)
    with contextlib.ExitStack() as stack:
        if rank() > 0:
            nowhere = stack.enter_context(open(os.devnull, "w"))
            stack.enter_context(contextlib.redirect_stdout(nowhere))
        yield
    dist.destroy_process_group()  # not after an error: the others may not answer any more


def count() -> int:
    """R, the processes that work together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """The number of this process, 0 to R - 1."""
    return dist.get_rank() if count() > 1 else 0


def numbers(total: int) -> range:
    """The numbers, in a whole of `total` rows, of this rank's rows."""
    return range(rank(), total, count())


def numbers_at(places: Tensor) -> Tensor:
    """The numbers, in a whole, of the rows at these places of this rank's part."""
    return places if count() == 1 else places * count() + rank()


def part(whole: Tensor) -> Tensor:
    """This rank's rows of a whole; a view."""
    return whole if count() == 1 else whole[rank() :: count()]


def gather(own: Tensor) -> Tensor:
    """The whole on every rank, from each rank's part; the gradient reaches only the own part.

    If every rank computes the same loss of a whole batch, the sum over ranks of their gradients is
    the gradient of that loss: each rank adds what flows through its own rows. So any loss is right
    across ranks, also one with a sum, a ranking or a square over the batch.
    """
    if count() == 1:
        return own
    total = _total(own)
    rows = -(-total // count())
    padded = torch.cat((own, own.new_zeros(rows - len(own), *own.shape[1:])))
    parts = [torch.empty_like(padded) for _ in range(count())]
    dist.all_gather(parts, padded.detach().contiguous())
    parts[rank()] = padded
    return torch.stack(parts, 1).flatten(0, 1)[:total]


def collect(own: Tensor) -> Tensor | None:
    """The whole on rank 0, from each rank's part on the CPU; None on the other ranks."""
    if count() == 1:
        return own
    total = _total(own)
    if rank() > 0:
        if own.numel():
            dist.send(own.detach().contiguous(), 0)
        return None
    whole = own.new_empty(total, *own.shape[1:])
    whole[:: count()] = own.detach()
    for sender in range(1, count()):
        theirs = torch.empty_like(whole[sender :: count()], memory_format=torch.contiguous_format)
        if theirs.numel():
            dist.recv(theirs, sender)
        whole[sender :: count()] = theirs
    return whole


def mean(value: Tensor, weight: Tensor) -> Tensor:
    """The mean of the ranks' values with their weights, both (); 0 if all weights are 0.

    The gradient reaches only the own value, as in `gather`.
    """
    if count() == 1:
        return value
    values, weights = gather(torch.stack((value * weight, weight))[None]).unbind(1)
    return values.sum() / weights.sum().clamp(min=1)


def from_first(action: Callable[[], T]) -> T:
    """What `action` gives on rank 0, or the error that it raises there, on every rank."""
    if count() == 1:
        return action()
    outcome: list[object] = [None, None]
    if rank() == 0:
        try:
            outcome[0] = action()
        except Exception as error:  # the others must not wait for a result that never comes
            outcome[1] = error
    dist.broadcast_object_list(outcome)
    if isinstance(outcome[1], Exception):
        raise outcome[1]
    return outcome[0]


def _total(own: Tensor) -> int:
    """The rows of all ranks together.

    Raises:
        ValueError: these rows are not those of a whole that was dealt.
    """
    total = torch.tensor(len(own))
    dist.all_reduce(total)
    dealt = len(numbers(int(total)))
    if len(own) != dealt:
        raise ValueError(f"rank {rank()} must have {dealt} of {total} rows; got {len(own)}")
    return int(total)
