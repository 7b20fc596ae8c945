"""The batch size that suits network and device, found by training for a moment: `--batch-size auto`."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import islice, pairwise
from typing import TYPE_CHECKING

import torch

from difftool.data.batches import Batches
from difftool.data.samples import Samples, Scaling
from difftool.errors import OUT_OF_MEMORY, DifftoolError, out_of_memory
from difftool.training.loop import train
from difftool.training.state import TrainState

if TYPE_CHECKING:
    from torch import nn

    from difftool.settings import Training
    from difftool.training.loss import Objective

LARGEST = 4096
"""A batch beyond this hardly helps any training."""
NEARLY = 0.9
"""Share of the best speed that is as good: of the sizes that reach it the smallest is taken."""
WARM, TIMED, SECONDS = 1, 3, 1.0
"""Steps that are not timed; steps that are; and the seconds after which they are enough."""
LEAST_FREE = 0.2
"""Share of the device's memory that must stay free: the average, previews and other programs want some."""


@dataclass(frozen=True)
class Found:
    """A batch size, and how fast each of those tried was, in items a second."""

    batch_size: int
    speeds: dict[int, float]
    reason: str = ""
    """Why no larger ones were tried, if it was not for their speed."""

    def __str__(self) -> str:
        speeds = ", ".join(f"{size}: {speed:,.0f}" for size, speed in self.speeds.items())
        ending = f"; {self.reason}" if self.reason else ""
        return f"batch size {self.batch_size} found; samples/s by batch size: {speeds}{ending}"


def fitting_batch(
    network: nn.Module, samples: Samples, objective: Objective, settings: Training, classes: int | None
) -> Found:
    """The smallest batch size that trains at nearly the best speed. The network given is not changed.

    Raises `DifftoolError` where not even one item fits.
    """

    def speed(size: int) -> float:
        return _speed(copy.deepcopy(network), samples, objective, replace(settings, batch_size=size), classes, size)

    parts = settings.accumulate  # each has an item at least
    return search(speed, max(parts, min(LARGEST, len(samples))), lambda: _crowded(objective.device), smallest=parts)


def search(speed: Callable[[int], float], largest: int, crowded: Callable[[], bool], *, smallest: int = 1) -> Found:
    """Doubles the batch size until memory is short or speed grows no more; `speed` raises where memory runs out."""
    speeds: dict[int, float] = {}
    reason = ""
    for size in _doublings(smallest, largest):
        try:
            speeds[size] = speed(size)
        except Exception as error:
            if not out_of_memory(error):
                raise
            reason = f"{size} needs more memory than there is"
            break
        if crowded():
            reason = f"{size} leaves too little memory for more"
            break
        if _levelled_off([*speeds.values()]):
            break
    if not speeds:
        raise DifftoolError(OUT_OF_MEMORY.format(" with a single item at once"))
    best = max(speeds.values())
    return Found(min(size for size, found in speeds.items() if found >= NEARLY * best), speeds, reason)


def _doublings(size: int, largest: int) -> Iterator[int]:
    while size <= largest:
        yield size
        size *= 2


def _levelled_off(speeds: list[float]) -> bool:
    """Whether two doublings in a row have gained next to nothing."""
    return len(speeds) > 2 and max(speeds[-2:]) * NEARLY < max(speeds[:-2])


def _speed(
    network: nn.Module, samples: Samples, objective: Objective, settings: Training, classes: int | None, size: int
) -> float:
    """Items a second, of the fastest step: others may have been held up by other programs."""
    device = objective.device
    state = TrainState.new(network, settings, device)
    steps = train(
        state,
        Batches(samples, size, seed=0, device=device),
        objective,
        settings,
        steps=WARM + TIMED,
        scaling=Scaling.of(samples),
        classes=classes,
        device=device,
    )
    for _ in islice(steps, WARM):
        _finish(device)
    times = [time.perf_counter()]
    for _ in steps:
        _finish(device)
        times.append(time.perf_counter())
        if times[-1] - times[0] > SECONDS:
            break
    return size / min(end - start for start, end in pairwise(times))


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def _crowded(device: torch.device) -> bool:
    """Whether a batch twice as large might not fit: the last one took over half of what may be taken."""
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        return torch.cuda.max_memory_reserved(device) > (1 - LEAST_FREE) * total / 2 or free < LEAST_FREE * total
    import os
    import resource
    import sys

    page = os.sysconf("SC_PAGE_SIZE")
    taken = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return taken > (1 - LEAST_FREE) * page * os.sysconf("SC_PHYS_PAGES") / 2
