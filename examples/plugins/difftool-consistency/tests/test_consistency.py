"""Loss and sampler pass the laws, follow the formulas of the papers, and make a model that draws in two steps."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import difftool_consistency
import pytest
import torch
from difftool_consistency import ConsistencySampler, ConsistencyTraining
from difftool_consistency.target import Target
from torch import Tensor, nn

import difftool
from difftool import CLEAN, DatasetContext, Estimate, Level
from difftool.testing import PluginManager, check_component, check_sampler, invoke


@pytest.mark.parametrize("decay", [0.0, 0.9])
def test_the_loss_passes_the_laws(decay: float) -> None:
    check_component(ConsistencyTraining(decay=decay))


def test_the_sampler_passes_the_laws() -> None:
    check_sampler(ConsistencySampler())


@pytest.fixture
def plugin(plugin_manager: PluginManager) -> None:
    assert not plugin_manager.register(difftool_consistency).problems


def test_they_are_found(plugin: None) -> None:
    assert difftool.component("loss", "consistency") == ConsistencyTraining()
    assert difftool.component("sampler", "consistency") == ConsistencySampler()


def test_the_number_of_levels_doubles() -> None:
    loss = ConsistencyTraining(first=10, last=80)
    assert [loss.levels(step, 400) for step in (0, 99, 100, 200, 300, 399)] == [10, 10, 20, 40, 80, 80]
    assert {ConsistencyTraining().levels(step, 100) for step in range(100)} == {20}
    with pytest.raises(ValueError, match="last: must be at least first, 20"):
        ConsistencyTraining(last=10)


def test_the_loss_is_the_distance_of_neighbouring_estimates() -> None:
    """The estimate is t in each number, so levels 100/20 = 5 apart differ by 5; below level 5 the target is x_0."""
    x_0, seen = torch.full((3, 4), 7.0), []

    class Predict:
        def x_0(self, x_t: Tensor, t: Tensor, cond: object, network: nn.Module | None = None) -> Tensor:
            seen.append(network)
            return t[:, None].expand(3, 4).to(torch.float32)

    batch: Any = SimpleNamespace(
        x_0=x_0, x_t=x_0, t=torch.tensor([50, 5, 3]), cond=None, step=0, steps=10, noised=lambda _: x_0
    )
    target = Target(nn.Linear(1, 1), timesteps=100)
    predict: Any = Predict()
    losses = ConsistencyTraining(c=1.0).loss(predict, batch, target)
    distances = [math.sqrt(4 * 5**2 + 1) - 1, math.sqrt(4 * 5**2 + 1) - 1, math.sqrt(4 * 4**2 + 1) - 1]
    torch.testing.assert_close(losses, 20 * torch.tensor(distances))
    assert seen == [None, target.average]


def test_the_target_follows_the_network() -> None:
    network, target = nn.Linear(1, 1, bias=False), Target(nn.Linear(1, 1, bias=False), timesteps=10)
    nn.init.constant_(network.weight, 1.0)
    assert target.average is not None
    nn.init.constant_(target.average.weight, 0.0)  # type: ignore[arg-type]
    with torch.no_grad():
        ConsistencyTraining(decay=0.9).after_step(network, target)
    torch.testing.assert_close(target.average.weight, torch.tensor([[0.1]]))


def test_a_step_is_an_estimate_and_fresh_noise() -> None:
    x_0, z = torch.randn(5, 2), torch.randn(5, 2)
    levels = [Level(t=9.0, alpha=0.0, sigma=1.0), Level(t=5.0, alpha=0.6, sigma=0.8), CLEAN]
    first, last = ConsistencySampler().sample(lambda *_: Estimate(x_0, x_0), x_0, levels, lambda _: z)
    torch.testing.assert_close(first.x, 0.6 * x_0 + 0.8 * z)
    assert torch.equal(last.x, x_0)
    with pytest.raises(ValueError, match="it takes at most 20 steps"):
        next(ConsistencySampler().sample(lambda *_: Estimate(x_0, x_0), x_0, levels * 8, lambda _: z))


def distance(a: Tensor, b: Tensor) -> float:
    """Return the mean Wasserstein-1 distance between two clouds of points over projections on 16 lines."""
    angles = math.pi * torch.arange(16, dtype=torch.float64) / 16
    lines = torch.stack([angles.cos(), angles.sin()])
    q = (torch.arange(200, dtype=torch.float64) + 0.5) / 200
    gaps = torch.quantile(a.double() @ lines, q, dim=0) - torch.quantile(b.double() @ lines, q, dim=0)
    return float(gaps.abs().mean())


def test_two_steps_draw_the_swiss_roll(plugin: None, tmp_path: Path) -> None:
    """After a short training, two steps come nearer to the data than two of DDIM with a model of the plain loss."""
    data = difftool.component("dataset", "swiss-roll", n=2000).load(DatasetContext(seed=5)).take(range(2000))[0]
    far = {}
    for loss, sampler in (("consistency", "consistency"), ("mse", "ddim")):
        run = tmp_path / loss
        small = ("--backbone.width", 64, "--steps", 600, "--ema", 0.99, "--preview-every", 0, "--dataset.n", 4000)
        done = invoke("train", "--loss", loss, "--prediction", "v", *small, "--out", run)
        assert done.code == 0, done.err
        far[loss] = distance(difftool.load(run).sample(2000, sampler=sampler, steps=2), data)
    assert far["consistency"] < 0.5 * far["mse"]
