"""What a loss gets beside logits and labels, and the losses that keep a state."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from spcl_lib.losses.settings import MethodSettings


@dataclass(frozen=True)
class Context:
    """The position of a batch in the training."""

    indices: Tensor  # (B,) int64 numbers of the images
    epoch: float  # epochs done, with the fraction of the current one
    epochs: int  # length of the whole training
    settings: MethodSettings
    presence: Tensor | None = None  # (B, C) in the views, once the loss uses running averages


class State(nn.Module):
    """A loss with a state per image or class, in buffers and parameters.

    `forward(s, z, context)` is pure. `observe` (after a step) and `end_epoch` change the state.
    """

    def __init__(self, labels: Tensor, settings: MethodSettings, epochs: int, seed: int) -> None:
        super().__init__()
        self.settings, self.epochs, self.seed = settings, epochs, seed
        self.register_buffer("labels", labels.bool().cpu(), persistent=False)  # z (N, C)

    def observe(self, s: Tensor, context: Context) -> None:
        """Sees the logits s (B, C) that a step predicted."""

    def end_epoch(self, done: int, presence: Tensor | None, labels: Tensor) -> None:
        """Follows an epoch, the `done`-th.

        `presence` (n, C) is that of the classes in the last view of every image with running
        averages; None if there are none yet. `labels` are z (n, C) of these images.
        """

    @staticmethod
    def rows(table: Tensor, context: Context, like: Tensor) -> Tensor:
        """A table's rows (B, C) for the images of the batch, on the device of `like`."""
        return table[context.indices.to(table.device)].to(like.device)

    @staticmethod
    def keep(table: Tensor, context: Context, rows: Tensor) -> None:
        """Replaces a table's rows for the images of the batch."""
        table[context.indices.to(table.device)] = rows.detach().to(table)

    def random(self) -> Tensor:
        """(N, C) uniform random numbers in [0, 1)."""
        return torch.rand(self.labels.shape, generator=torch.Generator().manual_seed(self.seed))
