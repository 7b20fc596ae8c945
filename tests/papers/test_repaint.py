"""repaint.py: the times of diffusers, the distribution of known pixels, and the exact posterior of two pixels."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from conftest import Run
from others import PAPERS, normal, script, states
from torch import Tensor

from difftool import CLEAN, Denoise, Estimate, Level, Schedule, component
from difftool.sampling.denoiser import Counted, corrected
from difftool.testing import check_sampler
from difftool.testing.known import TABLES

repaint = script("repaint.py")
CORRELATION, KNOWN = 0.9, 1.5
COVARIANCE = torch.tensor([[1.0, CORRELATION], [CORRELATION, 1.0]], dtype=torch.float64)
MASK = torch.tensor([False, True]).view(1, 1, 2)
"""The second of two pixels is painted."""


def two_pixels(x: Tensor, level: Level) -> Estimate:
    """The exact denoiser of images of two pixels, which are Gaussian and correlated."""
    gain = level.alpha * COVARIANCE @ (level.alpha**2 * COVARIANCE + level.sigma**2 * torch.eye(2)).inverse()
    x_0 = x @ gain.T
    return Estimate(x_0, (x - level.alpha * x_0) / level.sigma)


def inpainted() -> Denoise:
    """Return what --inpaint makes of the denoiser."""
    return corrected(two_pixels, lambda x_0: torch.where(MASK, x_0, KNOWN))


def cosine(steps: int) -> Schedule:
    schedule: Schedule = component("schedule", "cosine").build(steps)  # type: ignore[attr-defined]
    return schedule


def every(schedule: Schedule) -> list[Level]:
    return [*reversed(list(schedule)), CLEAN]


def painted(resamplings: int, n: int = 20_000) -> Tensor:
    """Return samples (n,) of the second pixel, where the first one is known."""
    sampler, noise = repaint.RePaint(jump=5, resamplings=resamplings), normal((n, 1, 1, 2))
    x = states(sampler, noise(-1), every(cosine(50)), denoise=inpainted())[-1]
    assert torch.all(x[..., 0] == KNOWN)
    return x[..., 1].flatten()


@pytest.mark.parametrize(("steps", "jump", "resamplings"), [(50, 10, 3), (23, 5, 2), (12, 4, 1), (8, 10, 4)])
def test_it_visits_the_times_of_diffusers(steps: int, jump: int, resamplings: int) -> None:
    """Theirs lists each level from which a step goes down, and each to which one goes up."""
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.RePaintScheduler(num_train_timesteps=steps)
    scheduler.set_timesteps(steps, jump_length=jump, jump_n_sample=resamplings)
    times = scheduler.timesteps.tolist()
    down = [t for before, t in zip([steps, *times], times, strict=False) if t < before]
    visited: list[float] = []

    def denoise(x: Tensor, level: Level) -> Estimate:
        visited.append(level.t)
        return two_pixels(x, level)

    counted = Counted(denoise)
    sampler = repaint.RePaint(jump=jump, resamplings=resamplings)
    states(sampler, normal((1, 1, 1, 2))(-1), every(cosine(steps)), denoise=counted)
    assert visited == down
    assert counted.calls == sampler.claimed_calls(steps)


def test_known_pixels_are_those_of_the_forward_process() -> None:
    """Line 5 of algorithm 1: the known part of each state is alpha x_0 + sigma eps."""
    n = 100_000
    levels = every(cosine(20))
    found = states(repaint.RePaint(jump=5, resamplings=2), normal((n, 1, 1, 2))(-1), levels, denoise=inpainted())
    for x, level in zip(found[:-1], levels[1:], strict=False):
        known = x[..., 0]
        assert abs(float(known.mean()) - level.alpha * KNOWN) < 4 * level.sigma / math.sqrt(n)
        assert abs(float(known.var()) / level.sigma**2 - 1) < 4 * math.sqrt(2 / n)


def test_resampling_brings_the_painted_pixel_into_harmony() -> None:
    """Given the first pixel, the second is Gaussian around 0.9 of it; a single pass is far off, and jumps cure it."""
    mean = CORRELATION * KNOWN
    errors = [abs(float(painted(r).mean()) - mean) for r in (1, 2, 10)]
    assert errors[0] > 0.2
    assert errors[1] < 0.75 * errors[0]
    assert errors[2] < 0.25 * errors[0]


def test_one_pass_is_ddpm() -> None:
    levels, x = every(TABLES["linear"])[::-50][::-1], normal((16, 1))(-1)
    ours, theirs = (states(s, x, levels)[:-1] for s in (repaint.RePaint(resamplings=1), component("sampler", "ddpm")))  # type: ignore[arg-type]
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


@pytest.mark.slow
def test_it_keeps_the_laws() -> None:
    check_sampler(repaint.RePaint(resamplings=2))


def test_it_paints(run: Run, images_run: Path) -> None:
    from PIL import Image

    Image.new("RGB", (8, 8), (200, 90, 30)).save("photo.png")
    mask = Image.new("L", (8, 8), 0)
    mask.paste(255, (0, 0, 4, 8))
    mask.save("mask.png")
    words = ("--plugin", PAPERS / "repaint.py", "--sampler", "repaint", "--sampler.jump", 2, "--sampler.resamplings", 2)
    image = ("--inpaint", "photo.png", "--mask", "mask.png")
    done = run("sample", images_run, *words, "--steps", 6, "-n", 2, *image, "--out", "x.npy")
    assert done.code == 0, done.err
    import numpy as np

    x = np.load("x.npy")
    assert (x[:, :, :, 4:].reshape(2, 3, -1) == np.array([200, 90, 30])[None, :, None]).all()
    assert "10 network calls each" in done.err
