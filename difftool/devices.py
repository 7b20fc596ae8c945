"""Device, precision and threads. `auto` never falls back in silence: the choice is printed and stored."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

import torch

from difftool.distributed import World, world
from difftool.errors import InvalidOption, UsageError

PRECISIONS = {"bf16": torch.bfloat16, "fp16": torch.float16}


def available() -> list[str]:
    """The devices present, best first."""
    found = [f"cuda:{i}" for i in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    if torch.backends.mps.is_available():
        found.append("mps")
    return [*found, "cpu"]


def choose(name: str) -> torch.device:
    """`auto`, `cpu`, `cuda`, `cuda:1` or `mps` as a device that is there. Raises `UsageError` naming those present.

    Of many processes each has a GPU of its own.
    """
    present = available()
    if (here := world()).size > 1:
        return _own(name, present, here)
    if name == "auto":
        return torch.device(present[0])
    if not re.fullmatch(r"cpu|mps|cuda(:\d+)?", name):
        raise UsageError(f"--device: {name!r} is no device; choose auto, {', '.join(present)}")
    wanted = "cuda:0" if name == "cuda" else name
    if wanted not in present:
        raise UsageError(f"--device: {name} is not available; this machine has {', '.join(present)}")
    return torch.device(wanted)


def _own(name: str, present: list[str], here: World) -> torch.device:
    """The device of one of many processes."""
    gpus = [device for device in present if device.startswith("cuda")]
    if name == "cpu" or (name == "auto" and not gpus):
        return torch.device("cpu")
    if name not in ("auto", "cuda"):
        raise UsageError(f"--device: each of {here.size} processes has a device of its own; take auto, cuda or cpu")
    if here.local_size > len(gpus):
        raise UsageError(
            f"--device: {here.local_size} processes need a GPU each, and this machine has {len(gpus)}; start fewer by "
            "--nproc-per-node, or take --device cpu"
        )
    return torch.device(gpus[here.local_rank])


def describe(device: torch.device) -> str:
    """`cpu (2 threads)`, `cuda:0 (NVIDIA ...)`; of many processes the first one's: `cpu (1 thread), 2 processes`."""
    many = f", {world().size} processes" if world().size > 1 else ""
    if device.type == "cuda":
        return f"{device} ({torch.cuda.get_device_name(device)}){many}"
    return f"cpu ({_count(torch.get_num_threads(), 'thread')}){many}" if device.type == "cpu" else str(device)


def machine(device: torch.device) -> dict[str, str | int]:
    """What the last digits of a result depend on: the kind of device, on CPUs the threads, how many processes, the
    version of torch."""
    kind = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    threads = {"threads": torch.get_num_threads()} if device.type == "cpu" else {}
    return {"device": kind, **threads, "processes": world().size, "torch": str(torch.__version__)}


def check_precision(device: torch.device, precision: str) -> None:
    """Refuse arithmetic that the device is not made for. Raises `InvalidOption`."""
    if precision == "fp16" and device.type != "cuda":
        reason = f"fp16 needs a CUDA device, not {device.type}; take bf16 or fp32"
        raise InvalidOption("precision", reason, where="--precision")


def autocast(device: torch.device, precision: str) -> Callable[[], AbstractContextManager[object]] | None:
    """A context for the network's arithmetic, or None in full precision."""
    if precision == "fp32":
        return None
    dtype = PRECISIONS[precision]
    return lambda: torch.autocast(device.type, dtype=dtype)


@contextlib.contextmanager
def threads(wanted: int | None, suited: int | None = None) -> Iterator[None]:
    """Use `wanted` CPU threads, else those that suit the network, else torch's own choice (one a core, or
    OMP_NUM_THREADS); restore afterwards.

    Small networks are slower on many threads than on one, so a backbone may say what suits it. Many processes divide
    the cores of their machine.
    """
    before = torch.get_num_threads()
    most = _own_threads(before, world())
    torch.set_num_threads(wanted or min(suited or most, most))
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _own_threads(threads: int, here: World) -> int:
    """Those of one of many processes: torchrun says OMP_NUM_THREADS=1 where the user says nothing; more is a wish."""
    if here.size == 1 or os.environ.get("OMP_NUM_THREADS", "1") != "1":
        return threads
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // here.local_size)


def _count(n: int, word: str) -> str:
    return f"{n} {word}" if n == 1 else f"{n} {word}s"
