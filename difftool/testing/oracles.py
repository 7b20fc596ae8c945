"""The laws of oracles, checked with points of four Gaussians in the plane."""

from __future__ import annotations

import torch

from difftool.components import Oracle
from difftool.data.samples import Samples, points
from difftool.rng import generator
from difftool.specs import OracleSpec
from difftool.testing.known import TABLES
from difftool.testing.laws import Failed, gap, require

CPU = torch.device("cpu")
ROUNDING = 1e-3
"""Rounding error of float32, relative to the level's norm."""


def four_gaussians() -> Samples:
    """Return 400 points of four Gaussians, two for each class, with the parameters of the Gaussians."""
    means = torch.tensor([[2.0, 0.0], [0.0, 2.0], [-2.0, 0.0], [0.0, -2.0]], dtype=torch.float64)
    component, std = torch.arange(400) % 4, 0.3
    noise = torch.randn(400, 2, dtype=torch.float64, generator=generator(0, "law"))
    classes = torch.tensor([0, 1, 0, 1])
    return points(
        means[component] + std * noise,
        labels=classes[component],
        class_names=("a", "b"),
        means=means,
        mean_labels=classes,
        std=std,
    )


def gives_consistent_estimates(oracle: Oracle) -> str:
    """At every level, x_0 and eps are finite and explain the noisy state: x = alpha x_0 + sigma eps. This holds for the
    denoiser of all items and for that of one class."""
    samples, worst = four_gaussians(), 0.0
    x = torch.randn(64, 2, generator=generator(1, "law"))
    for label in (None, 1):
        for table in TABLES.values():
            denoise = oracle.denoiser(samples, OracleSpec(schedule=table, label=label, device=CPU))
            for level in (table[0], table[len(table) // 2], table[len(table) - 1]):
                x_t = level.norm * x
                estimate = denoise(x_t, level)
                error = (level.alpha * estimate.x_0 + level.sigma * estimate.eps - x_t).abs().max()
                worst = max(worst, float(error) / level.norm if bool(error.isfinite()) else float("inf"))
    if not worst <= ROUNDING:
        raise Failed(f"alpha x_0 + sigma eps is {worst:.2g} from the noisy state; at most {ROUNDING:g} is rounding")
    return f"{worst:.1g} off"


def recovers_an_item(oracle: Oracle) -> str:
    """For an item at the cleanest level, x_0 is that item, to a tenth of the data's standard deviation."""
    samples = four_gaussians()
    items = (samples.take(range(32))[0] - torch.tensor(samples.shift)) / torch.tensor(samples.scale)
    table = TABLES["ve"]
    denoise = oracle.denoiser(samples, OracleSpec(schedule=table, device=CPU))
    estimate = denoise(table[0].alpha * items.float(), table[0])
    require(gap(estimate.x_0, items) <= 0.1, f"its x_0 is {gap(estimate.x_0, items):.2g} from the item")
    return f"{gap(estimate.x_0, items):.1g} from the item"


LAWS = (gives_consistent_estimates, recovers_an_item)
