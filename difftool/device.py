"""Device, precision and threads. `auto` never falls back in silence: the choice is printed and stored."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

import torch

from difftool.errors import InvalidOption, UsageError

PRECISIONS = {"bf16": torch.bfloat16, "fp16": torch.float16}


def available() -> list[str]:
    """The devices present, best first."""
    found = [f"cuda:{i}" for i in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    if torch.backends.mps.is_available():
        found.append("mps")
    return [*found, "cpu"]


def choose(name: str) -> torch.device:
    """`auto`, `cpu`, `cuda`, `cuda:1` or `mps` as a device that is there. Raises `UsageError` naming those present."""
    present = available()
    if name == "auto":
        return torch.device(present[0])
    if not re.fullmatch(r"cpu|mps|cuda(:\d+)?", name):
        raise UsageError(f"--device: {name!r} is no device; choose auto, {', '.join(present)}")
    wanted = "cuda:0" if name == "cuda" else name
    if wanted not in present:
        raise UsageError(f"--device: {name} is not available; this machine has {', '.join(present)}")
    return torch.device(wanted)


def describe(device: torch.device) -> str:
    """`cpu (2 threads)`, `cuda:0 (NVIDIA ...)`."""
    if device.type == "cuda":
        return f"{device} ({torch.cuda.get_device_name(device)})"
    return f"cpu ({_count(torch.get_num_threads(), 'thread')})" if device.type == "cpu" else str(device)


def machine(device: torch.device) -> dict[str, str | int]:
    """What the last digits of a result depend on: the kind of device, on CPUs the threads, the version of torch."""
    kind = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    threads = {"threads": torch.get_num_threads()} if device.type == "cpu" else {}
    return {"device": kind, **threads, "torch": str(torch.__version__)}


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

    Small networks are slower on many threads than on one, so a backbone may say what suits it.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(wanted or min(suited or before, before))
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _count(n: int, word: str) -> str:
    return f"{n} {word}" if n == 1 else f"{n} {word}s"
