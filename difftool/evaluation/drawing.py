"""Samples, drawn batch by batch and kept as rows alone, so that as many fit into memory as their rows do."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from difftool.data.samples import Samples
from difftool.diffusion.estimate import Step
from difftool.errors import Diverged, counted
from difftool.evaluation.views import View
from difftool.options import Options, fields, plain
from difftool.plugins.registry import registry
from difftool.rng import permutation
from difftool.sampling.loop import decoded, sample

if TYPE_CHECKING:
    from difftool.sampling.plan import Plan
    from difftool.sampling.source import Source

CONDITION_NUMBERS = 2**27
"""The largest number of numbers in the conditions of items that samples share."""

KEPT_BYTES = 2**28
"""The largest size of samples that are kept; those of larger sets are drawn again where they are needed."""


@dataclass
class Drawn:
    """The rows of samples by view."""

    rows: dict[str, Tensor] = field(default_factory=dict)
    items: Tensor | None = None
    """The samples themselves, in data units, if they were kept."""
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
    source: Source,
    plan: Plan,
    views: Mapping[str, View],
    watch: Callable[[Step], object] | None = None,
    *,
    keep: bool = False,
) -> Drawn:
    """Draw the samples of a plan and return their rows, and with `keep` the samples themselves unless they are large.

    `watch` is called after each step. Raises `Diverged` for samples that are not finite.
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
            if keep and plan.num_samples * items[0].numel() * items.element_size() <= KEPT_BYTES:
                if drawn.items is None:
                    drawn.items = torch.empty(plan.num_samples, *source.data.shape, dtype=items.dtype)
                drawn.items[step.first : step.first + len(items)] = items
            drawn.calls = step.calls
        if watch is not None:
            watch(step)
    return drawn


def items_of(source: Source, x: Tensor) -> Tensor:
    """Return samples (B, *shape) in model units as items of the data: pixels, or numbers in data units."""
    if bad := int((~x.flatten(1).isfinite().all(dim=1)).sum()):
        raise Diverged(f"{source.name}: {bad} of {counted(len(x), 'sample')} are not finite; the model diverged")
    return source.data.scaling.to_pixels(x) if source.data.has_pixels else source.data.scaling.to_data(x)


def drawn_items(source: Source, plan: Plan, kept: Tensor | None, numbers: Sequence[int]) -> Tensor:
    """Return the samples of these numbers (B, *shape), of those that were kept or drawn again."""
    if kept is not None:
        return kept[list(numbers)]
    found: dict[int, Tensor] = {}
    for step in sample(source, plan, sorted({number // plan.batch_size for number in numbers})):
        if step.done:
            items = items_of(source, decoded(source, step, plan)).cpu()
            found |= {k: items[k - step.first] for k in numbers if 0 <= k - step.first < len(items)}
    return torch.stack([found[number] for number in numbers]) if numbers else torch.empty(0, *source.data.shape)


def table_of(plan: Plan) -> dict[str, Any]:
    """Return the settings of sampling as plain values: `{"sampler": "ddim", "sampler.eta": 0.5, "steps": 50, ...}`.

    Those that have their defaults are left out, but for the names of components, the steps and the seed.
    """
    table: dict[str, Any] = {**_changed(plan.settings), "steps": plan.steps, "seed": plan.seed}
    for part in (plan.sampler, plan.spacing, plan.guidance):
        if part is not None:
            table[part.kind] = registry().reference(type(part))
            table |= {f"{part.kind}.{name}": value for name, value in _changed(part).items()}
    return {name: value for name, value in table.items() if name != "num_samples"}


def _changed(record: Options) -> dict[str, Any]:
    """Return the options of a record that differ from their defaults, as plain values."""
    defaults = {f.name: f.default for f in fields(type(record)) if not f.required}
    names = {f.name for f in fields(type(record)) if f.required or getattr(record, f.name) != defaults[f.name]}
    return {name: value for name, value in plain(record).items() if name in names}
