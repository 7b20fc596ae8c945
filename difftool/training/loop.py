"""The training loop: a generator of completed steps. The caller owns the state, draws bars, saves and stops.

Everything random is a function of (seed, step). Nothing in a step waits for the device: a gradient that is not finite
masks its step there, and `check_finite` reports it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch

from difftool.data.batches import Batches
from difftool.diffusion.memory_layout import layout_of
from difftool.distributed import SINGLE, ProcessGroup
from difftool.errors import Diverged
from difftool.rng import key, seed_globally
from difftool.training.frozen import train_mode
from difftool.training.inputs import inputs_from
from difftool.training.loss import Objective
from difftool.training.rate import learning_rate
from difftool.training.state import TrainState
from difftool.training.step import StepResult, make_step

if TYPE_CHECKING:
    from difftool.settings import Training

MAX_SKIPS = 20
"""Steps in a row that fp16 may skip. Each of them halves the first scale of 2^16, which below 1 no longer helps."""


def train(
    state: TrainState,
    batches: Batches,
    objective: Objective,
    settings: Training,
    *,
    steps: int,
    group: ProcessGroup = SINGLE,
) -> Iterator[StepResult]:
    """Train from `state.step` up to `steps`, and yield each step once it is complete, with its average.

    A step whose gradient is not finite leaves the weights alone; see `check_finite`.
    """
    train_mode(state.network, settings)
    if state.step >= steps:
        return
    make = make_step(state, objective, settings, steps, group)
    process_key = key(settings.seed, "step", *group.key)
    layout = layout_of(state.network, objective.data.shape)
    for inputs in inputs_from(state.step, batches, objective, settings, layout):
        seed_globally(objective.device, process_key + state.step)  # for dropout
        lr = learning_rate(state.step, steps, settings, state.optimizer.component)
        self_cond = (
            objective.self_condition and key(settings.seed, "self_cond", state.step) % 2 == 0
        )  # every other step
        result = make(inputs, lr, self_cond)
        state.unchecked.append((result.finite, result.loss))
        yield result
        if state.step >= steps:
            return


def check_finite(state: TrainState, settings: Training, group: ProcessGroup = SINGLE) -> None:
    """Wait for the device, and look at the last steps. Raises `Diverged` if one of them was masked.

    fp16 may skip steps: each of them halves the scale of the loss, until the gradient no longer overflows.
    """
    if not state.unchecked:
        return
    finites, losses = (torch.stack(column).tolist() for column in zip(*state.unchecked, strict=True))
    first = state.step - len(state.unchecked)
    state.unchecked.clear()
    for step, finite, loss in zip(range(first, state.step), finites, losses, strict=True):
        if finite:
            state.skipped_in_a_row = 0
            continue
        loss = group.all_mean(loss)
        if not (state.scaler.is_enabled() and math.isfinite(loss)):
            raise Diverged(divergence(step, loss, settings))
        state.skipped += 1
        state.skipped_in_a_row += 1
        if state.skipped_in_a_row == MAX_SKIPS:
            raise Diverged(
                f"the gradient overflowed in {MAX_SKIPS} steps in a row, up to step {step + 1}; "
                "try --precision bf16 or fp32, or a lower --lr"
            )


def divergence(step: int, loss: float, settings: Training) -> str:
    """Return the message about a step whose gradient is not finite, with settings to try."""
    what = "the gradient became infinite or NaN" if math.isfinite(loss) else f"the loss became {loss}"
    advice = ["a lower --lr"]
    if not settings.clip:
        advice.append("--clip 1")
    if settings.precision in ("bf16", "fp16"):
        advice.append("--precision fp32")
    return f"{what} in step {step + 1}; try {' or '.join(advice)}"
