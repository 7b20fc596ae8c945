"""The memory of this process and of its device: what it has, and what it may still take."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import torch

PAGE = os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 4096
CGROUPS = Path("/sys/fs/cgroup")


def resident() -> int:
    """Return the bytes that this process has in memory now; where the system does not say, those at its peak."""
    with contextlib.suppress(OSError, ValueError):
        return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE
    with contextlib.suppress(ImportError):
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return 0


def obtainable(device: torch.device) -> int | None:
    """Return the bytes that a process like this one could have in all on the device, or None if that is unknown."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device)
    free = _free_of_machine()
    known = [*_limits(), *([] if free is None else [free + resident()])]
    return min(known) if known else None


def _free_of_machine() -> int | None:
    with contextlib.suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/meminfo").read_text().splitlines()
        return int(next(line.split()[1] for line in lines if line.startswith("MemAvailable:"))) * 1024
    return None


def _limits() -> Iterator[int]:
    """Yield the limits of the control groups of this process, such as those of a container or of a job in a queue."""
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/self/cgroup").read_text().splitlines()
        own = CGROUPS / next(line[4:] for line in lines if line.startswith("0::/"))
        for folder in (own, *own.parents):
            with contextlib.suppress(OSError, ValueError):  # no file, or "max"
                yield int((folder / "memory.max").read_text())
