"""The memory of this process and of its device: what it has, and what it may still take."""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path

import torch

from difftool import devices

PAGE = os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 4096


def resident() -> int:
    """Return the bytes that this process has in memory now; where the system does not say, those at its peak."""
    with contextlib.suppress(OSError, ValueError):
        return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE
    return peak()


def peak() -> int:
    """Return the most bytes that this process ever had in memory, or 0 where the system does not say."""
    try:
        import resource
    except ImportError:  # on Windows
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def obtainable(device: torch.device) -> int | None:
    """Return the bytes that a process like this one could have in all on the device, or None if that is unknown."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device)
    left = devices.host_memory_left()
    return None if left is None else left + resident()
