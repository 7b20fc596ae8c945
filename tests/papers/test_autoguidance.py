"""autoguidance.toml: powers of Gaussians by a closed form, and the command line by hand."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from conftest import Run
from torch import Tensor

import difftool
from difftool import CLEAN, Denoise, Estimate, Guidance, GuidanceSpec, Level
from difftool.data.scaling import Scaling

PAPER = Path(__file__).resolve().parents[2] / "examples" / "papers" / "autoguidance.toml"
COSINE = difftool.component("schedule", "cosine").build(1000)


def gaussian(std: float) -> Denoise:
    """Return the exact denoiser of Gaussian data of this standard deviation."""

    def denoise(x: Tensor, level: Level) -> Estimate:
        x_0 = level.alpha * std**2 / (level.alpha**2 * std**2 + level.sigma**2) * x
        return Estimate(x_0, (x - level.alpha * x_0) / level.sigma)

    return denoise


def test_it_follows_the_score_of_a_ratio_of_powers() -> None:
    """The score is that of p_good^w / p_bad^(w - 1), for Gaussians a Gaussian of precision w/v_good - (w - 1)/v_bad."""
    good, bad, w = 0.5, 0.8, 2.5
    autoguidance = difftool.component("guidance", "autoguidance", run=Path("bad"), scale=w)
    assert isinstance(autoguidance, Guidance)
    spec = GuidanceSpec(
        shape=(2,),
        schedule=COSINE,
        count=5,
        decode=lambda x: x,
        scaling=Scaling((0.0,), (1.0,)),
        device=torch.device("cpu"),
    )
    denoise = autoguidance.denoiser(lambda **words: gaussian(bad if words else good), spec)
    x = torch.randn(5, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for t in (100, 500, 900):
        level = COSINE[t]
        v_good, v_bad = (level.alpha**2 * std**2 + level.sigma**2 for std in (good, bad))
        score = -(w / v_good - (w - 1) / v_bad) * x
        torch.testing.assert_close(denoise(x, level).x_0, (x + level.sigma**2 * score) / level.alpha)


def test_the_command_line_combines_two_runs(run: Run) -> None:
    """Samples are those of DDIM by hand with D_bad + w (D_good - D_bad), each step two network calls."""
    small = ("--config", PAPER, "--dataset.n", 300, "--batch-size", 64, "--preview-every", 0)
    for name, words in (("good", ("--steps", 60)), ("bad", ("--steps", 20, "--backbone.width", 24))):
        outcome = run("train", *small, *words, "--out", name)
        assert outcome.code == 0, outcome.err
    guidance = ("--guidance", "autoguidance", "--guidance.run", "bad", "--guidance.scale", 3)
    outcome = run("sample", "good", *guidance, "-n", 50, "--steps", 8, "--out", "x.npz", "--trajectory", "--raw")
    assert outcome.code == 0, outcome.err
    assert "16 network calls" in outcome.err
    good, bad = difftool.load("good"), difftool.load("bad")
    trajectory = torch.from_numpy(np.load("x.npz")["states"])
    x = trajectory[0]
    levels = [good.schedule[round(1000 * (8 - i) / 8) - 1] for i in range(8)]
    d_good, d_bad = good.denoiser(50), bad.denoiser(50)
    for t, s in pairwise([*levels, CLEAN]):
        g, b = d_good(x, t), d_bad(x, t)
        x_0, eps = b.x_0 + 3 * (g.x_0 - b.x_0), b.eps + 3 * (g.eps - b.eps)
        x = s.alpha * x_0 + s.sigma * eps
    torch.testing.assert_close(x, trajectory[-1], rtol=1e-3, atol=1e-3)
