"""The cells of stored heatmaps: reads and updates through views, in PyTorch and in C.

uint8 heatmaps in the memory of the CPU use `cells.c`, if this machine has a C compiler: it touches
only the rows that a view shows, and makes no copies. All others use PyTorch. Both do the same
operations in the same order, so a run gives the same bits with and without a compiler.
"""

from __future__ import annotations

import ctypes
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from spcl_lib.system.compiled import call, load_compiled
from spcl_lib.views import Views

SCALES = {torch.uint8: 255.0, torch.float16: 1.0, torch.float32: 1.0}  # stored value of 1
NOISE = 2**16  # different values of the rounding's noise

_AT_ONCE = 2**18  # cells that PyTorch updates at once: their float32 copies stay in the CPU's cache


def read_cells(
    heatmaps: Tensor, seen: Tensor, indices: Tensor, views: Views, grid: int
) -> tuple[Tensor, Tensor]:
    """See `HeatmapBank.read`; all arguments are on one device.

    Args:
        heatmaps: (N, C, W, W) in a type of SCALES; cells that have not been seen hold 0.
        seen: (N, W, W) bool.
        indices: (B,) int64.
        views: B views.
        grid: G, cells along each side of the result.

    Returns:
        (B, C, G, G) float32 in [0, 1], and (B, 1, G, G) float32 in {0, 1}.
    """
    batch, classes, size = len(indices), *heatmaps.shape[1:3]
    if _is_compiled(heatmaps, seen):
        target = torch.empty(batch, classes, grid, grid)
        mask = torch.empty(batch, 1, grid, grid)
        _call("read_cells", heatmaps, seen, indices, views.boxes.float(), views.flipped,
              target, mask, batch, classes, size, grid)  # fmt: skip
        return target, mask
    targets, masks = [], []
    for part in _parts(batch, classes * size**2):
        weight = views[part].crop_maps(seen[indices[part]].unsqueeze(1).float(), grid)
        mask = (weight >= 0.5 - 1e-6).float()  # (b, 1, G, G)
        scale = mask / (SCALES[heatmaps.dtype] * weight.clamp(min=1e-6))
        value = views[part].crop_maps(heatmaps[indices[part]].float(), grid) * scale
        targets.append(value.clamp(max=1))  # the division can exceed 1 by 1e-7
        masks.append(mask)
    return torch.cat(targets), torch.cat(masks)


def update_cells(
    heatmaps: Tensor,
    seen: Tensor,
    indices: Tensor,
    views: Views,
    maps: Tensor,
    fresh: float,
    starts: Tensor,
) -> None:
    """Moves the visible cells towards new maps, in place; see `HeatmapBank.update`.

    A value x of a uint8 heatmap becomes floor(x + noise). The noise of a plane is a piece of one
    fixed table, in which each multiple of 2^-16 below 1 occurs once. Starts that are uniform in
    0..NOISE-1 make the noise of every cell uniform. So the rounding is right on average, to 2^-16
    of a step.

    Args:
        heatmaps: (N, C, W, W) in a type of SCALES.
        seen: (N, W, W) bool.
        indices: (B,) int64, each at most once.
        views: B views.
        maps: (B, C, G, G) float32 in [0, 1].
        fresh: 1 - momentum, the weight of the new maps.
        starts: (B, C) int64 in 0..NOISE-1, where the noise of each plane starts.
    """
    batch, classes, size = len(indices), *heatmaps.shape[1:3]
    noise = rounding_noise(size, heatmaps.device)
    if _is_compiled(heatmaps, seen):
        _call("update_cells", heatmaps, seen, indices, views.boxes.float(), views.flipped,
              maps, noise, starts, batch, classes, size, maps.shape[-1],
              fresh)  # fmt: skip
        return
    scale = SCALES[heatmaps.dtype]
    for part in _parts(batch, classes * size**2):
        which = indices[part]
        new, visible = views[part].uncrop(scale * maps[part], size)
        known = seen[which].unsqueeze(1)  # (b, 1, W, W)
        share = torch.where(known, fresh, 1.0) * visible  # 0: the cell stays as it is
        old = heatmaps[which].float()
        average = old + share * (new - old)
        if heatmaps.dtype == torch.uint8:
            planes = noise.unfold(0, size**2, 1)[starts[part]]  # (b, C, W * W)
            average = (average + planes.view_as(average)).clamp(max=scale)
        heatmaps[which] = average.to(heatmaps.dtype)
        seen[which] |= visible.squeeze(1)


@lru_cache
def rounding_noise(size: int, device: torch.device) -> Tensor:
    """(NOISE + W * W,) float32: the noise in a fixed random order; its start follows its end."""
    order = torch.randperm(NOISE, generator=torch.Generator().manual_seed(0))
    return (order / NOISE)[torch.arange(NOISE + size**2) % NOISE].to(device)


def _parts(batch: int, cells: int) -> list[slice]:
    few = max(1, _AT_ONCE // cells)
    return [slice(first, min(first + few, batch)) for first in range(0, max(1, batch), few)]


def _is_compiled(heatmaps: Tensor, seen: Tensor) -> bool:
    return (
        heatmaps.dtype == torch.uint8
        and heatmaps.device.type == "cpu"
        and heatmaps.is_contiguous()
        and seen.is_contiguous()
        and compiled() is not None
    )


def compiled() -> ctypes.CDLL | None:
    """The functions of cells.c; None without a C compiler."""
    return load_compiled(Path(__file__).with_name("cells.c"))


def _call(name: str, *arguments: Tensor | int | float) -> None:
    if call(getattr(compiled(), name), *arguments):
        raise MemoryError(f"{name}: no memory for one plane")
