"""What tests of papers share: scripts as modules, noise, and other people's samplers under an exact denoiser."""

from __future__ import annotations

import math
import tomllib
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from difftool import (
    Denoise,
    Level,
    Loss,
    NoiseSchedule,
    ObjectiveSpec,
    Prediction,
    Sampler,
    TimestepSampling,
    Weighting,
)
from difftool.data.facts import DataFacts
from difftool.plugins.build import build_schedule
from difftool.runs.recipe import build_recipe
from difftool.scripts import Script
from difftool.testing.known import mixture
from difftool.training.loss import Objective

PAPERS = Path(__file__).resolve().parents[2] / "examples" / "papers"


def script(name: str) -> ModuleType:
    """Return the module of a script, without adding its components to the registry of all tests."""
    return Script.read(PAPERS / name).load()


def normal(shape: Sequence[int], seed: int = 0) -> Callable[[int], Tensor]:
    """Return the noise of step i, and that of x_T as step -1; float64."""

    def noise(i: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(100_000 * seed + i + 1))

    return noise


def states(
    sampler: Sampler, x: Tensor, levels: Sequence[Level], *, denoise: Denoise = mixture, seed: int = 0
) -> list[Tensor]:
    """Return the state after each step."""
    return [step.x for step in sampler.sample(denoise, x, levels, normal(x.shape, seed))]


def levels_of(scheduler: Any) -> list[Level]:
    """Return the variance-preserving levels that a scheduler of diffusers visits, the last one included.

    From then on it computes in float64, so that small differences are differences of the formulas.
    """
    scheduler.sigmas = scheduler.sigmas.double()
    norms = [(math.hypot(1, sigma), sigma) for sigma in scheduler.sigmas.tolist()]
    return [Level.of(1 / norm, sigma / norm) for norm, sigma in norms]


def their_states(scheduler: Any, x: Tensor, levels: Sequence[Level]) -> list[Tensor]:
    """Return the state after each step of a scheduler of diffusers, under the exact denoiser of the mixture.

    `levels` has the level of each of its timesteps, or more.
    """
    found = []
    for t, level in zip(scheduler.timesteps, levels, strict=False):
        x = scheduler.step(mixture(x, level).eps, t, x).prev_sample
        found.append(x)
    return found


class Noises:
    """Replaces the random numbers of diffusers by those of each step, in order: `monkeypatch.setattr(module, ...)`."""

    def __init__(self, noise: Callable[[int], Tensor], first: int = 0) -> None:
        self.noise, self.next = noise, first

    def __call__(self, *args: object, **kwargs: object) -> Tensor:
        self.next += 1
        return self.noise(self.next - 1)


def document(name: str) -> dict[str, Any]:
    """Return the tables of a config."""
    return tomllib.loads((PAPERS / name).read_text(encoding="utf-8"))


def objective(name: str, sigma_data: float = 1.0) -> Objective:
    """Return the training objective of a config, for points of two coordinates."""
    recipe = build_recipe(document(name))
    schedule = build_schedule(recipe[NoiseSchedule], recipe.training.timesteps, recipe[Prediction])
    return Objective(
        ObjectiveSpec(schedule=schedule, sigma_data=sigma_data),
        recipe[Prediction],
        recipe[Weighting],
        recipe[TimestepSampling],
        recipe[Loss],
        device=torch.device("cpu"),
        data=DataFacts(shape=(2,), shift=(0.0, 0.0), scale=(1.0, 1.0)),
        learn_variance=recipe.training.learn_variance,
    )
