"""Samples, drawn batch by batch and kept as rows alone, so that as many fit into memory as their rows do."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from difftool.data.samples import Samples
from difftool.diffusion.estimate import Step
from difftool.errors import DifftoolError, counted
from difftool.evaluation.views import View
from difftool.rng import permutation
from difftool.sampling.loop import decoded, sample

if TYPE_CHECKING:
    from difftool.sampling.plan import Plan
    from difftool.sampling.source import Source

CONDITION_NUMBERS = 2**27
"""The largest number of numbers in the conditions of items that samples share."""


@dataclass
class Drawn:
    """The rows of samples by view, and some of the samples themselves."""

    rows: dict[str, Tensor] = field(default_factory=dict)
    calls: int = 0
    """Network calls for each sample."""


def conditions_from(samples: Samples, source: Source, count: int) -> Mapping[str, Any]:
    """Return the conditions of random items, one for each sample, so that classes come as often as in the data."""
    shapes = source.data.condition.shapes
    if not shapes:
        return {}
    numbers = sum(int(torch.Size(shape).numel()) for shape in shapes.values())
    most = max(1, min(count, len(samples), CONDITION_NUMBERS // max(1, numbers)))
    _, condition = samples.take(permutation(len(samples), "conditions")[:most].tolist())
    return {} if condition is None else {name: rows for name, rows in condition.fields().items() if name in shapes}


def draw_rows(
    source: Source, plan: Plan, views: Mapping[str, View], watch: Callable[[Step], object] | None = None
) -> Drawn:
    """Draw the samples of a plan and return their rows. `watch` is called after each step.

    Raises `DifftoolError` for samples that are not finite.
    """
    drawn = Drawn()
    for step in sample(source, plan):
        if step.done:
            items = items_of(source, decoded(source, step, plan))
            for name, view in views.items():
                part = view(items)
                if name not in drawn.rows:
                    drawn.rows[name] = torch.empty(plan.num_samples, part.shape[1])
                drawn.rows[name][step.first : step.first + len(part)] = part
            drawn.calls = step.calls
        if watch is not None:
            watch(step)
    return drawn


def items_of(source: Source, x: Tensor) -> Tensor:
    """Return samples (B, *shape) in model units as items of the data: pixels, or numbers in data units."""
    if bad := int((~x.flatten(1).isfinite().all(dim=1)).sum()):
        raise DifftoolError(f"{source.name}: {bad} of {counted(len(x), 'sample')} are not finite; the model diverged")
    return source.data.scaling.to_pixels(x) if source.data.has_pixels else source.data.scaling.to_data(x)
