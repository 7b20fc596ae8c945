"""Faults of the mathematics: samplers in few steps, and the formulas of the tutorials' sources."""

from __future__ import annotations

import pytest
import torch
from test_orders import ORDERS, error, table

import difftool
from difftool import CLEAN, Level, Sampler, component
from difftool_plugins.samplers import difftool_samplers, difftool_spacings
from difftool_plugins.samplers.ddim import DDIM
from difftool_plugins.samplers.multistep import usable_nodes
from difftool_plugins.samplers.spacings import Karras, Leading, Trailing

NAMES = [cls.name for cls in difftool_samplers()]
SPACINGS = [cls.name for cls in difftool_spacings()]
IN_LAMBDA = ["dpmpp-2m", "dpmpp-2m-sde-0", "dpmpp-3m", "unipc-1", "unipc", "unipc-3"]


# --- few steps -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def spiral() -> difftool.Model:
    """A network that has learned a swiss roll, whose points end at 1.4."""
    return difftool.train(dataset=component("dataset", "swiss-roll", n=20000), steps=1500, seed=0)


@pytest.mark.slow
@pytest.mark.parametrize("spacing", SPACINGS)
def test_few_steps_end_near_the_data(spiral: difftool.Model, spacing: str) -> None:
    """No sampler in 5 to 8 steps ends far from the data, with any spacing."""
    for sampler in NAMES:
        for steps in (5, 6, 8):
            x = spiral.sample(1000, sampler=sampler, spacing=spacing, steps=steps, seed=0)
            assert float(x.abs().max()) < 2.2, (sampler, steps)


@pytest.mark.parametrize("name", IN_LAMBDA)
def test_long_steps_are_of_first_order(name: str) -> None:
    """Multistep samplers in five steps of karras stay between two points of data, as ddim does."""
    levels = [*Karras().levels(table("linear"), 5), CLEAN]

    def two_points(x: torch.Tensor, level: Level) -> difftool.Estimate:
        """The exact denoiser of two points at -1 and 1."""
        x_0 = (level.alpha * x / level.sigma**2).tanh()
        return difftool.Estimate(x_0, (x - level.alpha * x_0) / level.sigma)

    start = torch.linspace(-3, 3, 101, dtype=torch.float64)
    sampler: Sampler = ORDERS[name][0]
    for step in sampler.sample(two_points, start, levels, lambda i: torch.zeros_like(start)):
        t = step.level
        assert float((step.x.abs() - t.sigma / t.norm * 3).max()) < 1.1
    assert float(step.x.abs().max()) < 1.01


@pytest.mark.parametrize("schedule", ["linear", "cosine", "flow"])
def test_rounded_rows_keep_the_second_order(schedule: str) -> None:
    """`dpmpp-2m` on trailing keeps its order where steps in rows of the table are rounded: 286, 500, 600, 667 steps."""
    errors = {n: error(ORDERS["dpmpp-2m"][0], [*Trailing().levels(table(schedule), n), CLEAN]) for n in (250, 286, 667)}
    plain = error(DDIM(), [*Trailing().levels(table(schedule), 667), CLEAN])
    assert errors[286] < errors[250]
    assert errors[667] < errors[286]
    for n in (500, 600, 667):  # a step of first order alone made 1e-3 of it
        found = error(ORDERS["dpmpp-2m"][0], [*Trailing().levels(table(schedule), n), CLEAN])
        assert found < 0.1 * plain, n


def test_sudden_growth_still_lowers_the_order() -> None:
    """A long last step after short ones, as leading has, is not extrapolated over."""
    for n in (160, 200, 250):
        grid = [*Leading().levels(table("linear"), n), CLEAN]
        assert error(ORDERS["dpmpp-2m"][0], grid) < 6e-4, n


def test_the_order_follows_the_step() -> None:
    """Steps in lambda above 1 use no estimate of the past; a correction at the end of the step stays."""
    nodes = [0.0, 1.0, -1.0, -2.0]
    assert usable_nodes(nodes, 0.9) == [0, 1, 2, 3]
    assert usable_nodes(nodes, 1.1) == [0, 1]
    assert usable_nodes([0.0, -0.3, -0.6], 0.5) == [0, 1]  # a line through near nodes in a short step, no parabola
    assert usable_nodes([0.0, -0.3], 0.9) == [0]
    assert usable_nodes([0.0, float("nan"), -float("inf")], 0.9) == [0]
