"""The search for a batch size, by training for a moment: `--batch-size auto`."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import islice, pairwise
from typing import TYPE_CHECKING

import torch

from difftool.data.batches import Batches
from difftool.distributed import world
from difftool.errors import OUT_OF_MEMORY, DifftoolError, InvalidOption, out_of_memory
from difftool.settings import AUTO
from difftool.training.loop import train
from difftool.training.memory import obtainable, peak
from difftool.training.state import TrainState

if TYPE_CHECKING:
    from torch import nn

    from difftool.components import Optimizer
    from difftool.settings import Training
    from difftool.training.latents import Feed
    from difftool.training.loss import Objective

LARGEST = 4096
"""The largest batch size that is tried. A larger one hardly helps any training."""
NEARLY = 0.9
"""The share of the best speed that is enough; the smallest batch size that reaches it is chosen."""
WARM_UP, TIMED, SECONDS = 1, 3, 1.0
"""Steps that are not timed, steps that are, and the seconds after which no further step is timed."""
FREE_MEMORY = 0.2
"""The share of the device's memory to leave free for the average, previews and other programs."""


@dataclass(frozen=True)
class BatchSizeSearch:
    """The result of a search: the batch size, and the speed of each one that was tried, in samples a second."""

    batch_size: int
    speeds: dict[int, float]
    reason: str = ""
    """The reason for trying no larger ones, unless it was their speed."""

    def __str__(self) -> str:
        speeds = ", ".join(f"{size}: {speed:,.0f}" for size, speed in self.speeds.items())
        ending = f"; {self.reason}" if self.reason else ""
        return f"batch size {self.batch_size} found; samples/s by batch size: {speeds}{ending}"


def find_batch_size(
    network: nn.Module,
    auxiliary: nn.Module | None,
    feed: Feed,
    objective: Objective,
    settings: Training,
    optimizer: Optimizer,
) -> BatchSizeSearch:
    """Return the smallest batch size that trains at nearly the best speed. Neither network is changed.

    Raises `DifftoolError` if not even one item fits into memory.
    """

    def speed(size: int) -> float:
        own, other = copy.deepcopy((network, auxiliary))
        state = TrainState.new(own, settings, objective.device, optimizer=optimizer, auxiliary=other)
        return measure_speed(state, feed, objective, replace(settings, batch_size=size, compile=False))

    smallest = settings.accumulate  # each part has at least one item
    largest = max(smallest, min(LARGEST, len(feed.train)))
    return search(speed, largest, lambda: memory_is_tight(objective.device), smallest=smallest)


def search(
    speed: Callable[[int], float], largest: int, memory_is_tight: Callable[[], bool], *, smallest: int = 1
) -> BatchSizeSearch:
    """Double the batch size until memory is tight, or until two doublings in a row gain next to nothing.

    `speed` raises an out-of-memory error if a batch does not fit.
    """
    speeds: dict[int, float] = {}
    size, reason = smallest, ""
    while size <= largest:
        try:
            speeds[size] = speed(size)
        except Exception as error:
            if not out_of_memory(error):
                raise
            reason = f"{size} needs more memory than there is"
            break
        if memory_is_tight():
            reason = f"{size} leaves too little memory for more"
            break
        before, recent = [*speeds.values()][:-2], [*speeds.values()][-2:]
        if before and max(recent) * NEARLY < max(before):
            break
        size *= 2
    if not speeds:
        raise DifftoolError(OUT_OF_MEMORY.format(" with a single item at once"))
    best = max(speeds.values())
    return BatchSizeSearch(min(size for size, one in speeds.items() if one >= NEARLY * best), speeds, reason)


def measure_speed(state: TrainState, feed: Feed, objective: Objective, settings: Training) -> float:
    """Return samples a second in the fastest step, since other programs may have held up the others."""
    size, device = settings.batch_size, objective.device
    assert isinstance(size, int)
    batches = Batches(feed.train, size, seed=0, device=device, encode=feed.encode)
    steps = train(state, batches, objective, settings, steps=WARM_UP + TIMED)
    for _ in islice(steps, WARM_UP):
        synchronize(device)
    times = [time.perf_counter()]
    for _ in steps:
        synchronize(device)
        times.append(time.perf_counter())
        if times[-1] - times[0] > SECONDS:
            break
    return size / min(end - start for start, end in pairwise(times))


def synchronize(device: torch.device) -> None:
    """Wait until the device has done all its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def memory_is_tight(device: torch.device) -> bool:
    """Return whether a batch twice as large might not fit: the last one took over half of the memory to use."""
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        return torch.cuda.max_memory_reserved(device) > (1 - FREE_MEMORY) * total / 2 or free < FREE_MEMORY * total
    most = obtainable(device)
    return most is not None and peak() > (1 - FREE_MEMORY) * most / 2


def check_processes(settings: Training) -> None:
    """Raise `InvalidOption` if the processes of this run cannot share a batch."""
    processes, reason = world().size, ""
    if processes > 1 and settings.batch_size == AUTO:
        reason = "auto is for one process; name a number"
    elif isinstance(settings.batch_size, int) and settings.batch_size < processes:
        reason = f"{processes} processes share each batch, so it has at least as many items, not {settings.batch_size}"
    if reason:
        raise InvalidOption("batch_size", reason, where="--batch-size")
