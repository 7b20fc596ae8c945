"""Walking a sampler: batches of samples, each step yielded. The caller draws bars and keeps what it wants.

Noise is keyed by (seed, sample number, step), so the batch size changes no sample.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from difftool.components import Sampler, Spacing
from difftool.denoiser import Step
from difftool.device import autocast
from difftool.errors import DifftoolError, UsageError, blaming
from difftool.keys import sample_noise
from difftool.plugins import registry
from difftool.schedule import CLEAN, Level, Schedule
from difftool.settings import Sampling
from difftool.validation import make

if TYPE_CHECKING:
    from difftool.denoiser import Estimate
    from difftool.model import Model

POINTS, IMAGES = 2_000, 16
"""How many samples when the user does not say."""
BATCH_ELEMENTS, BATCH_SAMPLES = 2**17, 8_192
"""Numbers and samples a batch may hold when the user gives no batch size: larger ones fall out of the cache."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A walk, resolved against a model: nothing is left to decide."""

    sampler: Sampler
    spacing: Spacing
    levels: tuple[Level, ...]
    """The levels visited; the last one is clean."""
    num_samples: int
    batch_size: int
    seed: int
    label: int | None
    guidance: float
    precision: str = "fp32"

    @classmethod
    def of(
        cls, model: Model, *, sampler: str | Sampler = "ddim", spacing: str | Spacing = "trailing", **settings: Any
    ) -> Plan:
        """Resolve settings (those of `Sampling`) against a model. Raises `UsageError`."""
        label = settings.pop("label", None)
        chosen = make(Sampling, {k: v for k, v in settings.items() if v is not None})
        walker = make(registry().of_kind(Sampler, sampler), {}) if isinstance(sampler, str) else sampler
        grid = make(registry().of_kind(Spacing, spacing), {}) if isinstance(spacing, str) else spacing
        if chosen.guidance != 1.0 and not model.data.classes:
            raise UsageError("--guidance: this model was trained without classes")
        if chosen.guidance != 1.0 and label is None:
            raise UsageError("--guidance: needs a --label to guide towards")
        if label is None and model.data.classes and not model.recipe.training.label_dropout:
            raise UsageError(
                "--label: this model was trained with --label-dropout 0 and knows no samples without a class"
            )
        T = len(model.schedule)
        steps = chosen.steps or min(walker.default_steps or T, T)
        return cls(
            sampler=walker,
            spacing=grid,
            levels=(*grid_levels(model.schedule, grid, steps), CLEAN),
            num_samples=chosen.num_samples or (IMAGES if model.data.is_image else POINTS),
            batch_size=chosen.batch_size or max(1, min(BATCH_SAMPLES, BATCH_ELEMENTS // math.prod(model.data.shape))),
            seed=chosen.seed,
            label=model.label_index(label),
            guidance=chosen.guidance,
            precision=chosen.precision,
        )

    @property
    def steps(self) -> int:
        return len(self.levels) - 1

    @property
    def batches(self) -> int:
        return -(-self.num_samples // self.batch_size)

    @property
    def stem(self) -> str:
        """`ddim-50`: what files are called after."""
        return f"{self.sampler.name}-{self.steps}"


@dataclass(frozen=True)
class Progress:
    """The state of one batch at one level, x_T first. Tensors stay on the device."""

    batch: int
    first: int
    """Number of the batch's first sample."""
    step: int
    """Completed steps of this batch."""
    done: bool
    level: Level
    x: Tensor
    """(B, *shape) in model units."""
    estimate: Estimate | None
    """What the denoiser said in the step; None for x_T."""


def grid_levels(schedule: Schedule, spacing: Spacing, steps: int) -> Sequence[Level]:
    """The levels of a grid, checked: exactly `steps`, strictly from noisy to clean. Raises `UsageError`."""
    if steps > len(schedule):
        raise UsageError(f"--steps: {steps} is more than the schedule's {len(schedule)} levels")
    try:
        with blaming(f"spacing {spacing.name}"):
            levels = list(spacing.levels(schedule, steps))
    except ValueError as error:
        raise UsageError(f"spacing {spacing.name}: {error}") from None
    angles = [level.theta for level in levels]
    if len(levels) != steps or any(a <= b for a, b in pairwise(angles)) or angles[-1] <= 0.0:
        raise DifftoolError(f"spacing {spacing.name} gave no strictly falling grid of {steps} levels")
    return levels


def sample(model: Model, plan: Plan) -> Iterator[Progress]:
    """Walk every batch, yielding x_T and the state after each step."""
    for batch, first in enumerate(range(0, plan.num_samples, plan.batch_size)):
        count = min(plan.batch_size, plan.num_samples - first)
        yield from walk(model, plan, batch, first, count)


@torch.no_grad()
def walk(model: Model, plan: Plan, batch: int, first: int, count: int) -> Iterator[Progress]:
    """Walk the samples first..first+count-1."""
    draw = partial(sample_noise, first, count, model.data.shape, plan.seed, device=model.device)
    denoise = model.denoiser(
        count, label=plan.label, guidance=plan.guidance, autocast=autocast(model.device, plan.precision)
    )
    x = plan.levels[0].norm * draw("x_T")
    yield Progress(batch, first, 0, False, plan.levels[0], x, None)
    step = 0
    what = f"sampler {plan.sampler.name}"
    walked = plan.sampler.walk(denoise, x, plan.levels, lambda i: draw("step", i))
    while True:
        try:
            with blaming(what):
                state = next(walked)
        except StopIteration:
            break
        except ValueError as error:
            raise DifftoolError(f"{what}: {error}") from error
        step += 1
        if not isinstance(state, Step) or state.x.shape != x.shape:
            raise DifftoolError(f"{what}: step {step} gave no state shaped {tuple(x.shape)}")
        yield Progress(batch, first, step, step == plan.steps, state.level, state.x, state.estimate)
    if step != plan.steps:
        raise DifftoolError(f"sampler {plan.sampler.name} made {step} steps of {plan.steps}")
