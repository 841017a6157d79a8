"""Several processes that train one network together: torchrun starts them, and each has a rank.

Each image belongs to one rank for good: image n to rank n mod R. So the running averages of an
image are with the rank that trains on it. Each rank's loss is the mean over its own batch, and the
gradients are averaged, as DistributedDataParallel does. Without torch.distributed, R is 1.
"""

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils.data import Sampler

from spcl_lib.system.randomness import keyed_generator

T = TypeVar("T")


def count() -> int:
    """R, the processes that work together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """The number of this process, 0 to R - 1."""
    return dist.get_rank() if count() > 1 else 0


def count_started() -> int:
    """R, the processes that torchrun has started; 1 without torchrun."""
    return int(os.environ["WORLD_SIZE"]) if "TORCHELASTIC_RUN_ID" in os.environ else 1


@contextlib.contextmanager
def join() -> Iterator[None]:
    """Lets the processes of torchrun work together in the block, each on the GPU of its number."""
    if count_started() == 1:
        yield
        return
    has_gpu = torch.cuda.is_available()
    if has_gpu:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("cpu:gloo,cuda:nccl" if has_gpu else "gloo")
    with open(os.devnull, "w") as nowhere:
        with contextlib.redirect_stdout(nowhere) if rank() else contextlib.nullcontext():
            yield
    dist.destroy_process_group()  # not after an error: the others may not answer any more


class RankSampler(Sampler[int]):
    """The images of this rank in a random order, another one in every epoch, for a DataLoader.

    As many on every rank: of N training images, the last N mod R are left out.
    """

    def __init__(self, num_images: int, seed: int = 0) -> None:
        self.own = range(rank(), num_images - num_images % count(), count())
        self.seed, self.epoch = seed, 0

    def __len__(self) -> int:
        return len(self.own)

    def __iter__(self) -> Iterator[int]:
        generator = keyed_generator("order", self.seed, self.epoch, rank())
        self.epoch += 1
        return (self.own[i] for i in torch.randperm(len(self), generator=generator).tolist())


def require_own(indices: Tensor, owner: Tensor) -> None:
    """Refuses images of another rank, and a state whose owner is another rank; -1: it has none."""
    if count() == 1:
        return
    if bool((indices % count() != rank()).any()):
        raise ValueError(
            f"rank {rank()} of {count()} got images of other ranks; give the DataLoader "
            "spcl_lib.RankSampler(N) (in Lightning with use_distributed_sampler=False)"
        )
    if owner not in (-1, rank()):
        raise ValueError(
            f"rank {rank()} of {count()} has the state of rank {int(owner)}; give "
            "DistributedDataParallel (in Lightning DDPStrategy) broadcast_buffers=False"
        )
    owner.fill_(rank())


def merge(state: Any) -> Any:
    """The rows (N, ...) of all images on every rank, from the rows that each keeps of its own.

    In a dictionary, all such tensors are merged; numbers are the same on all ranks.
    """
    if isinstance(state, dict):
        return {name: merge(value) for name, value in state.items()}
    if count() == 1 or not isinstance(state, Tensor) or not state.dim():
        return state
    rows = (state.byte() if state.dtype == torch.bool else state.clone()).contiguous()
    rows[torch.arange(len(rows), device=rows.device) % count() != rank()] = 0
    dist.all_reduce(rows)
    return rows.to(state.dtype)


def average_gradients(parameters: Iterable[Tensor]) -> None:
    """Gives every rank the mean of all ranks' gradients."""
    for parameter in parameters if count() > 1 else ():
        if parameter.grad is not None:
            dist.all_reduce(parameter.grad)
            parameter.grad /= count()


def from_first(action: Callable[[], T]) -> T:
    """What `action` gives on rank 0, or the error that it raises there, on every rank."""
    if count() == 1:
        return action()
    outcome: list[Any] = [None, None]
    if rank() == 0:
        try:
            outcome[0] = action()
        except Exception as error:  # the others must not wait for a result that never comes
            outcome[1] = error
    dist.broadcast_object_list(outcome)
    if outcome[1] is not None:
        raise outcome[1]
    return outcome[0]
