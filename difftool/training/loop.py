"""The training loop: a generator of completed steps. The caller owns the state, draws bars, saves and stops.

Everything random is a function of (seed, step). Nothing in a step waits for the device: a gradient that is not finite
masks its step there, and `check_finite` reports it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch

from difftool.data.batches import Batches
from difftool.data.samples import Samples
from difftool.diffusion.memory_layout import layout_of
from difftool.distributed import SINGLE, ProcessGroup
from difftool.errors import Diverged, blaming
from difftool.rng import key, sample_noise, seed_globally
from difftool.training.batch import Moment
from difftool.training.frozen import evaluating, train_mode
from difftool.training.inputs import inputs_from
from difftool.training.loss import Objective
from difftool.training.minimise import Predictor, batch_of, item_losses, paired
from difftool.training.rate import learning_rate
from difftool.training.state import TrainState
from difftool.training.step import StepResult, make_step

if TYPE_CHECKING:
    from difftool.settings import Training

MAX_SKIPS = 20
"""Steps in a row that fp16 may skip. Each of them halves the first scale of 2^16, which below 1 no longer helps."""
REPEATS = 4
"""Levels at which each held-out item is measured."""


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
    if settings.precision != "fp32":
        advice.append("--precision fp32")
    return f"{what} in step {step + 1}; try {' or '.join(advice)}"


@torch.no_grad()
def held_out_loss(
    state: TrainState,
    samples: Samples,
    objective: Objective,
    *,
    batch_size: int,
    steps: int = 0,
    group: ProcessGroup = SINGLE,
) -> float:
    """Return the mean unweighted loss over all held-out items, each at the same stratified levels every time."""
    total, n, levels, device = 0.0, len(samples), len(objective), objective.device

    def called(*arguments: Any) -> torch.Tensor:
        with blaming(objective.network):
            output: torch.Tensor = state.network(*arguments)
            return output

    with evaluating(state.network, state.auxiliary):
        for start in range(0, n, batch_size)[group.rank :: group.size]:
            indices = list(range(start, min(n, start + batch_size)))
            items, raw = samples.take(indices)
            x_0 = objective.data.scaling.to_model(items.to(device))
            cond = objective.data.model_condition(None if raw is None else raw.to(device))
            noise = samples.take_noise(indices)
            for repeat in range(REPEATS):
                if noise is not None:
                    eps = noise.to(device, torch.float32)
                else:
                    eps = sample_noise(start, len(indices), samples.shape, 0, "held-out", repeat, device=device)
                u = (torch.tensor(indices, device=device) + 0.5) / n + repeat / REPEATS
                t = ((u % 1.0) * levels).long().clamp(max=levels - 1)
                inputs, random_key = objective.inputs(x_0, eps, t, cond), (0, "held-out", start, repeat)
                if objective.pairs:
                    inputs = paired(objective, inputs, *random_key)
                batch = batch_of(objective, inputs, Moment(state.step, steps, random_key), weighted=False)
                with blaming(f"loss {objective.loss.name}"):
                    losses = item_losses(objective, Predictor(objective, called, inputs), batch, state.auxiliary)
                total += float(losses.sum())
    return group.all_sum(total) / (n * REPEATS)
