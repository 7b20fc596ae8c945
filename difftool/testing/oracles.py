"""Laws of oracles, asked about four Gaussians in the plane."""

from __future__ import annotations

import torch

from difftool.components import Oracle
from difftool.data.samples import Samples, points
from difftool.rng import generator
from difftool.testing.known import TABLES
from difftool.testing.laws import Broken

ROUNDING = 1e-3
"""Of float32, relative to the level's norm."""


def some_points() -> Samples:
    """400 points of four Gaussians, two of each class, which say what they were drawn from."""
    means = torch.tensor([[2.0, 0.0], [0.0, 2.0], [-2.0, 0.0], [0.0, -2.0]], dtype=torch.float64)
    which, std = torch.arange(400) % 4, 0.3
    noise = torch.randn(400, 2, dtype=torch.float64, generator=generator(0, "law"))
    classes = torch.tensor([0, 1, 0, 1])
    return points(
        means[which] + std * noise,
        labels=classes[which],
        class_names=("a", "b"),
        means=means,
        mean_labels=classes,
        std=std,
    )


def tells_one_story(oracle: Oracle) -> str:
    """At every level its x_0 and eps are finite and explain what it was asked: x = alpha x_0 + sigma eps; of all items
    and of one class."""
    samples, worst = some_points(), 0.0
    x = torch.randn(64, 2, generator=generator(1, "law"))
    for label in (None, 1):
        denoise = oracle.denoiser(samples, label, torch.device("cpu"))
        for table in TABLES.values():
            for level in (table[0], table[len(table) // 2], table[len(table) - 1]):
                state = level.norm * x
                found = denoise(state, level)
                gap = (level.alpha * found.x_0 + level.sigma * found.eps - state).abs().max()
                worst = max(worst, float(gap) / level.norm if bool(gap.isfinite()) else float("inf"))
    if not worst <= ROUNDING:
        raise Broken(f"alpha x_0 + sigma eps is {worst:.2g} from the x it was asked about; {ROUNDING:g} is rounding")
    return f"{worst:.1g} off"


def knows_the_data(oracle: Oracle) -> str:
    """At the cleanest level of an item its x_0 is that item, to a tenth of the data's deviation."""
    samples = some_points()
    items = (samples.take(range(32))[0] - torch.tensor(samples.shift)) / torch.tensor(samples.scale)
    level = TABLES["ve"][0]
    found = oracle.denoiser(samples, None, torch.device("cpu"))(level.alpha * items.float(), level)
    gap = float((found.x_0 - items).abs().max())
    if not gap <= 0.1:
        raise Broken(f"its x_0 is {gap:.2g} from the item that it was asked about")
    return f"{gap:.1g} from the item"


LAWS = (tells_one_story, knows_the_data)
