"""The loss of held-out items, by quarters of the noise levels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from difftool.data.samples import Samples
from difftool.distributed import SINGLE, ProcessGroup
from difftool.errors import blaming
from difftool.rng import sample_noise
from difftool.training.batch import Moment
from difftool.training.frozen import evaluating
from difftool.training.loss import Objective
from difftool.training.metrics import by_quartile, finite, means
from difftool.training.minimise import Predictor, batch_of, item_losses, paired
from difftool.training.state import TrainState

REPEATS = 4
"""Levels at which each held-out item is measured, one in each quarter of t."""


@dataclass(frozen=True)
class HeldOutLoss:
    """The mean unweighted loss of held-out items; None where it is not finite."""

    mean: float | None
    quartiles: list[float | None]
    """By quarters of t, from clean to noisy; None for a quarter without levels."""


@torch.no_grad()
def held_out_loss(
    state: TrainState,
    samples: Samples,
    objective: Objective,
    *,
    batch_size: int,
    steps: int = 0,
    group: ProcessGroup = SINGLE,
) -> HeldOutLoss:
    """Return the loss over all held-out items, each at the same stratified levels and with the same noise every time.

    Two measurements of a run therefore differ by its weights alone.
    """
    n, levels, device = len(samples), len(objective), objective.device
    total = torch.zeros(2, 4, dtype=torch.float64)  # the sum and the number of the losses of each quarter

    def called(*arguments: Any) -> torch.Tensor:
        with blaming(objective.network):
            output: torch.Tensor = state.network(*arguments)
            return output

    with evaluating(state.network, state.auxiliary):
        starts = range(0, n, batch_size)
        own = starts[group.rank :: group.size]
        idle = -(-len(starts) // group.size) - len(own) if group.sharded else 0  # all gather the blocks equally often
        for start, weight in [*((start, 1.0) for start in own), *((0, 0.0),) * idle]:
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
                total += weight * torch.tensor(by_quartile(losses, batch.t, levels), dtype=torch.float64)
    sums, counts = ([group.all_sum(value) for value in row] for row in total.tolist())
    return HeldOutLoss(finite(sum(sums) / (n * REPEATS)), means(sums, counts))
