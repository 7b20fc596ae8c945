"""Laws of loss weightings."""

from __future__ import annotations

import torch

from difftool.components import Weighting
from difftool.specs import ObjectiveSpec
from difftool.testing.known import TABLES
from difftool.testing.laws import Broken


def weighs_every_level(weighting: Weighting) -> str:
    """For every level of three tables, and the plain loss of eps and of x_0, it gives a float64 weight that is finite
    and not negative, and not 0 everywhere."""
    for name, table in TABLES.items():
        spec = ObjectiveSpec(schedule=table)
        for what, native in (("eps", table.snr), ("x_0", torch.ones_like(table.snr))):
            weight = weighting.weight(native.clamp_min(1e-12), spec)
            if weight.shape != native.shape or weight.dtype != torch.float64:
                raise Broken(f"{name}, {what}: weights are {tuple(weight.shape)} {weight.dtype}, not (T,) float64")
            if not bool(weight.isfinite().all()) or bool((weight < 0).any()) or not bool((weight > 0).any()):
                raise Broken(
                    f"{name}, {what}: weights reach from {float(weight.min()):.3g} to {float(weight.max()):.3g}"
                )
    return ", ".join(TABLES)


LAWS = (weighs_every_level,)
