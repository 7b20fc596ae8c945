"""The needs of a run before it trains: memory, time, and room on the disk."""

from __future__ import annotations

import contextlib
import math
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from difftool.data.splitting import subset
from difftool.distributed import ProcessGroup
from difftool.errors import one_line, spending
from difftool.figures.formats import undrawable
from difftool.runs.folder import RunFolder, step_of
from difftool.runs.latents import tensors_of
from difftool.settings import is_never
from difftool.training.batch_size import synchronize
from difftool.training.fake_step import fake_step
from difftool.training.held_out import held_out_loss
from difftool.training.loop import train
from difftool.training.memory import obtainable, resident
from difftool.training.vectors import own_part

if TYPE_CHECKING:
    from difftool.settings import Training
    from difftool.training.experiment import Experiment
    from difftool.training.step import StepResult

WARM_UP, TIMED = 0.1, 0.5
"""The seconds for steps that are not timed, and for steps that are; there are at least two of the latter."""
FEWEST = 2
PICTURES = 80 * 2**20
"""The memory that drawing a preview takes: 60 MiB for points and 110 MiB for images in trials."""


@dataclass(frozen=True)
class Times:
    """Seconds of training. Pictures, metrics and saving are left out."""

    first: float
    """The first step, in which a network may be compiled."""
    step: float
    """Each step after that."""
    held_out: float
    """Each measurement of the held-out loss."""
    timed: int
    """The number of steps that were timed."""


@dataclass(frozen=True)
class Estimate:
    """The needs of a run. Sizes are in bytes, for one process."""

    flops: float | None
    """The floating-point operations of a step, or None if they are unknown."""
    memory: Mapping[str, int]
    """The parts of the memory at its peak: that of the process on a CPU, or else that of the device."""
    obtainable: int | None
    """The memory that there is for it."""
    disk: int
    """The largest size of the run folder, without pictures and logs."""
    free_disk: int
    times: Times | None
    """None if no step was made."""
    seconds: float | None
    """The time of all steps that are left."""
    unknown: str = ""
    """The reason why activations and operations are unknown, if they are."""

    @property
    def peak(self) -> int:
        """The memory at its peak."""
        return sum(self.memory.values())


def estimate(experiment: Experiment, group: ProcessGroup, folder: RunFolder) -> Estimate:
    """Measure a step on tensors without values and, if there is memory for them, a few real ones.

    `folder` is that of the run, which need not exist. No file is written, but the experiment is used up. Raises what a
    step of training raises.
    """
    unknown, needs = "", None
    memory = state_memory(experiment)
    if experiment.device.type == "cpu":
        memory["process"] = process_memory(experiment, group, memory)
        if experiment.timetable.states > 1:
            memory["copies"] = experiment.state.bytes
    try:
        needs = fake_step(experiment, group)
    except Exception as error:  # code of strangers may look at values, and raise anything where there are none
        unknown = one_line(error)
    memory |= {} if needs is None else needs.peak
    limit, left = obtainable(experiment.device), experiment.steps - last_step(folder)
    fits = limit is None or sum(memory.values()) * group.world.local_size <= limit
    times = time_steps(experiment, group) if fits and left > 0 else None
    return Estimate(
        flops=None if needs is None else needs.flops,
        memory=memory,
        obtainable=limit,
        disk=disk(experiment, folder),
        free_disk=free_disk(folder.path),
        times=times,
        seconds=None if times is None else total_seconds(experiment, times, last_step(folder)),
        unknown=unknown,
    )


def last_step(folder: RunFolder) -> int:
    """Return the step of the newest state of a run."""
    return next(map(step_of, folder.saved_states()), 0)


def state_memory(experiment: Experiment) -> dict[str, int]:
    """Return the bytes of what is there between two steps."""
    state, samples = experiment.state, experiment.feed.train
    auxiliary = [] if state.auxiliary is None else [*state.auxiliary.parameters()]
    averaged = [weight for average in state.averages for weight in average.network.parameters()]
    data = (samples.items, *samples.columns.values()) if samples.in_memory else ()
    return {
        "weights": bytes_of([*state.network.parameters(), *auxiliary, *tensors_of(state.latents).values()]),
        "averages": bytes_of(averaged),
        "optimizer": state.optimizer.state_bytes,
        "data": bytes_of(column for column in data if isinstance(column, Tensor)),
    }


def bytes_of(tensors: Iterable[Tensor]) -> int:
    """Return the size of tensors, as far as this process holds them."""
    return sum(part.numel() * part.element_size() for part in map(own_part, tensors))


def process_memory(experiment: Experiment, group: ProcessGroup, parts: Mapping[str, int]) -> int:
    """Return the bytes of this process beside these parts: libraries, what they keep, and pictures.

    A step of one item lets the libraries bring in their kernels.
    """
    pictures = 0
    drawn = not is_never(experiment.recipe.training.preview_every or "1")
    if drawn and not undrawable(experiment.data.form, experiment.data.shape):
        pictures = PICTURES
    with contextlib.suppress(Exception):  # which the steps that are timed raise again
        small = replace(experiment.recipe.training, batch_size=max(2, group.size), accumulate=1, compile=False)
        next(steps_of(experiment, small, group, 1), None)
    experiment.state.optimizer.clear_gradients()
    return max(0, resident() - sum(parts.values())) + pictures


def steps_of(experiment: Experiment, settings: Training, group: ProcessGroup, count: int) -> Iterator[StepResult]:
    """Yield steps with these settings, on the weights and data of an experiment."""
    assert isinstance(settings.batch_size, int)
    batches, state = experiment.batches(settings.batch_size, group), experiment.state
    return train(state, batches, experiment.objective, settings, steps=state.step + count, group=group)


def time_steps(experiment: Experiment, group: ProcessGroup) -> Times:
    """Make a few steps, and measure their time."""
    settings, rows = experiment.recipe.training, experiment.timetable
    fewest = 3 * FEWEST if settings.self_condition else FEWEST  # every other step calls the network twice
    most = max(experiment.steps, 1 + fewest)
    steps = steps_of(experiment, settings, group, most)

    def seconds_of(count: int, seconds: float = math.inf) -> tuple[int, float]:
        """Make so many steps, or fewer once the time is over, and return their number and time."""
        start, made = time.perf_counter(), 0
        for result in islice(steps, count):
            experiment.meter.add(result)
            if rows.logs(result.step):
                experiment.meter.row(result, start, group=group)
            made += 1
            if made >= fewest and group.all_max(int(time.perf_counter() - start > seconds)):
                break
        synchronize(experiment.device)
        return made, time.perf_counter() - start

    with spending(experiment.batch_size):
        _, first = seconds_of(1)
        warm, _ = seconds_of(min(most // 4, most - 1 - fewest), WARM_UP)
        timed, seconds = seconds_of(most - 1 - warm, TIMED)
        return Times(first, seconds / timed, held_out_seconds(experiment, group), timed)


def held_out_seconds(experiment: Experiment, group: ProcessGroup) -> float:
    """Return the time of a measurement of the held-out loss, of which one batch is made."""
    samples = experiment.feed.held_out
    if samples is None:
        return 0.0
    some = subset(samples, [*range(min(len(samples), experiment.batch_size * group.size))])
    start = time.perf_counter()
    held_out_loss(experiment.state, some, experiment.objective, batch_size=experiment.batch_size, group=group)
    return (time.perf_counter() - start) * len(samples) / len(some)


def total_seconds(experiment: Experiment, times: Times, done: int) -> float:
    """Return the time from step `done` to the end."""
    rows, left = experiment.timetable, experiment.steps - done
    measurements = 1 + left // max(rows.steps_per_epoch, rows.log_every)
    return times.first + (left - 1) * times.step + measurements * times.held_out


def disk(experiment: Experiment, folder: RunFolder) -> int:
    """Return the size of the states, models and averages of a run when there are most of them."""
    kept = experiment.recipe.training.keep + 1  # a new one comes before an old one goes
    states = min(kept, experiment.timetable.states)
    model, best = bytes_of(experiment.model.network.parameters()), experiment.held_out is not None
    averages = experiment.averages.bytes_to_come(folder, experiment.steps)
    return states * experiment.state.bytes + (1 + best) * model + averages


def free_disk(path: Path) -> int:
    """Return the bytes that are free where a folder is, or will be."""
    path = path.absolute()
    return shutil.disk_usage(next(place for place in (path, *path.parents) if place.exists())).free
