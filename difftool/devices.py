"""Device, precision and threads. The choice that `auto` makes is printed and stored."""

from __future__ import annotations

import contextlib
import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from difftool.distributed import World, world
from difftool.errors import InvalidOption, UsageError

PRECISIONS = {"bf16": torch.bfloat16, "fp16": torch.float16}
LARGE = 500_000
"""The number of parameters from which on a network is large enough to be faster in lower precision."""


def available() -> list[str]:
    """Return the names of the devices of this machine, the best first."""
    found = [f"cuda:{i}" for i in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    if torch.backends.mps.is_available():
        found.append("mps")
    return [*found, "cpu"]


def choose(name: str | torch.device) -> torch.device:
    """Return the device for `auto`, `cpu`, `cuda`, `cuda:1` or `mps`. Of several processes each gets a GPU of its own.

    Raises `UsageError`, which lists the devices of this machine, and `TypeError` for anything but a name or a device.
    """
    named: object = name
    if not isinstance(named, (str, torch.device)):
        raise TypeError(f"a device is given by its name, such as 'cpu', not as {type(name).__name__}")
    name = str(name)
    present = available()
    if (here := world()).size > 1:
        return _device_of_process(name, present, here)
    if name == "auto":
        return torch.device(present[0])
    if not re.fullmatch(r"cpu|mps|cuda(:\d+)?", name):
        raise UsageError(
            f"--device: unknown device {name!r}; choose {', '.join(['auto', *present[:-1]])} or {present[-1]}"
        )
    wanted = "cuda:0" if name == "cuda" else name
    if wanted not in present:
        raise UsageError(f"--device: {name} is not available; this machine has {', '.join(present)}")
    return torch.device(wanted)


def _device_of_process(name: str, present: list[str], here: World) -> torch.device:
    """Return the device of one of several processes."""
    gpus = [device for device in present if device.startswith("cuda")]
    if name == "cpu" or (name == "auto" and not gpus):
        return torch.device("cpu")
    if name not in ("auto", "cuda"):
        raise UsageError(f"--device: {here.size} processes cannot share {name}; choose auto, cuda or cpu")
    if here.local_size > len(gpus):
        raise UsageError(
            f"--device: {here.local_size} processes need a GPU each, and this machine has {len(gpus)}; start fewer "
            "with --nproc-per-node, or choose --device cpu"
        )
    return torch.device(gpus[here.local_rank])


def describe(device: torch.device, parallel: int = 1) -> str:
    """Return a text such as `cpu (2 threads)`, `cuda:0 (NVIDIA ...)` or `cpu (1 thread), 2 processes`.

    `parallel` is the number of threads that work side by side, each with the threads of torch.
    """
    many = f", {world().size} processes" if world().size > 1 else ""
    if device.type == "cuda":
        return f"{device} ({torch.cuda.get_device_name(device)}){many}"
    threads = parallel * torch.get_num_threads()
    return f"cpu ({threads} thread{'s' if threads > 1 else ''}){many}" if device.type == "cpu" else str(device)


def machine(device: torch.device) -> dict[str, str | int]:
    """Return the facts that the last digits of a result depend on.

    They are the kind of device, on CPUs the number of threads, the number of processes, and the version of torch.
    """
    kind = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    threads = {"threads": torch.get_num_threads()} if device.type == "cpu" else {}
    return {"device": kind, **threads, "processes": world().size, "torch": str(torch.__version__)}


def check_precision(device: torch.device, precision: str) -> None:
    """Check that the device supports the precision. Raises `InvalidOption`."""
    if precision == "fp16" and device.type != "cuda":
        reason = f"fp16 needs a CUDA device, not {device.type}; choose bf16 or fp32"
        raise InvalidOption("precision", reason, where="--precision")


def has_fast(device: torch.device, precision: str) -> bool:
    """Return whether a device has arithmetic of its own for bf16 or fp16, so that large networks are faster in it."""
    if device.type == "cuda":
        return precision == "fp16" or torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type != "cpu" or precision != "bf16":
        return False
    check: Callable[[], bool] = getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    return check()  # whoever has AMX has it too


def fitting_precision(device: torch.device, parameters: int) -> str:
    """Return the number format to train a network of so many parameters in. Small ones gain nothing from bf16."""
    return "bf16" if parameters >= LARGE and has_fast(device, "bf16") else "fp32"


def autocast(device: torch.device, precision: str) -> Callable[[], AbstractContextManager[object]] | None:
    """Return the autocast context of a precision, or None for fp32, and for what `auto` has not become yet."""
    dtype = PRECISIONS.get(precision)
    return None if dtype is None else lambda: torch.autocast(device.type, dtype=dtype)


class _Undrawn(TorchFunctionMode):
    """Leaves tensors of the meta device as they are where they would be filled with random numbers.

    For some distributions torch does that in Python, and imports its compiler first, which takes a second.
    """

    DRAWS = frozenset(
        getattr(place, f"{name}_")
        for place in (torch.Tensor, torch.nn.init)
        for name in ("bernoulli", "exponential", "log_normal", "normal", "trunc_normal", "uniform")
        if hasattr(place, f"{name}_")
    )

    def __torch_function__(self, function: Any, _types: Any, given: Any = (), named: Any = None) -> Any:
        named = named or {}
        if function in self.DRAWS and (tensor := given[0] if given else named["tensor"]).is_meta:
            return tensor
        return function(*given, **named)


@contextlib.contextmanager
def meta() -> Iterator[None]:
    """Make the tensors of a block on the meta device, where they have shapes, but neither memory nor numbers."""
    with torch.device("meta"), _Undrawn():
        yield


@contextlib.contextmanager
def threads(wanted: int | None, suited: int | None = None) -> Iterator[int]:
    """Set the number of CPU threads for a block, and restore it afterwards.

    Yield how many such blocks have room beside each other: 1, unless fewer threads suit the work than there are.

    `wanted` is the choice of the user. Without it at most `suited` are used, since small networks are slower on many
    threads than on one, and otherwise as many as torch chooses (one per core, or OMP_NUM_THREADS). Several processes
    divide the cores of their machine.
    """
    before = torch.get_num_threads()
    most = _thread_limit(before, world())
    torch.set_num_threads(wanted or min(suited or most, most))
    try:
        yield 1 if wanted else most // torch.get_num_threads()
    finally:
        torch.set_num_threads(before)


@contextlib.contextmanager
def without_denormals() -> Iterator[None]:
    """Round numbers below 1e-38 to 0 on the CPU in a block.

    The moments of a weight whose gradient has become 0, behind a dead ReLU say, fade into such numbers. A CPU computes
    with them many times slower.
    """
    before = sys.float_info.min / 2 == 0.0
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(before)


def _thread_limit(threads: int, here: World) -> int:
    """Return how many threads a process may use.

    torchrun sets OMP_NUM_THREADS=1 by default, so only another value is the choice of the user.
    """
    if here.size == 1 or os.environ.get("OMP_NUM_THREADS", "1") != "1":
        return threads
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // here.local_size)


LIMITS = (
    ("cgroup", "memory.max", "memory.current"),
    ("cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes"),
)
"""The folder below /sys/fs of each version of control groups, and its files of the memory allowed and of that used."""


def host_memory_left() -> int | None:
    """Return the bytes of the host's memory that this process may still use, or None where the system does not say.

    On Linux, what queues and containers allow by control groups counts too. Their use of memory includes the cache of
    files, which the system gives up where memory is needed.
    """
    found = []
    with contextlib.suppress(OSError, ValueError, IndexError):
        text = Path("/proc/meminfo").read_text()
        found.append(int(text.split("MemAvailable:")[1].split()[0]) * 1024)
    with contextlib.suppress(OSError):
        groups = [line.split(":", 2) for line in Path("/proc/self/cgroup").read_text().splitlines()]
        for (folder, limit, used), own in zip(LIMITS, ("", "memory"), strict=True):
            root = Path("/sys/fs", folder)
            inner = next((path.lstrip("/") for _, names, path in groups if own in names.split(",")), "")
            for place in (root / inner, *Path(root / inner).parents):
                with contextlib.suppress(OSError, ValueError, IndexError):
                    most, now = (int((place / name).read_text()) for name in (limit, used))
                    cache = int((place / "memory.stat").read_text().split("inactive_file ")[1].split()[0])
                    found.append(most - now + cache)
    return min(found, default=None)
