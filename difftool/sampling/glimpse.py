"""A few samples that show what a model has learned: of each class as many, always from the same noise."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from difftool.figures.formats import undrawable
from difftool.sampling.plan import Plan
from difftool.settings import Sampling

if TYPE_CHECKING:
    from difftool.sampling.model import Model

POINTS, PANELS, LARGE_PANELS = 1_000, 16, 4
"""The numbers of samples of a model."""
LARGE = 3 * 64**2
"""The largest number of values of a sample that counts as small; of others there are fewer."""


def glimpse(model: Model, steps: int) -> Plan | None:
    """Return the plan of a few samples by DDIM, or None if no picture can show them or they need other conditions."""
    data, fields = model.data, [*model.data.condition.shapes]
    if undrawable(data.form, data.shape) or (model.needs_condition and fields != ["label"]):
        return None
    count = POINTS if data.is_points else PANELS if math.prod(data.shape) <= LARGE else LARGE_PANELS
    labels = None
    if fields == ["label"]:
        classes = min(count, len(data.class_names))
        labels = torch.arange(classes).repeat(count // classes)
    settings = Sampling(steps=min(steps, len(model.schedule)), num_samples=count if labels is None else len(labels))
    return Plan.of(model, settings, conditions={} if labels is None else {"label": labels})
