"""Distillation in examples/papers: steps beside diffusers and exact solutions, gradients beside formulas."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from at_work import PAPERS, Formula, Work, at_work, draws, numbers, script, small
from conftest import POINTS, Run
from torch import Tensor

import difftool
from difftool import DatasetContext, Predict, Schedule
from difftool.runs import checkpoint
from difftool.runs.folder import RunFolder

progressive = script("progressive_distillation")
distillation = script("consistency_distillation")
dmd = script("dmd")
T = 64
COSINE = difftool.component("schedule", "cosine").build(T)
VE = difftool.component("schedule", "ve").build(T)
M, S = 0.6, 0.5
"""Mean and deviation of Gaussian data, whose denoiser and flow are known."""


def posterior(x: Tensor, alpha: Tensor, sigma: Tensor, m: Tensor | float = M, s: Tensor | float = S) -> Tensor:
    """Return E[x_0 | x_t] for data from N(m, s^2)."""
    return m + alpha * s**2 / ((alpha * s) ** 2 + sigma**2) * (x - alpha * m)


def flow_to(x: Tensor, t: tuple[Tensor, Tensor], s: tuple[Tensor, Tensor]) -> Tensor:
    """Return the exact solution at s of the flow through x at t, for these data."""
    (alpha_t, sigma_t), (alpha_s, sigma_s) = t, s
    deviation = ((alpha_s * S) ** 2 + sigma_s**2).sqrt() / ((alpha_t * S) ** 2 + sigma_t**2).sqrt()
    return alpha_s * M + deviation * (x - alpha_t * M)


def predicts(schedule: Schedule, end: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Formula:
    """Return a network whose prediction of v means the estimate end(x_t, alpha, sigma) of x_0."""

    def v(x: Tensor, t: Tensor, p: Tensor) -> Tensor:
        alpha, sigma = numbers(schedule.alpha, t), numbers(schedule.sigma, t)
        norm = (alpha**2 + sigma**2).sqrt()  # the input of the network is x = x_t/norm
        return (alpha * x - norm * end(x * norm, alpha, sigma)) / sigma + 0 * p.sum()

    return Formula(v, len(schedule))


# --- progressive distillation ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [1, 4, 16])
def test_progressive_distillation_follows_two_steps_of_diffusers(steps: int) -> None:
    """The target leads to where two steps of diffusers' DDIM lead, and its error has the weight max(SNR, 1)."""
    diffusers = pytest.importorskip("diffusers")
    theirs = diffusers.DDIMScheduler(
        T,
        beta_schedule="squaredcos_cap_v2",
        prediction_type="v_prediction",
        clip_sample=False,
        timestep_spacing="trailing",
    )
    theirs.set_timesteps(2 * steps)
    work = at_work(progressive.ProgressiveDistillation(steps=steps), COSINE, small())
    with torch.no_grad():
        for weight in work.network.parameters():
            weight.add_(0.05)  # the student has moved away from its teacher
    x_0, eps, t = draws(20, levels=T)
    losses = work.losses(x_0, eps, t)
    begins = theirs.timesteps[::2].tolist()
    for i in range(20):
        begin = min(b for b in begins if b >= t[i])
        alpha, sigma = (float(table[begin]) for table in (COSINE.alpha, COSINE.sigma))
        z_t = alpha * x_0[i : i + 1] + sigma * eps[i : i + 1]
        z, at = z_t, begins.index(begin) * 2
        with torch.no_grad():
            for row in theirs.timesteps[at : at + 2]:
                z = theirs.step(work.auxiliary.network(z, row[None] * 1000 / T, None), row, z).prev_sample
            student = alpha * z_t - sigma * work.network(z_t, torch.tensor([begin * 1000 / T]), None)
        end = begin - T // steps
        alpha_s, sigma_s = (1.0, 0.0) if end < 0 else (float(COSINE.alpha[end]), float(COSINE.sigma[end]))
        target = (z - sigma_s / sigma * z_t) / (alpha_s - sigma_s / sigma * alpha)
        expected = max((alpha / sigma) ** 2, 1.0) * float((student - target).square().mean())
        assert losses[i].item() == pytest.approx(expected, rel=2e-3, abs=1e-6)


def test_progressive_distillation_has_the_gradient_of_its_error_alone() -> None:
    """The teacher is a constant, though it begins as the student."""
    work = at_work(progressive.ProgressiveDistillation(steps=4), COSINE, small())
    losses = work.losses(*draws(8, levels=T))
    losses.sum().backward()
    assert all(weight.grad is None for weight in work.auxiliary.parameters())
    assert all(weight.grad is not None for weight in work.network.parameters())


def test_progressive_distillation_needs_levels_for_its_steps() -> None:
    with pytest.raises(difftool.UsageError, match="twice 5 must divide the number of levels, 64"):
        at_work(progressive.ProgressiveDistillation(steps=5), COSINE, small())


# --- consistency distillation ----------------------------------------------------------------------------------------


def test_consistency_distillation_takes_a_step_of_second_order() -> None:
    """With the exact teacher of Gaussian data, a step of Heun's method nears the exact flow as the cube of its size."""
    schedule = difftool.component("schedule", "ve").build(4096)
    errors = []
    for gap in (256, 128, 64):
        work = at_work(distillation.ConsistencyDistillation(), schedule, predicts(schedule, posterior))
        t = torch.tensor([2600])
        x_0, eps = torch.tensor([[0.9, -0.4]]), torch.tensor([[1.1, 0.3]])
        inputs = work.inputs(x_0, eps, t)
        batch, predict = work.batch(inputs), predictor(work, inputs)
        x_s = distillation.ConsistencyDistillation.heun(predict, batch, work.auxiliary.teacher, inputs.x_t, t, t - gap)
        exact = flow_to(inputs.x_t, batch.levels(t), batch.levels(t - gap))
        errors.append(float((x_s - exact).abs().max()))
    assert [round(math.log2(a / b)) for a, b in pairwise(errors)] == [3, 3]


def predictor(work: Work, inputs: Any) -> Predict:
    from difftool.training.minimise import Predictor

    return Predictor(work.objective, work.network, inputs)


def test_consistency_distillation_vanishes_at_the_exact_consistency_function() -> None:
    """f(x_t, t), the exact end of the trajectory, has hardly any loss with the exact teacher; the denoiser has much."""
    schedule = difftool.component("schedule", "ve").build(1000)

    def consistency(x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        return flow_to(x, (alpha, sigma), (torch.ones_like(alpha), torch.zeros_like(sigma)))

    losses = {}
    for name, end in (("exact", consistency), ("denoiser", posterior)):
        work = at_work(distillation.ConsistencyDistillation(levels=100), schedule, predicts(schedule, end))
        work.auxiliary.teacher = predicts(schedule, posterior)
        losses[name] = float(work.losses(*draws(2000)).mean())
    assert losses["exact"] < 1e-5
    assert losses["denoiser"] > 100 * losses["exact"]


def test_consistency_distillation_spaces_levels_as_edm_does() -> None:
    work = at_work(distillation.ConsistencyDistillation(levels=18), VE, small())
    steps = torch.arange(18) / 17
    even = (0.002 ** (1 / 7) + steps * (80 ** (1 / 7) - 0.002 ** (1 / 7))) ** 7  # Karras et al., 2022, eq. 5
    rows = work.auxiliary.rows
    assert (rows[0], rows[-1]) == (0, T - 1)
    gap = (VE.sigma[1] / VE.sigma[0]).log()
    assert float((VE.sigma[rows].log() - even.log()).abs().max()) <= float(gap)
    with pytest.raises(difftool.UsageError, match="infinite at the last level"):
        at_work(distillation.ConsistencyDistillation(), difftool.component("schedule", "flow").build(T), small())


# --- distribution matching -------------------------------------------------------------------------------------------


def generator_and_denoiser(schedule: Schedule) -> Formula:
    """Return a network with p = (b, a, m, s): at the last level it is the generator b + a z, else the denoiser of
    N(m, s^2)."""
    last = len(schedule) - 1

    def x_0(x: Tensor, t: Tensor, p: Tensor) -> Tensor:
        b, a, m, s = p.unbind()
        alpha, sigma = numbers(schedule.alpha, t), numbers(schedule.sigma, t)
        return torch.where((t == last)[:, None], b + a * x, posterior(x, alpha, sigma, m, s))

    return Formula(x_0, len(schedule), 0.2, 0.9, M, S)


def test_dmd_has_the_gradient_of_eqs_7_and_8() -> None:
    """The gradient in the generator is w (s_fake - s_real) dG, of the exact scores of two Gaussians."""
    work = at_work(dmd.DistributionMatching(), COSINE, generator_and_denoiser(COSINE), prediction="x0")
    fake = (-0.3, 0.8)
    with torch.no_grad():
        work.auxiliary.fake.p[2:] = torch.tensor(fake)
    x_0, eps, t = draws(500, levels=T)
    inputs = work.inputs(x_0, eps, t)
    batch = work.batch(inputs)
    losses = work.objective.loss.loss(predictor(work, inputs), batch, work.auxiliary)
    (ours,) = torch.autograd.grad(losses.sum(), work.network.p, retain_graph=True)  # type: ignore[union-attr]

    random = batch.generator()
    torch.randint(T, t.shape, generator=random)  # the draws of the fake denoiser come first
    torch.randn(x_0.shape, generator=random)
    t = T // 50 + t * (T - 2 * (T // 50)) // T
    alpha, sigma = numbers(COSINE.alpha, t), numbers(COSINE.sigma, t)
    x = 0.2 + 0.9 * eps
    x_t = alpha * x + sigma * torch.randn(x.shape, generator=random)
    s_real = -(x_t - alpha * M) / ((alpha * S) ** 2 + sigma**2)
    s_fake = -(x_t - alpha * fake[0]) / ((alpha * fake[1]) ** 2 + sigma**2)
    mu_real = (x_t + sigma**2 * s_real) / alpha
    w = sigma**2 / alpha / (mu_real - x).abs().mean(1, keepdim=True)  # eq. 8: of the L1 norm over C S numbers
    gradient = w * (s_fake - s_real) / 2  # the mean over the two numbers of an item
    torch.testing.assert_close(ours[:2], torch.stack([gradient.sum(), (gradient * eps).sum()]), rtol=1e-3, atol=1e-2)
    assert float(ours[2:].abs().max()) == 0  # the denoiser's part of the network is not used


def test_dmd_trains_the_fake_denoiser_on_samples_of_the_generator_alone() -> None:
    """Its loss has no gradient in the generator, and is least where the fake denoiser is that of the samples."""
    work = at_work(dmd.DistributionMatching(), COSINE, generator_and_denoiser(COSINE), prediction="x0")
    draw = draws(20_000, levels=T)

    def gradient(m: float, s: float) -> Tensor:
        with torch.no_grad():
            work.auxiliary.fake.p[2:] = torch.tensor([m, s])
        (found,) = torch.autograd.grad(work.losses(*draw).mean(), work.auxiliary.fake.p)
        return found[2:]

    at_samples = gradient(0.2, 0.9)  # of b + a z
    assert float(at_samples.abs().max()) < 0.03
    assert float(gradient(0.5, 0.9)[0]) > 0.1
    assert float(gradient(0.2, 1.4)[1]) > 0.03
    assert not work.auxiliary.teacher.p.requires_grad


def test_dmd_finds_the_data_of_its_teacher() -> None:
    """Descent of the sum of both losses brings the generator b + a z, and the fake denoiser, to N(M, S^2)."""
    work = at_work(dmd.DistributionMatching(), COSINE, generator_and_denoiser(COSINE), prediction="x0")
    generator, fake = work.network.p, work.auxiliary.fake.p
    with torch.no_grad():
        generator[:2] = torch.tensor([-0.5, 1.0])  # type: ignore[index,operator]
        fake[2:] = torch.tensor([-0.5, 1.0])
    descent, seen = torch.optim.SGD([generator, fake], lr=0.1), []  # type: ignore[list-item]
    for step in range(400):
        descent.zero_grad()
        work.losses(*draws(512, levels=T, seed=step), step=step, steps=400).mean().backward()
        descent.step()
        seen.append(torch.cat([generator[:2], fake[2:]]).detach())  # type: ignore[index,operator]
    torch.testing.assert_close(torch.stack(seen[200:]).mean(0), torch.tensor([M, S, M, S]), rtol=0, atol=0.02)


@pytest.mark.slow
def test_dmd2_trains_generator_and_denoiser_in_turn(run: Run) -> None:
    """With five turns, the generator rests to the last bit, moments included, in steps 1 to 4 and moves in step 5."""
    same = ("--schedule", "cosine", "--prediction", "v", *POINTS)
    assert run("train", *same, "--steps", 2, "--out", "teacher").code == 0
    options = ("--init-from", "teacher", "--loss", "dmd", "--loss.turns", 5, "--optimizer", "in-turn")
    tensors = {}
    for steps in (1, 2, 5, 6):
        out = f"after-{steps}"
        done = run(
            "train",
            "--plugin",
            PAPERS / "dmd.py",
            *same,
            *options,
            "--warmup",
            0,
            "--lr-schedule",
            "constant",
            "--steps",
            steps,
            "--out",
            out,
        )
        assert done.code == 0, done.err
        tensors[steps], _ = checkpoint.load(RunFolder(Path(out)).saved_states()[0])
    names = [name for name, _ in difftool.load("teacher").network.named_parameters()]
    size = len(names)  # the optimizer counts the weights of the network first
    own = [key for key in tensors[5] if key.startswith("optimizer.") and int(key.split(".")[1]) < size]
    generator = [key for key in tensors[5] if key.startswith("network.")] + own
    fake = [key for key in tensors[5] if key.startswith("loss.fake.")]
    assert len(own) == 3 * size
    for early, late in ((1, 2), (2, 5)):
        assert all(torch.equal(tensors[early][key], tensors[late][key]) for key in generator)
        assert any(not torch.equal(tensors[early][key], tensors[late][key]) for key in fake)
    assert any(not torch.equal(tensors[5][key], tensors[6][key]) for key in generator)
    joined = run("train", "--plugin", PAPERS / "dmd.py", *same, *options[:-2], "--steps", 5, "--out", "joined")
    assert joined.code == 1
    assert "turns: this optimizer moves weights without a gradient; take --optimizer in-turn" in joined.error


# --- on the swiss roll -----------------------------------------------------------------------------------------------


SIZES = ("--backbone.width", 64, "--preview-every", 0, "--dataset.n", 10_000, "--ema", 0.99)


def distance(samples: Tensor) -> float:
    """Return the mean Wasserstein-1 distance of samples from the swiss roll over projections on 16 lines."""
    data = difftool.component("dataset", "swiss-roll", n=4000).load(DatasetContext(seed=5)).take(range(4000))[0]
    angles = math.pi * torch.arange(16, dtype=torch.float64) / 16
    lines = torch.stack([angles.cos(), angles.sin()])
    q = (torch.arange(200, dtype=torch.float64) + 0.5) / 200
    gaps = torch.quantile(samples.double() @ lines, q, dim=0) - torch.quantile(data.double() @ lines, q, dim=0)
    return float(gaps.abs().mean())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "loss", "steps", "schedule"),
    [
        (
            "progressive_distillation",
            ("progressive-distillation", "--loss.steps", 2),
            2,
            ("cosine", "--prediction", "v"),
        ),
        ("consistency_distillation", ("consistency-distillation",), 1, ("ve", "--prediction", "edm")),
        ("dmd", ("dmd", "--lr", 1e-3, "--loss.turns", 5, "--optimizer", "in-turn"), 1, ("cosine", "--prediction", "v")),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_student_draws_better_than_its_teacher_in_as_few_steps(
    run: Run, name: str, loss: tuple[object, ...], steps: int, schedule: tuple[object, ...]
) -> None:
    same = ("--schedule", *schedule, *SIZES)
    assert run("train", *same, "--steps", 2000, "--out", "teacher").code == 0
    script = ("--plugin", PAPERS / f"{name}.py")
    trained = run(
        "train", *script, "--init-from", "teacher", "--loss", *loss, *same, "--steps", 1000, "--out", "student"
    )
    assert trained.code == 0, trained.err
    rows = [json.loads(line) for line in Path("student/metrics.jsonl").read_text().splitlines()]
    assert all(math.isfinite(row["loss"]) for row in rows)
    far = SimpleNamespace(
        **{
            run: distance(difftool.load(run).sample(4000, steps=steps, batch_size=4000))
            for run in ("teacher", "student")
        }
    )
    print(name, far)
    assert far.student < 0.6 * far.teacher
