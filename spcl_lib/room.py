"""How much memory and disk is left, so that what cannot fit is refused before it is begun."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

_CGROUPS = Path("/sys/fs/cgroup")


def available_memory() -> int:
    """Bytes that this process can still use: of the machine, or of its container if that is less.

    Pages of cached files count as available: they are given up when memory is needed. Where the
    system does not tell what is available (not Linux), it is all of the machine's memory.
    """
    return min([_of_machine(), *_of_containers()])


def available_disk(path: Path) -> int:
    """Bytes that a file at `path` can take, whether the file is there already or not."""
    there = next(p for p in (path.parent, *path.parent.parents) if p.exists())
    held = path.stat().st_blocks * 512 if path.is_file() else 0
    return shutil.disk_usage(there).free + held


def _of_machine() -> int:
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return 1024 * int(line.split()[1])
    except OSError:
        pass
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _of_containers() -> list[int]:
    """What is left below the limits of the control groups (version 2) around this process."""
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
    """Limit less what is held, files apart; empty where there is no limit."""
    try:
        limit = int((group / "memory.max").read_text())
        rows = [line.split() for line in (group / "memory.stat").read_text().splitlines()]
        return [limit - next(int(value) for name, value in rows if name == "anon")]
    except (OSError, ValueError, StopIteration):  # "max" is no number: no limit
        return []
