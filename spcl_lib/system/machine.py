"""The machine: its device, its cores, its memory, and the versions of its software."""

import importlib.metadata
import os
import platform
import re
import subprocess
import sys
from pathlib import Path

import torch

from spcl_lib.system import VERSION, paths, ranks

_CGROUPS = Path("/sys/fs/cgroup")


def describe_machine(device: torch.device) -> dict[str, object]:
    """Versions, device and commit: the metrics depend on them besides the configuration."""
    return {
        "spcl": VERSION,
        "commit": _git_commit(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": importlib.metadata.version("torchvision"),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else _cpu_name(),
        "threads": torch.get_num_threads(),
        "processes": ranks.count(),
    }


def _cpu_name() -> str:
    file = Path("/proc/cpuinfo")
    named = file.is_file() and re.search(r"model name\s*: (.*)", file.read_text())
    return f"{named[1]}, {os.cpu_count()} cores" if named else platform.machine()


def _git_commit() -> str | None:
    checkout = paths.checkout()
    if checkout is None:  # git would look at the folders above, which may be another project's
        return None
    command = ["git", "-C", str(checkout), "describe", "--always", "--dirty"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def count_cores() -> int:
    """Cores that this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def choose_device() -> torch.device:
    """The GPU if there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def available_memory() -> int:
    """Bytes that this process can still use, within the machine and its container.

    Pages of cached files count, because the system gives them up. Only Linux tells.
    """
    try:
        machine = Path("/proc/meminfo").read_text()
        own = Path("/proc/self/cgroup").read_text()
    except OSError:
        return sys.maxsize
    left = 1024 * int(re.search(r"MemAvailable: *(\d+)", machine)[1])
    group = _CGROUPS / own.strip().rpartition("::/")[2]
    return min(left, *map(_left_below, (group, *group.parents)))


def _left_below(group: Path) -> int:
    """What a control group (version 2) may have beyond what it holds, without cached files."""
    try:
        limit = int((group / "memory.max").read_text())  # "max" means no limit
        held = re.search(r"^anon (\d+)", (group / "memory.stat").read_text(), re.M)
        return limit - int(held[1])
    except (OSError, ValueError):
        return sys.maxsize
