"""Every schedule, sampler and spacing samples within a bound; every schedule and prediction, or it is refused.

The data are one Gaussian, whose denoiser and whose flow from any level to the clean end are known exactly. A network
whose output is exact must lead to the same samples as the denoiser itself.
"""

from __future__ import annotations

import math
from functools import cache

import pytest
import torch
from torch import Tensor

from difftool import (
    CLEAN,
    Condition,
    Denoise,
    Estimate,
    Level,
    NoiseSchedule,
    ObjectiveSpec,
    Prediction,
    Sampler,
    Schedule,
    Spacing,
)
from difftool.diffusion.prediction import check
from difftool.options import fields, make
from difftool.plugins.registry import registry
from difftool.sampling.denoiser import Denoiser

MEAN, STD = 0.7, 0.4
"""The data, in model units."""
SPEC_STD = 0.8
"""The sigma_data of the prediction types: it need not be right for an exact output."""
STEPS, FEW = 40, 8
"""Steps for the bounds, and to see that every prediction type leads to the same samples."""
SAMPLES = 256


def names(base: type) -> list[str]:
    return registry().names(base.kind)


def schedule_cases() -> dict[str, NoiseSchedule]:
    """Return every schedule with its defaults, and with zero terminal SNR if it has that option."""
    cases: dict[str, NoiseSchedule] = {}
    for name in names(NoiseSchedule):
        cls = registry().of_kind(NoiseSchedule, name)
        cases[name] = make(cls, {})
        if any(field.name == "zero_snr" for field in fields(cls)):
            cases[f"{name}-zero-snr"] = make(cls, {"zero_snr": True})
    return cases


SCHEDULES = schedule_cases()
STOCHASTIC = {"ddpm", "euler-ancestral", "dpmpp-2m-sde", "restart"}
NO_SIGNAL = {name for name in SCHEDULES if name == "flow" or name.endswith("zero-snr")}

SPACINGS = ("karras", "leading", "linspace", "log-snr", "trailing")
BOUNDS: dict[str, tuple[float, ...]] = {
    "ddim": (0.045, 0.07, 0.07, 0.04, 0.08),
    "euler": (0.035, 0.06, 0.05, 0.03, 0.07),
    "heun": (0.004, 0.004, 0.004, 0.0035, 0.07),
    "lms": (0.003, 0.02, 0.02, 0.0025, 0.07),
    "dpmpp-2m": (0.008, 0.055, 0.055, 0.003, 0.07),
    "dpmpp-3m": (0.0025, 0.055, 0.055, 0.0003, 0.07),
    "unipc": (0.005, 0.055, 0.055, 0.002, 0.07),
}
"""Largest root mean square error of x_0 by spacing, over all schedules: about 1.4 times what was measured. Errors
of trailing, and with multistep samplers of all spacings of rows, are largest with laplace: its first levels lie far
apart."""


@cache
def table(schedule: str) -> Schedule:
    return SCHEDULES[schedule].build(1000)


def exact(x: Tensor, level: Level) -> Estimate:
    """Return the optimal estimate for N(m, s^2)."""
    gain = level.alpha * STD**2 / (level.alpha**2 * STD**2 + level.sigma**2)
    x_0 = MEAN + gain * (x - level.alpha * MEAN)
    return Estimate(x_0, (x - level.alpha * x_0) / level.sigma)


def flow(x: Tensor, level: Level) -> Tensor:
    """Return where the probability flow takes x from a level: the normal score stays."""
    return MEAN + STD / math.hypot(level.alpha * STD, level.sigma) * (x - level.alpha * MEAN)


def exact_network(prediction: Prediction, spec: ObjectiveSpec) -> Denoiser:
    """Return the denoiser of a network whose output is exactly a x_0 + b eps."""

    class Exact(Denoiser):
        def __call__(self, x: Tensor, level: Level) -> Estimate:
            def network(net_input: Tensor, t: Tensor, cond: Condition | None) -> Tensor:
                a, b = prediction.coefficients(level, spec)
                assert torch.allclose(net_input, x * prediction.input_scale(level, spec))
                estimate = exact(x, level)
                return a * estimate.x_0 + b * estimate.eps

            self.network = network
            return super().__call__(x, level)

    return Exact(lambda *_: torch.empty(0), prediction, spec)


def noise(i: int) -> Tensor:
    return torch.randn(SAMPLES, dtype=torch.float64, generator=torch.Generator().manual_seed(i + 1))


def samples(sampler: str, levels: list[Level], denoise: Denoise) -> Tensor:
    made: Sampler = make(registry().of_kind(Sampler, sampler), {})
    *_, last = made.sample(denoise, levels[0].norm * noise(-1), levels, noise)
    return last.x


@cache
def known(schedule: str, sampler: str, spacing: str, steps: int) -> tuple[list[Level], Tensor]:
    """Return the levels, and the samples of the exact denoiser."""
    made: Spacing = make(registry().of_kind(Spacing, spacing), {})
    levels = [*made.levels(table(schedule), steps), CLEAN]
    return levels, samples(sampler, levels, exact)


@pytest.mark.parametrize("sampler", names(Sampler))
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_matrix_of_bounds(schedule: str, sampler: str) -> None:
    failures = {}
    for spacing in names(Spacing):
        levels, x = known(schedule, sampler, spacing, STEPS)
        if sampler in STOCHASTIC:
            mean, std = float(x.mean()), float(x.std())
            if not (abs(mean - MEAN) < 0.1 and 0.7 < std / STD < 1.2):
                failures[spacing] = f"mean {mean:.3f}, standard deviation {std:.3f}"
        else:
            error = float((x - flow(levels[0].norm * noise(-1), levels[0])).square().mean().sqrt())
            if not error < BOUNDS[sampler][SPACINGS.index(spacing)]:
                failures[spacing] = f"error {error:.3g}"
    assert not failures


@pytest.mark.parametrize("name", names(Prediction))
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_matrix_of_predictions(schedule: str, name: str) -> None:
    """A sampler sees estimates alone, and these are the same for every prediction type: one sampler stands for all."""
    prediction = make(registry().of_kind(Prediction, name), {})
    spec = ObjectiveSpec(schedule=table(schedule), sigma_data=SPEC_STD)
    if name == "eps" and schedule in NO_SIGNAL:
        with pytest.raises(ValueError, match="leaves x_0 unknown; take another --prediction"):
            check(prediction, spec)
        return
    check(prediction, spec)
    for spacing in ("log-snr", "trailing"):  # between rows; on rows, from the very last one
        levels, expected = known(schedule, "dpmpp-3m", spacing, FEW)
        x = samples("dpmpp-3m", levels, exact_network(prediction, spec))
        torch.testing.assert_close(x, expected, rtol=0, atol=1e-6)


def test_the_matrix_is_whole() -> None:
    """All registered samplers and spacings have a bound, so that a new one cannot slip past."""
    assert set(BOUNDS) | STOCHASTIC == set(names(Sampler))
    assert set(SPACINGS) == set(names(Spacing))
