"""A model that several ranks train together, on top of PyTorch's DistributedDataParallel."""

from __future__ import annotations

import warnings

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.nn.functional import all_reduce
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from spcl_lib.system import ranks
from spcl_lib.system.errors import UserError


def replicate(model: nn.Module) -> DistributedDataParallel:
    """The model for steps with several ranks: all start with rank 0's weights and add gradients.

    The gradients are added, not averaged, because every rank has the loss of the whole batch: see
    `ranks.gather`. Batch normalisation takes the statistics of the whole batch, too.

    Raises:
        UserError: a trained layer is another kind of batch normalisation. Each rank would have
            statistics of its own.
    """
    for layer in model.modules():
        if type(layer) is nn.BatchNorm2d and layer.training:
            layer.__class__ = _WholeBatchNorm  # keeps the weights and their names
        kind = type(layer)
        if isinstance(layer, _BatchNorm) and layer.training and kind is not _WholeBatchNorm:
            raise UserError(
                f"the backbone's {kind.__name__} cannot be trained by several processes; use one "
                "process, another backbone, or --set trained=head"
            )
    # The strides of 1x1 kernels may differ where their numbers lie in the same order.
    warnings.filterwarnings("ignore", "Grad strides do not match")
    replica = DistributedDataParallel(model, broadcast_buffers=False)
    replica.register_comm_hook(None, lambda state, bucket: _add(bucket.buffer()))
    return replica


def _add(gradients: Tensor) -> torch.futures.Future[Tensor]:
    added = dist.all_reduce(gradients, async_op=True).get_future()
    return added.then(lambda future: future.value()[0])


class _WholeBatchNorm(nn.BatchNorm2d):
    """Batch normalisation over the batch of all ranks; PyTorch's needs a GPU."""

    def forward(self, x: Tensor) -> Tensor:
        """As in BatchNorm2d."""
        if not self.training or ranks.count() == 1:
            return super().forward(x)
        cells = x.float()  # (B, D, G, G)
        count = torch.full_like(self.running_mean, x.numel() / x.shape[1])
        sums = torch.stack((cells.sum((0, 2, 3)), cells.square().sum((0, 2, 3)), count))
        total, squares, count = all_reduce(sums)  # its gradient comes from all ranks
        mean = total / count
        variance = (squares / count - mean.square()).clamp(min=0)
        with torch.no_grad():
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * count / (count - 1), self.momentum)
            self.num_batches_tracked += 1
        scale = self.weight * (variance + self.eps).rsqrt()
        shift = self.bias - mean * scale
        return (cells * scale[:, None, None] + shift[:, None, None]).to(x.dtype)
