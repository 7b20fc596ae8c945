"""The learning rate of each step: the settings, or the optimizer, decide its course."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from difftool.components import Backbone, Optimizer
from difftool.errors import InvalidOption, blaming
from difftool.settings import Training

SCHEDULES: Mapping[str, Callable[[float, float], float]] = {
    "constant": lambda _part, _late: 1.0,
    "cosine": lambda part, _late: 0.5 * (1.0 + math.cos(math.pi * part)),
    "linear": lambda part, _late: 1.0 - part,
    "inverse-sqrt": lambda _part, late: 1.0 / math.sqrt(late),
}
"""The factor of the learning rate, by the part of the steps after the warm-up, and by the step in `lr_decay_steps`."""


def learning_rate(step: int, total: int, settings: Training, optimizer: Optimizer | None = None) -> float:
    """Return the rate of step 0, 1, ...: that of the optimizer if it sets one, else that of the settings.

    A linear warm-up reaches the full rate in step `warmup` - 1. Then cosine and linear fall from there to 0 at `total`.
    The inverse square root counts from the first step, and the warm-up multiplies it (Karras et al., 2024).
    """
    if optimizer is not None and (factor := factor_of(optimizer, step, total)) is not None:
        return settings.lr * factor
    warm = min(1.0, (step + 1) / settings.warmup) if settings.warmup else 1.0
    part = min(1.0, max(0, step - settings.warmup) / max(1, total - settings.warmup))
    late = max(1.0, step / (settings.lr_decay_steps or settings.warmup or 1))
    return settings.lr * warm * SCHEDULES[settings.lr_schedule](part, late)


def factor_of(optimizer: Optimizer, step: int, total: int) -> float | None:
    """Return `Optimizer.factor`. Raises `DifftoolError` for what is no factor."""
    if type(optimizer).factor is Optimizer.factor:
        return None
    with blaming(f"optimizer {optimizer.name}"):
        factor: object = optimizer.factor(step, total)
        if factor is None:
            return None
        if isinstance(factor, bool) or not isinstance(factor, (int, float)) or not 0.0 <= factor < math.inf:
            raise ValueError(f"factor() must return a number that is not negative, or None, not {factor!r:.80}")
        return float(factor)


def check_schedule(settings: Training, optimizer: Optimizer, backbone: Backbone) -> None:
    """Refuse settings of the learning rate that the optimizer would override. Raises `InvalidOption`."""
    if factor_of(optimizer, 0, max(1, settings.steps or 1)) is None:
        return
    for name, flag in (("lr_schedule", "--lr-schedule"), ("warmup", "--warmup")):
        if getattr(settings, name) != backbone.training_defaults.get(name, getattr(Training, name)):
            reason = f"optimizer {optimizer.name} sets the course of the learning rate itself; leave it out"
            raise InvalidOption(name, reason, where=flag)
