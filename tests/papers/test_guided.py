"""cfg.toml, guidance_interval.toml, apg.toml and cfgpp.py: densities in closed form, and the code of diffusers."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from conftest import Run
from others import PAPERS, document, normal, script, states
from torch import Tensor

from difftool import CLEAN, Denoise, Estimate, Guidance, GuidanceSpec, Level, component
from difftool.data.scaling import Scaling
from difftool.sampling.denoiser import Counted
from difftool.testing import check_sampler
from difftool.testing.known import TABLES, log_snr_levels

cfgpp = script("cfgpp.py")
LINEAR = TABLES["linear"]
MEANS, STDS = torch.tensor([-1.5, 0.0, 1.2], dtype=torch.float64), torch.tensor([0.3, 0.5, 0.2], dtype=torch.float64)
"""Three Gaussians on a line, equally likely. The class is the first and the last of them."""
CLASS = [0, 2]


class Mixture:
    """The exact denoiser of some of the Gaussians, and its density at every level."""

    def __init__(self, means: Tensor, stds: Tensor) -> None:
        self.means, self.stds = means, stds

    def log_density(self, x: Tensor, level: Level) -> Tensor:
        std = (level.alpha**2 * self.stds**2 + level.sigma**2).sqrt()
        normal = torch.distributions.Normal(level.alpha * self.means, std)
        return torch.logsumexp(normal.log_prob(x[..., None]), -1) - math.log(len(self.means))

    def __call__(self, x: Tensor, level: Level) -> Estimate:
        variance = level.alpha**2 * self.stds**2 + level.sigma**2
        z = x[..., None] - level.alpha * self.means
        w = torch.softmax(-(z**2) / (2 * variance) - variance.log() / 2, -1)
        x_0 = (w * (self.means + level.alpha * self.stds**2 / variance * z)).sum(-1)
        return Estimate(x_0, (w * level.sigma / variance * z).sum(-1))


CONDITIONAL, ALL = Mixture(MEANS[CLASS], STDS[CLASS]), Mixture(MEANS, STDS)


def guided(name: str, c: Denoise = CONDITIONAL, u: Denoise = ALL, **options: Any) -> Denoise:
    """Return what a built-in guidance makes of a denoiser with the condition and one without."""
    guidance = component("guidance", name, **options)
    assert isinstance(guidance, Guidance)
    spec = GuidanceSpec(
        shape=(1,),
        schedule=LINEAR,
        count=1,
        decode=lambda x: x,
        scaling=Scaling((0.0,), (1.0,)),
        device=torch.device("cpu"),
    )
    return guidance.denoiser(lambda *, hidden=False, **_: u if hidden else c, spec)


# ── cfg ─────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("scale", [0.0, 1.0, 3.0])
def test_cfg_follows_the_gradient_of_the_sharpened_density(scale: float) -> None:
    """Section 3.2: eps is -sigma times the gradient of log p(x) + (1 + w) log p(c | x), at every level."""
    for level in log_snr_levels(LINEAR, 7):
        x = (2 * normal((50, 1))(-1)).requires_grad_()
        log_posterior = CONDITIONAL.log_density(x, level) - ALL.log_density(x, level)
        total = (ALL.log_density(x, level) + scale * log_posterior).sum()
        (gradient,) = torch.autograd.grad(total, x)
        found = guided("cfg", scale=scale)(x.detach(), level).eps
        torch.testing.assert_close(found, -level.sigma * gradient, rtol=1e-9, atol=1e-12)


def test_guided_samples_are_surer_of_their_class_and_less_diverse() -> None:
    """Figure 2: the larger the scale, the more likely is the class given the sample."""
    levels = [*log_snr_levels(LINEAR, 60), CLEAN]
    sure, spread = [], []
    for scale in (1.0, 2.0, 4.0):
        x = states(component("sampler", "ddim"), normal((4000, 1))(-1), levels, denoise=guided("cfg", scale=scale))[-1]  # type: ignore[arg-type]
        at = levels[-2]
        sure.append(float((CONDITIONAL.log_density(x, at) - ALL.log_density(x, at)).mean()))
        spread.append(float(x[x < 0].std()))
    assert sure[0] < sure[1] < sure[2]
    assert spread[0] > spread[1] > spread[2]


def test_a_share_of_the_conditions_is_hidden() -> None:
    assert document("cfg.toml")["training"]["condition_dropout"] == 0.1


# ── the interval ────────────────────────────────────────────────────────────────────────────────


def test_guidance_acts_within_its_interval_alone() -> None:
    """Eq. 5 of guidance_interval.toml: the weight is w where sigma_lo < sigma <= sigma_hi, and 1 elsewhere."""
    calls = [Counted(CONDITIONAL), Counted(ALL)]
    denoise = guided("cfg", *calls, scale=3.0, interval=(0.3, 3.0))
    levels, x = log_snr_levels(TABLES["ve"], 60), normal((20, 1))(-1)
    for level in levels:
        weight = 3.0 if 0.3 <= level.sigma / level.alpha <= 3.0 else 1.0
        c, u = CONDITIONAL(level.norm * x, level).eps, ALL(level.norm * x, level).eps
        found = denoise(level.norm * x, level).eps
        torch.testing.assert_close(found, u + weight * (c - u), rtol=0, atol=1e-12)
    inside = sum(0.3 <= level.sigma / level.alpha <= 3.0 for level in levels)
    assert 10 < inside < 30
    assert [denoise.calls for denoise in calls] == [60, inside]


def test_no_guidance_at_high_noise_keeps_the_modes_of_a_class() -> None:
    """Section 3: guidance at all levels drives samples to the mode that other classes are far from."""
    means, stds = torch.tensor([-1.0, 1.0, -0.5]).double(), torch.full((3,), 0.2).double()
    c, u = Mixture(means[:2], stds[:2]), Mixture(means, stds)
    levels, x = [*log_snr_levels(TABLES["ve"], 100), CLEAN], 80 * normal((8000, 1))(-1)

    def left(**options: Any) -> float:
        denoise = guided("cfg", c, u, scale=4.0, **options)
        return float((states(component("sampler", "heun"), x, levels, denoise=denoise)[-1] < 0).double().mean())  # type: ignore[arg-type]

    assert abs(left() - 0.5) > 0.1
    assert abs(left(interval=(0.0, 0.5)) - 0.5) < 0.05


# ── apg ─────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("eta", "r", "beta"), [(1.0, None, 0.0), (0.0, None, 0.0), (0.3, 1.5, 0.0), (0.0, 1.5, -0.5)])
def test_apg_is_algorithm_1(eta: float, r: float | None, beta: float) -> None:
    """Against the function of diffusers, over several steps, since momentum remembers; eta = 1 alone is cfg."""
    module = pytest.importorskip("diffusers.guiders.adaptive_projected_guidance")
    c, u = (lambda x, level, i=i: Estimate(*normal((2, 5, 3, 4, 4), i)(int(level.t)).unbind()) for i in (1, 2))
    denoise = guided("apg", c, u, scale=6.0, parallel=eta, norm=r, momentum=beta)
    buffer = module.MomentumBuffer(beta)
    for t in (900, 700, 500, 300):
        level, x = LINEAR[t], normal((5, 3, 4, 4))(t)
        expected = module.normalized_guidance(
            c(x, level).x_0, u(x, level).x_0, 5.0, buffer, eta, r or 0.0, use_original_formulation=True
        )
        found = denoise(x, level)
        torch.testing.assert_close(found.x_0, expected, rtol=0, atol=1e-10)
        torch.testing.assert_close(level.alpha * found.x_0 + level.sigma * found.eps, x, rtol=0, atol=1e-10)


def test_apg_leaves_out_what_saturates() -> None:
    """Without the parallel part, the guided x_0 has the conditional's component along itself, at any scale."""
    c, u = (lambda x, level, i=i: Estimate(normal((5, 3, 4, 4), i)(0), x) for i in (1, 2))
    x = torch.zeros(5, 3, 4, 4, dtype=torch.float64)
    along = c(x, LINEAR[500]).x_0.flatten(1)
    for scale in (2.0, 8.0, 30.0):
        found = guided("apg", c, u, scale=scale, parallel=0.0, momentum=0.0)(x, LINEAR[500]).x_0.flatten(1)
        torch.testing.assert_close((found * along).sum(1), along.square().sum(1), rtol=1e-9, atol=0)


# ── cfg++ ───────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("scale", [0.0, 0.4, 0.9])
def test_cfgpp_is_ddim_with_a_scale_that_grows(scale: float) -> None:
    """CFG++ with lambda makes the step of DDIM with the scale lambda / (1 - q), whatever the denoisers."""
    levels = log_snr_levels(LINEAR, 30)
    x = normal((200, 1))(-1)
    found = states(cfgpp.CFGpp(), x, levels, denoise=guided("cfg", scale=scale))
    for (t, s), expected in zip(pairwise(levels), found, strict=True):
        q = t.alpha * s.sigma / (s.alpha * t.sigma)
        x = states(component("sampler", "ddim"), x, [t, s], denoise=guided("cfg", scale=scale / (1 - q)))[-1]  # type: ignore[arg-type]
        torch.testing.assert_close(x, expected, rtol=1e-9, atol=1e-9)


def test_cfgpp_renoises_with_the_unconditional_eps() -> None:
    """Algorithm 2 written out, in alpha-bar, for one step."""
    t, s, x, lam = LINEAR[700], LINEAR[400], normal((50, 1))(-1), 0.6
    a_t, a_s = t.alpha**2, s.alpha**2
    eps_u = ALL(x, t).eps
    eps = eps_u + lam * (CONDITIONAL(x, t).eps - eps_u)
    x_0 = (x - math.sqrt(1 - a_t) * eps) / math.sqrt(a_t)
    expected = math.sqrt(a_s) * x_0 + math.sqrt(1 - a_s) * eps_u
    found = states(cfgpp.CFGpp(), x, [t, s], denoise=guided("cfg", scale=lam))[-1]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)


def test_cfgpp_keeps_the_laws_and_is_ddim_without_guidance() -> None:
    check_sampler(cfgpp.CFGpp)
    levels, x = [*log_snr_levels(LINEAR, 20), CLEAN], normal((50, 1))(-1)
    ours, theirs = (states(s, x, levels)[-1] for s in (cfgpp.CFGpp(), component("sampler", "ddim")))  # type: ignore[arg-type]
    assert torch.equal(ours, theirs)


def test_cfgpp_runs_on_a_run_with_labels(run: Run, labels_run: Any) -> None:
    words = (
        "--plugin",
        PAPERS / "cfgpp.py",
        "--sampler",
        "cfgpp",
        "--label",
        1,
        "-n",
        20,
        "--steps",
        10,
        "--overwrite",
    )
    outcome = run("sample", labels_run, *words, "--guidance", 0.6, "--out", "x.npy")
    assert outcome.code == 0, outcome.err
    assert "20 network calls each" in outcome.err
    assert run("sample", labels_run, *words, "--out", "x.npy").code == 0
