"""The machine: its device, its cores, and the versions of its software."""

import importlib.metadata
import os
import platform
import re
import subprocess
from pathlib import Path

import torch

from spcl_lib.system import VERSION, paths, ranks

_CPU_LIMIT = Path("/sys/fs/cgroup/cpu.max")  # microseconds and their period: "200000 100000"


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
    """Cores that this process may use: by its affinity, and by the limit of its container."""
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    limit, period = _CPU_LIMIT.read_text().split() if _CPU_LIMIT.is_file() else ("max", "1")
    return cores if limit == "max" else max(1, min(cores, int(limit) // int(period)))


def choose_device() -> torch.device:
    """The GPU if there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
