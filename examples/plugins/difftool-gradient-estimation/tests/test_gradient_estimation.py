"""The sampler passes the laws, is ddim if gamma is 1, and follows the formula of the paper."""

from __future__ import annotations

from itertools import pairwise

import difftool_gradient_estimation
import pytest
import torch
from difftool_gradient_estimation import GradientEstimation
from torch import Tensor

import difftool
from difftool import CLEAN, Level
from difftool.testing import PluginManager, check_sampler
from difftool.testing.known import TABLES, distance, evenly, log_snr_levels, mixture, quantiles


@pytest.mark.parametrize("gamma", [1.0, 1.5, 2.0, 3.0])
def test_it_passes_the_laws(gamma: float) -> None:
    check_sampler(GradientEstimation(gamma=gamma))


def test_it_is_found(plugin_manager: PluginManager) -> None:
    assert not plugin_manager.register(difftool_gradient_estimation).problems
    assert difftool.component("sampler", "gradient-estimation", gamma=1.5) == GradientEstimation(gamma=1.5)


def end(sampler: difftool.Sampler, levels: list[Level], x: Tensor) -> Tensor:
    *_, last = sampler.sample(mixture, x, levels, torch.zeros)
    return last.x


@pytest.mark.parametrize("table", TABLES)
def test_gamma_1_is_ddim(table: str) -> None:
    levels = [*log_snr_levels(TABLES[table], 15), CLEAN]
    x = quantiles(levels[0])
    expected = end(difftool.component("sampler", "ddim"), levels, x)
    torch.testing.assert_close(end(GradientEstimation(gamma=1.0), levels, x), expected, rtol=0, atol=1e-12)


def test_it_is_the_formula_of_the_paper() -> None:
    """With alpha = 1, x <- x + (sigma_s - sigma_t) (gamma eps + (1 - gamma) eps_last)."""
    table = TABLES["ve"]
    levels = [*(table[t] for t in range(999, 0, -90)), CLEAN]  # rows: between them alpha is not quite 1
    x = start = quantiles(levels[0])
    eps_last = None
    for t, s in pairwise(levels):
        eps = mixture(x, t).eps
        extrapolated = eps if eps_last is None else 2.0 * eps - eps_last
        x, eps_last = x + (s.sigma - t.sigma) * extrapolated, eps
    torch.testing.assert_close(end(GradientEstimation(gamma=2.0), levels, start), x, rtol=0, atol=1e-9)


@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize("calls", [5, 10, 20, 40])
def test_it_ends_nearer_to_the_data_than_ddim(table: str, calls: int) -> None:
    levels = [*log_snr_levels(TABLES[table], calls), CLEAN]
    x = quantiles(levels[0], evenly(1000))
    ours, theirs = (distance(end(s, levels, x)) for s in (GradientEstimation(), difftool.component("sampler", "ddim")))
    assert ours < 0.9 * theirs
