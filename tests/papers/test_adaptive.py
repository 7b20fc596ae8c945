"""adaptive.py: algorithm 1 written out, errors that fall with the tolerance, short steps where the estimate turns."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence

import pytest
import torch
from conftest import Run
from others import PAPERS, normal, script, states
from torch import Tensor

from difftool import CLEAN, Estimate, Level, component
from difftool.sampling.denoiser import Counted
from difftool.testing import check_sampler
from difftool.testing.known import TABLES, distance, evenly, mixture, quantiles

adaptive = script("adaptive.py")


def karras(steps: int) -> list[Level]:
    return [*component("spacing", "karras").levels(TABLES["ve"], steps), CLEAN]  # type: ignore[attr-defined]


def test_an_accepted_step_is_algorithm_1() -> None:
    """x' and x'' with f = 0 and h g^2 = sigma_t^2 - sigma_s^2, and x'' is kept."""
    t, s = Level.of(1.0, 3.0), Level.of(1.0, 2.9)
    x, z = 3 * normal((5, 2))(-1), normal((5, 2))(0)
    h_g2 = t.sigma**2 - s.sigma**2

    def score(x: Tensor, level: Level) -> Tensor:
        return -mixture(x, level).eps / level.sigma

    x_1 = x + h_g2 * score(x, t) + math.sqrt(h_g2) * z
    x_tilde = x + h_g2 * score(x_1, s) + math.sqrt(h_g2) * z
    delta = torch.maximum(torch.tensor(0.0078).double(), 0.2 * torch.maximum(x_1.abs(), x.abs()))
    x_2 = (x_1 + x_tilde) / 2
    assert float(((x_1 - x_2) / delta).square().mean(1).sqrt().max()) < 1
    torch.testing.assert_close(states(adaptive.Adaptive(rtol=0.2), x, [t, s])[0], x_2, rtol=0, atol=1e-12)


@pytest.mark.slow
def test_a_rejected_step_is_made_in_halves_on_one_brownian_path() -> None:
    """Whatever the tolerance, samples of one seed follow one path of the noise: they approach a common limit."""
    n = 100
    levels, x = karras(4), 80 * normal((n, 1))(-1)
    fine = states(adaptive.Adaptive(rtol=0.003, atol=0.0005), x, levels)[-1]
    errors = [
        float((states(adaptive.Adaptive(rtol=r), x, levels)[-1] - fine).abs().mean()) for r in (0.2, 0.05, 0.0125)
    ]
    assert errors[1] < 0.6 * errors[0]
    assert errors[2] < 0.6 * errors[1]


def drawn(rtol: float, n: int = 8000) -> tuple[float, int]:
    """Return the distance of samples to the data, and the calls."""
    levels, denoise = karras(8), Counted(mixture)
    order = torch.randperm(n, generator=torch.Generator().manual_seed(0))
    x = quantiles(levels[0], evenly(n))[order].view(-1, 1)
    return distance(states(adaptive.Adaptive(rtol=rtol), x, levels, denoise=denoise)[-1].flatten()), denoise.calls


def test_samples_approach_the_data_as_the_tolerance_falls() -> None:
    (far, few), (near, many) = drawn(0.5), drawn(0.05)
    assert far > 0.04
    assert near < 0.02
    assert few < many / 4


def test_steps_are_short_where_the_estimate_turns() -> None:
    """For N(0, 0.1^2) the score changes most around sigma = 0.1; neither far above nor far below are many steps due."""
    visited: list[float] = []

    def gaussian(x: Tensor, level: Level) -> Estimate:
        visited.append(level.sigma)
        variance = 0.01 + level.sigma**2
        return Estimate(0.01 / variance * x, level.sigma / variance * x)

    levels = [Level.of(1.0, sigma) for sigma in (10.0, 1e-3)]
    states(adaptive.Adaptive(rtol=0.05, atol=0.005), 10 * normal((50, 1))(-1), levels, denoise=gaussian)

    def calls(low: float, high: float) -> int:
        return sum(low <= sigma < high for sigma in visited)

    assert calls(0.02, 0.5) > 3 * calls(0.001, 0.02)


def test_an_item_does_not_wait_for_the_others_in_its_result() -> None:
    """An item that needs short steps leaves its neighbours as they would be alone."""

    def ends(rows: Sequence[int]) -> Tensor:
        x = 80 * normal((8, 1))(-1)[list(rows)]
        noise = normal((8, 1), 3)
        sampler = adaptive.Adaptive()
        return [s.x for s in sampler.sample(mixture, x, karras(4), lambda i: noise(i)[list(rows)])][-1]

    together = ends(range(8))
    for row in range(8):
        torch.testing.assert_close(ends([row])[0], together[row], rtol=0, atol=1e-12)


@pytest.mark.slow
def test_it_keeps_the_laws() -> None:
    check_sampler(adaptive.Adaptive())


def test_a_comparison_counts_the_calls_that_were_made(run: Run) -> None:
    """A dry run of one number that is always 0 needs no halving, so that it says nothing of the calls to come."""
    oracle = ("--oracle", "closed-form", "--dataset", "gaussian-mixture", "-n", 50, "--reference", 20)
    words = ("--samplers", "adaptive,ddim", "--spacings", "karras", "--calls", 10, "--out", "x.png", "--json")
    outcome = run("compare", "--plugin", PAPERS / "adaptive.py", *oracle, *words)
    adaptive, ddim = json.loads(outcome.out)["results"]
    assert adaptive["calls"] > 100
    assert ddim["calls"] == 10


def test_the_tolerance_is_an_option(run: Run) -> None:
    oracle = ("--oracle", "closed-form", "--dataset", "gaussian-mixture", "-n", 20, "--spacing", "karras")
    words = ("--plugin", PAPERS / "adaptive.py", "--sampler", "adaptive", "--overwrite", "--out", "x.npy")
    loose, tight = (run("sample", *oracle, *words, "--sampler.rtol", rtol).err for rtol in (0.5, 0.05))
    calls = [int(err.split(" network calls each")[0].split()[-1].replace(",", "")) for err in (loose, tight)]
    assert 2 * calls[0] < calls[1]
