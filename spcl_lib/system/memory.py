"""Memory and disk space: how much is left, and the reuse of what a step frees."""

from __future__ import annotations

import ctypes
import math
import os
import shutil
import sys
from pathlib import Path

import torch

from spcl_lib.system.errors import UserError

_CGROUPS = Path("/sys/fs/cgroup")
_MEMINFO = Path("/proc/meminfo")
_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # of mallopt, see malloc.h


def keep_freed_memory() -> None:
    """Lets this process use freed memory again, instead of returning it to the system.

    A step frees large tensors, and the next step needs as many. glibc returns each to the system at
    once, and the system clears every page that it gives again. Call this before the first tensor:
    then PyTorch asks for large pages, too. It changes no result. Without glibc, it does nothing.
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        libc.mallopt(_MMAP_MAX, 0)
        libc.mallopt(_TRIM_THRESHOLD, 2**31 - 1)


def available_memory() -> int:
    """Bytes of memory that this process can still use, within the machine and its container.

    Pages of cached files count as available, because the system gives them up when memory is
    needed. Systems other than Linux do not tell; there, all of the machine's memory counts, and on
    Windows there is no limit.
    """
    return min([_of_machine(), *_of_containers()])


def available_disk(path: Path) -> int:
    """Bytes that a file at `path` can take; if it exists already, its own bytes count as free."""
    there = next(p for p in (path.parent, *path.parent.parents) if p.exists())
    held = _held(path.stat()) if path.is_file() else 0
    return shutil.disk_usage(there).free + held


def _held(file: os.stat_result) -> int:
    """Bytes that a file takes on its disk; Windows tells its length only."""
    return file.st_blocks * 512 if hasattr(file, "st_blocks") else file.st_size


def _of_machine() -> int:
    try:
        for line in _MEMINFO.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return 1024 * int(line.split()[1])
    except OSError:
        pass
    if not hasattr(os, "sysconf"):  # Windows
        return sys.maxsize
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _of_containers() -> list[int]:
    """Bytes that are left under each limit of this process's control groups (version 2)."""
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return []
    own = next((line[3:] for line in lines if line.startswith("0::")), "/")
    folder, left = _CGROUPS / own.strip("/"), []
    while folder.is_relative_to(_CGROUPS):
        left += _left_below(folder)
        folder = folder.parent
    return left


def _left_below(group: Path) -> list[int]:
    """The limit minus the memory in use, without cached files; empty if there is no limit."""
    try:
        limit = int((group / "memory.max").read_text())
        rows = [line.split() for line in (group / "memory.stat").read_text().splitlines()]
        return [limit - next(int(value) for name, value in rows if name == "anon")]
    except (OSError, ValueError, StopIteration):  # "max" means no limit
        return []


def require_memory_for_averages(
    num_images: int,
    num_classes: int,
    size: int,
    dtype: torch.dtype,
    path: str | Path | None = None,
    per_label: int = 0,
    copies: int = 1,
    limit: float = math.inf,
) -> None:
    """Refuses a bank that does not fit.

    The system gives memory page by page. Without this check the run would stop hours later.

    Args:
        num_images: N, as in HeatmapBank.
        num_classes: C.
        size: W.
        dtype: type of the heatmaps' values.
        path: the bank's file, which must fit on its disk; None: the bank must fit into memory.
        per_label: further bytes of memory for every image and class.
        copies: how many copies of the file exist at the same time.
        limit: bytes of memory that the bank may take.

    Raises:
        UserError: it does not fit; the message says how much is needed and what would fit.
    """
    heatmaps = num_classes * torch.empty((), dtype=dtype).element_size()  # bytes per cell
    seen = 1  # byte per cell, always in memory
    beside = num_classes * per_label  # bytes of memory per image
    left = min(available_memory(), limit)
    if path is None:
        parts = [("memory", heatmaps + seen, beside, left)]
    else:
        several = f" (for {copies} copies: checkpoints and results)" if copies > 1 else ""
        disk = f"disk at '{path}'{several}"
        parts = [(disk, copies * heatmaps, 0, available_disk(Path(path)))]
        parts.append(("memory", seen, beside, left))
    for place, cell, rest, free in parts:
        needed = num_images * (cell * size**2 + rest)
        if needed <= free:
            continue
        fitting = math.isqrt(max(0, int(free) // num_images - rest) // cell)
        ways = [f"train on at most {int(num_images * free / needed):,} images (train_images)"]
        ways += [f"keep heatmaps of at most {fitting} cells a side (bank_size)"] * (
            1 < fitting < size
        )
        ways += ["keep heatmaps of fewer classes per image (bank_classes)"] * (size > 1)
        ways += ["keep them in a file (HeatmapBank's path)"] * (path is None)
        raise UserError(
            f"running averages of {num_images:,} images x {num_classes:,} classes x {size} x "
            f"{size} cells need {needed / 1e9:,.1f} GB of {place}, and {free / 1e9:,.1f} GB are "
            f"left; {', or '.join(ways)}"
        )
