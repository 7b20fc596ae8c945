"""sdedit.toml: where trajectories start, and the trade of realism for faithfulness in closed form."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from difftool import (
    PIXELS,
    Dataset,
    DatasetContext,
    Denoise,
    Estimate,
    Level,
    Oracle,
    OracleSpec,
    Samples,
    component,
)
from difftool.sampling.loop import collect
from difftool.sampling.oracle import OracleSource
from difftool.sampling.plan import Plan
from difftool.settings import Sampling

STD, GRAY = 0.3, 200
"""The data: gray images whose pixels are independent Gaussians around 0; the image to edit is of one shade."""


class GrayImages(Dataset, name="gray-images"):
    """Stands for the data: only its shape and its scaling matter."""

    def load(self, context: DatasetContext) -> Samples:
        return Samples(items=torch.zeros(4, 1, 4, 4, dtype=torch.uint8), shape=(1, 4, 4), **PIXELS)


class Exact(Oracle, name="exact"):
    """The exact denoiser of the data."""

    def denoiser(self, samples: Samples, spec: OracleSpec) -> Denoise:
        def denoise(x: Tensor, level: Level) -> Estimate:
            variance = level.alpha**2 * STD**2 + level.sigma**2
            return Estimate(level.alpha * STD**2 / variance * x, level.sigma / variance * x)

        return denoise


@pytest.mark.parametrize("strength", [0.2, 0.5, 0.9])
@pytest.mark.parametrize("sampler", ["heun", "ddpm"])
def test_samples_are_as_faithful_and_as_real_as_the_closed_form(tmp_path: Path, strength: float, sampler: str) -> None:
    """x_t = alpha x_g + sigma z is what the ODE or the SDE starts from; for Gaussian data both are linear in x_g.

    The ODE multiplies x_t by STD/std(x_t). The SDE draws from the posterior, whose mean is E[x_0 | x_t].
    """
    Image.new("L", (4, 4), GRAY).save(tmp_path / "strokes.png")
    n = 4_000
    chosen = Sampling(init=tmp_path / "strokes.png", strength=strength, steps=1000, num_samples=n, clip=False)
    source = OracleSource.of(Exact(), GrayImages(), component("schedule", "linear"))  # type: ignore[arg-type]
    plan = Plan.of(source, chosen, sampler=sampler)
    found = collect(source, plan, [0])
    level = plan.levels[0]
    assert level.t == round(1000 * strength) - 1
    x_g = GRAY / 127.5 - 1
    noised, x, pixels = found.states[0], found.x, found.x.numel()
    assert abs(float(noised.mean()) - level.alpha * x_g) < 4 * level.sigma / math.sqrt(pixels)
    assert abs(float(noised.std()) / level.sigma - 1) < 0.02
    std = math.hypot(level.alpha * STD, level.sigma)
    if sampler == "heun":
        mean, deviation = STD / std * level.alpha * x_g, STD / std * level.sigma
    else:
        gain = level.alpha * STD**2 / std**2
        mean, deviation = gain * level.alpha * x_g, math.hypot(STD * level.sigma / std, gain * level.sigma)
    assert float(x.mean()) == pytest.approx(mean, abs=0.005)
    assert float(x.std()) == pytest.approx(deviation, rel=0.02)
