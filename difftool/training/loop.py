"""The training loop: a generator of records. The caller owns the state, draws bars, saves and stops.

A yielded record means that its step is complete, average and all. Everything random is a function of (seed, step).
Nothing in a step waits for the device: a gradient that is not finite masks its step there, and `settle` tells of it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

from difftool.data.batches import Batches
from difftool.data.samples import Samples, Scaling
from difftool.distributed import SINGLE, ProcessGroup
from difftool.errors import Diverged
from difftool.rng import key, sample_noise, seed_globally
from difftool.training.inputs import prepared
from difftool.training.loss import Inputs, Objective
from difftool.training.state import TrainState
from difftool.training.step import TrainStep, eager_step

if TYPE_CHECKING:
    from difftool.settings import Training

MOST_SKIPS = 20
"""Steps in a row that fp16 may skip: its first scale of 2^16 is halved in each, and below 1 that helps no more."""


class Record(NamedTuple):
    """One completed step. Tensors stay on the device."""

    step: int
    """Completed steps, this one included."""
    loss: Tensor
    """What was minimised, a scalar; of several processes, that whose mean over them is."""
    inputs: Inputs
    answer: Tensor
    """What the network said of them (B, *shape)."""
    grad_norm: Tensor
    """Of all gradients together, before they are clipped."""
    lr: float


def layout_of(network: nn.Module) -> torch.memory_format:
    """Convolutions are faster with the channels of a pixel side by side; for others it would be a detour."""
    convolves = any(weight.ndim == 4 for weight in network.parameters())
    return torch.channels_last if convolves else torch.contiguous_format


def learning_rate(step: int, total: int, settings: Training) -> float:
    """The rate of step 0, 1, ...: linear warm-up, then constant or half a cosine down to 0."""
    warm = min(1.0, (step + 1) / settings.warmup) if settings.warmup else 1.0
    if settings.lr_schedule == "constant" or step < settings.warmup:
        return settings.lr * warm
    part = (step - settings.warmup) / max(1, total - settings.warmup)
    return settings.lr * 0.5 * (1.0 + math.cos(math.pi * min(1.0, part)))


def train(
    state: TrainState,
    batches: Batches,
    objective: Objective,
    settings: Training,
    *,
    steps: int,
    scaling: Scaling,
    classes: int | None,
    device: torch.device,
    step: TrainStep | None = None,
    group: ProcessGroup = SINGLE,
) -> Iterator[Record]:
    """Train from `state.step` up to `steps`. A gradient that is not finite never touches the weights; see `settle`.

    `step` stands in for `eager_step` where it was compiled, or shares gradients with a `group`; records then tell of
    this process's part of the batches.
    """
    step = step or eager_step(state, objective, settings, device)
    state.network.train()
    if state.step >= steps:
        return
    stream = prepared(
        batches,
        objective,
        settings,
        step=state.step,
        scaling=scaling,
        classes=classes,
        layout=layout_of(state.network),
    )
    own = key(settings.seed, "step", *group.key)
    for inputs in stream:
        seed_globally(device, own + state.step)  # for dropout
        lr = learning_rate(state.step, steps, settings)
        guess = objective.self_condition and key(settings.seed, "guess", state.step) % 2 == 0  # every other step
        outcome = step(inputs, lr, guess)
        state.step += 1
        state.unsettled.append((outcome.sound, outcome.loss))
        yield Record(state.step, outcome.loss, inputs, outcome.answer, outcome.grad_norm, lr)
        if state.step >= steps:
            return


def settle(state: TrainState, settings: Training, group: ProcessGroup = SINGLE) -> None:
    """Wait for the device, and look at how the last steps went. Raises `Diverged` where one of them was masked.

    fp16 may skip steps: its scale is halved in each until the gradient overflows no more.
    """
    if not state.unsettled:
        return
    sounds, losses = (torch.stack(column).tolist() for column in zip(*state.unsettled, strict=True))
    first = state.step - len(state.unsettled)
    state.unsettled.clear()
    for step, sound, loss in zip(range(first, state.step), sounds, losses, strict=True):
        if sound:
            state.skipped_in_a_row = 0
            continue
        loss = group.all_mean(loss)
        if not (state.scaler.is_enabled() and math.isfinite(loss)):
            raise Diverged(_divergence(step, loss, settings))
        state.skipped += 1
        state.skipped_in_a_row += 1
        if state.skipped_in_a_row == MOST_SKIPS:
            raise Diverged(
                f"the gradient overflowed in {MOST_SKIPS} steps in a row, up to step {step + 1}; "
                "try --precision bf16 or fp32, or a lower --lr"
            )


def _divergence(step: int, loss: float, settings: Training) -> str:
    what = "the gradient became infinite or NaN" if math.isfinite(loss) else f"the loss became {loss}"
    advice = ["a lower --lr"]
    if not settings.clip:
        advice.append("--clip 1")
    if settings.precision != "fp32":
        advice.append("--precision fp32")
    return f"{what} in step {step + 1}; try {' or '.join(advice)}"


@torch.no_grad()
def held_out_loss(
    network: nn.Module,
    samples: Samples,
    objective: Objective,
    *,
    batch_size: int,
    scaling: Scaling,
    classes: int | None,
    repeats: int = 4,
    group: ProcessGroup = SINGLE,
) -> float:
    """Mean unweighted loss over all held-out items, each at `repeats` stratified levels: the same ones every time."""
    network.eval()
    total, n, levels, device = 0.0, len(samples), len(objective), objective.device
    for start in range(0, n, batch_size)[group.rank :: group.size]:
        indices = list(range(start, min(n, start + batch_size)))
        items, labels = samples.take(indices)
        x_0 = scaling.to_model(items.to(device))
        cond = labels.to(device) if labels is not None and classes is not None else None
        for repeat in range(repeats):
            eps = sample_noise(start, len(indices), samples.shape, 0, "held-out", repeat, device=device)
            u = (torch.tensor(indices, device=device) + 0.5) / n + repeat / repeats
            t = ((u % 1.0) * levels).long().clamp(max=levels - 1)
            inputs = objective.inputs(x_0, eps, t, cond)
            output = objective.ask(network, inputs)
            total += float(objective.item_losses(objective.answer(output).float(), inputs.target).sum())
    return group.all_sum(total) / (n * repeats)
