"""Where the time of a training step goes: by phases, and by operators in a trace."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from difftool.files import atomic
from difftool.training.batch_size import synchronize
from difftool.training.phases import PHASES, REST, watched
from difftool.training.step import StepResult

WARM_UP = 5
"""The steps before those that are measured."""


@dataclass(frozen=True)
class Operator:
    """An operator of torch, or a kernel of the device."""

    name: str
    seconds: float
    """The time in the operator itself, without those that it calls, in all traced steps."""
    calls: int


@dataclass
class StepProfile:
    """The measurement of a few steps of a run: first their phases, then as many again in a trace.

    Tracing slows steps down, so the phases are timed without it. The device finishes each phase before the next one
    begins. Neither changes a number of the run.
    """

    device: torch.device
    wanted: int
    """The number of steps to time, and to trace."""
    timed: int = 0
    traced: int = 0
    phases: dict[str, float] = field(default_factory=lambda: dict.fromkeys(PHASES, 0.0))
    """The seconds of each phase in the timed steps."""

    def follow(self, steps: Iterator[StepResult]) -> Iterator[StepResult]:
        """Yield the next steps of a run, and measure them."""
        yield from islice(steps, WARM_UP)
        clock = PhaseClock(self.device, self.phases)
        with watched(clock):
            for result in islice(steps, self.wanted):
                self.timed += 1
                yield result
            clock(REST)
        with profile(activities=activities(self.device)) as self._profiler, Marks() as marks, watched(marks):
            for result in islice(steps, self.wanted):
                self.traced += 1
                yield result

    def operators(self) -> list[Operator]:
        """Return the operators of the traced steps, those that took longest first."""
        found = []
        for event in self._profiler.key_averages():
            own = event.self_device_time_total or event.self_cpu_time_total
            if event.key not in PHASES:
                found.append(Operator(event.key, own / 1e6, event.count))
        return sorted(found, key=lambda operator: -operator.seconds)

    def write_trace(self, path: Path) -> None:
        """Write the traced steps in Chrome's format, compressed if the name says so. Raises `DifftoolError`."""
        with atomic(path) as temporary:
            self._profiler.export_chrome_trace(str(temporary))


class PhaseClock:
    """A clock that adds up the seconds of each phase."""

    def __init__(self, device: torch.device, seconds: dict[str, float]) -> None:
        self.device, self.seconds = device, seconds
        self.phase, self.since = REST, time.perf_counter()

    def __call__(self, phase: str) -> None:
        synchronize(self.device)
        now = time.perf_counter()
        self.seconds[self.phase] += now - self.since
        self.phase, self.since = phase, now


class Marks(contextlib.ExitStack):
    """Marks of the phases in a trace."""

    def __call__(self, phase: str) -> None:
        self.close()
        self.enter_context(record_function(phase))


def activities(device: torch.device) -> list[ProfilerActivity]:
    """Return what to record for a device."""
    return [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.type == "cuda" else [])]
