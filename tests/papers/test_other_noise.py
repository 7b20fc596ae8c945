"""Other noise in examples/papers: masks, blur, bits and interpolants, beside exact likelihoods and solutions."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence

import pytest
import torch
import torch.nn.functional as F
from at_work import PAPERS, Formula, at_work, draws, numbers, script, small
from conftest import IMAGES, Run
from torch import Tensor

import difftool
from difftool import CLEAN, BackboneSpec, CodecSpec, Denoise, Estimate, Level, Sampler, Schedule
from difftool.diffusion.self_conditioning import with_self_cond
from difftool.sampling.denoiser import Denoiser
from difftool.specs import ObjectiveSpec

masked = script("masked_diffusion")
cold = script("cold_diffusion")
interpolants = script("stochastic_interpolants")
bits = script("analog_bits")
FLOW = difftool.component("schedule", "flow").build(1000)
LINEAR = difftool.component("schedule", "linear").build(1000)


def standard(count: int, *shape: int, seed: int = 0) -> Tensor:
    return torch.randn(count, *shape, generator=torch.Generator().manual_seed(seed))


def noises(count: int, *shape: int, seed: int = 1) -> Iterator[Tensor]:
    random = torch.Generator().manual_seed(seed)
    while True:
        yield torch.randn(count, *shape, generator=random)


def end(sampler: Sampler, denoise: Denoise, x: Tensor, levels: Sequence[Level]) -> Tensor:
    """Return the last state of a trajectory."""
    draw = noises(*x.shape)
    *_, last = sampler.sample(denoise, x, levels, lambda _: next(draw).to(x))
    return last.x


def trailing(schedule: Schedule, steps: int) -> list[Level]:
    return [*difftool.component("spacing", "trailing").levels(schedule, steps), CLEAN]


# --- masked diffusion ------------------------------------------------------------------------------------------------


K, L = 3, 3
P = torch.tensor([5.0, 20, 0, 10, 2, 3, 15, 5, 0, 10, 0, 4, 1, 5, 0, 2, 3, 0, 0, 5, 1, 2, 0, 3, 2, 1, 1]) / 100
"""The probabilities of all 27 words of three letters."""
WORDS = torch.tensor([*itertools.product(range(K), repeat=L)])


def exact_logits(x: Tensor) -> Tensor:
    """Return ln p of each letter given the letters that are not masked (B, K, L)."""
    letters = F.one_hot(WORDS, K).mT.float()  # (27, K, L)
    agree = torch.einsum("bkl,wkl->bwl", (x > 0).float(), letters) + (x.sum(1) == 0)[:, None, :].float()
    posterior = P * agree.prod(2)
    return (torch.einsum("bw,wkl->bkl", posterior, letters) / posterior.sum(1).view(-1, 1, 1)).clamp(min=1e-9).log()


def test_masked_diffusion_bounds_the_likelihood_by_the_entropy() -> None:
    """With the exact conditionals the bound is tight: its mean over the data is their entropy, 2.61 nats."""
    work = at_work(
        masked.Masked(), FLOW, Formula(lambda x, t, p: exact_logits(x) + 0 * p, 1000), prediction="x0", shape=(K, L)
    )
    random = torch.Generator().manual_seed(0)
    words = torch.multinomial(P, 40_000, replacement=True, generator=random)
    x_0 = F.one_hot(WORDS[words], K).mT.float()
    t = (torch.arange(40_000) * 7919) % 1000
    losses = work.losses(x_0, torch.zeros_like(x_0), t)
    entropy = float(-(P * P.clamp(min=1e-30).log()).sum())
    error = float(losses.std()) / math.sqrt(len(losses))
    print("nelbo", losses.mean().item(), "+-", error, "entropy", entropy)
    assert abs(float(losses.mean()) - entropy) < 4 * error
    assert error < 0.03


def test_masked_diffusion_has_the_cross_entropy_of_masked_tokens() -> None:
    """Transcribed token by token, for the masks that are drawn; visible tokens have no part in it."""
    work = at_work(masked.Masked(), FLOW, small((K, L)), prediction="x0", shape=(K, L))
    x_0 = F.one_hot(WORDS[:20], K).mT.float()
    t = torch.arange(20) * 45
    inputs = work.inputs(x_0, torch.zeros_like(x_0), t)
    batch = work.batch(inputs)
    sigma = FLOW.sigma[t].float()
    hidden = torch.rand(20, 1, L, generator=batch.generator()) < sigma.view(-1, 1, 1)
    assert 0.2 < float(hidden.float().mean()) < 0.8
    norm = torch.hypot(FLOW.alpha[t], FLOW.sigma[t]).float().view(-1, 1, 1)
    logits = work.network(x_0 * ~hidden / norm, t.float(), None)
    expected = torch.zeros(20)
    for item in range(20):
        for place in range(L):
            if hidden[item, 0, place]:
                expected[item] += F.cross_entropy(logits[item, :, place][None], WORDS[item, place][None]) / sigma[item]
    torch.testing.assert_close(work.losses(x_0, torch.zeros_like(x_0), t), expected)


@pytest.mark.slow
def test_masked_diffusion_draws_the_words_of_the_exact_denoiser() -> None:
    """8,000 words have the frequencies of the distribution (chi-squared), and those of one step its letters alone."""

    def denoise(x: Tensor, level: Level) -> Estimate:
        return Estimate(exact_logits(x), x)

    def frequencies(steps: int) -> Tensor:
        x = end(masked.Unmask(), denoise, standard(8_000, K, L), trailing(FLOW, steps))
        assert torch.equal(x.sum(1), torch.ones(8_000, L))  # no token is masked, and each is one letter
        index = (x.argmax(1) * torch.tensor([9, 3, 1])).sum(1)
        return torch.bincount(index, minlength=27) / 8_000

    possible = P > 0
    found = frequencies(100)
    chi_squared = float((8_000 * (found - P)[possible].square() / P[possible]).sum())
    print("chi squared", chi_squared, "impossible", float(found[~possible].sum()))
    assert chi_squared < 45  # 19 degrees of freedom: 99.9 % lie below 43.8
    assert float(found[~possible].sum()) < 0.02  # two tokens of one step are drawn independently
    letters = F.one_hot(WORDS, K).float()
    marginals = torch.einsum("w,wlk->lk", P, letters)
    independent = torch.einsum("a,b,c->abc", *marginals).flatten()
    assert float((frequencies(1) - independent).abs().max()) < 0.015


@pytest.mark.slow
def test_masked_diffusion_learns_words(run: Run) -> None:
    """Samples of a small network are words in the order of the alphabet, one in 4,096 by chance."""
    import numpy as np

    plugin = ("--plugin", PAPERS / "masked_diffusion.py")
    train = ("--dataset", "words", "--loss", "masked", "--schedule", "flow", "--prediction", "x0")
    done = run("train", *plugin, *train, "--backbone.width", 64, "--steps", 1000, "--preview-every", 0, "--out", "r")
    assert done.code == 0, done.err
    assert run("sample", "r", *plugin, "--sampler", "unmask", "-n", 500, "--steps", 50, "--out", "x.npy").code == 0
    words = torch.from_numpy(np.load("x.npy")).argmax(1)
    right = ((words.diff(dim=1) % 4) == 1).all(1).float().mean()
    print("right", float(right))
    assert float(right) > 0.8


# --- cold diffusion --------------------------------------------------------------------------------------------------


def test_cold_diffusion_blurs_as_scipy() -> None:
    filters = pytest.importorskip("scipy.ndimage")
    x = standard(2, 3, 24, 24).double()
    for std in (2.5, 4.0):  # of narrower ones, scipy's sampled kernel is not that of the formula
        expected = torch.from_numpy(filters.gaussian_filter(x.numpy(), (0, 0, std, std), mode="reflect", truncate=8))
        torch.testing.assert_close(cold.blur(x, torch.tensor([std, std])), expected, rtol=0, atol=1e-6)


def test_cold_diffusion_blurs_a_cosine_by_its_formula() -> None:
    """A cosine of k half-waves fades by exp(-(pi k std/n)^2/2), blurs add in squares, and images end as their mean."""
    n, i = 16, torch.arange(16) + 0.5
    wave = torch.cos(math.pi * 3 * i / n).expand(1, 1, n, n)
    faded = cold.blur(wave, torch.tensor([2.0]))
    torch.testing.assert_close(faded, wave * math.exp(-((math.pi * 3 * 2 / n) ** 2) / 2), rtol=1e-4, atol=1e-6)
    x = standard(2, 3, 16, 16)
    twice = cold.blur(cold.blur(x, torch.tensor([0.6, 1.5])), torch.tensor([0.8, 2.0]))
    torch.testing.assert_close(twice, cold.blur(x, torch.tensor([1.0, 2.5])), rtol=1e-4, atol=1e-5)
    last = LINEAR[999]
    mean = x.mean((2, 3), keepdim=True).expand_as(x)
    torch.testing.assert_close(cold.blur(x, torch.tensor([last.sigma / last.alpha])), mean, rtol=1e-4, atol=1e-5)


def test_cold_diffusion_forgives_what_the_blur_removes() -> None:
    """Algorithm 2 undoes a blur, though the restoration is wrong by a constant that D keeps; algorithm 1 does not."""
    image, levels = standard(2, 3, 8, 8), trailing(LINEAR, 20)
    sampler = cold.ColdSampler(mean=0.0, std=1.0, noise=0.0)
    start = image.mean((2, 3), keepdim=True).expand_as(image) / 8  # the sampler takes 8 times the mean of 64 pixels
    wrong = 0.3

    def denoise(x: Tensor, level: Level) -> Estimate:
        return Estimate(image + wrong, x)

    x = end(sampler, denoise, start, levels)
    torch.testing.assert_close(x, image, rtol=0, atol=2e-3)
    naive = image.mean((2, 3), keepdim=True).expand_as(image)
    for t, s in itertools.pairwise(levels):
        naive = cold.ColdSampler.degraded(denoise(naive, t).x_0, s)
    assert float((naive - image).abs().min()) > 0.29


def test_cold_diffusion_restores_by_the_mean_absolute_error_of_eq_1() -> None:
    network = small((3, 8, 8))
    work = at_work(cold.Cold(), LINEAR, network, prediction="x0", shape=(3, 8, 8))
    x_0, eps, t = draws(6, (3, 8, 8))
    D = torch.cat(
        [cold.blur(x_0[i : i + 1], (LINEAR.sigma[t[i]] / LINEAR.alpha[t[i]]).float()[None]) for i in range(6)]
    )
    expected = (network(D, t.float(), None) - x_0).abs().flatten(1).mean(1)
    torch.testing.assert_close(work.losses(x_0, eps, t), expected, rtol=1e-4, atol=1e-5)
    with pytest.raises(difftool.UsageError, match="leaves some signal"):
        at_work(cold.Cold(), FLOW, network, prediction="x0", shape=(3, 8, 8))


# --- stochastic interpolants -----------------------------------------------------------------------------------------


M, S = 0.8, 0.3


def gaussian(x: Tensor, level: Level) -> Estimate:
    """The exact denoiser of N(M, S^2)."""
    gain = level.alpha * S**2 / ((level.alpha * S) ** 2 + level.sigma**2)
    x_0 = M + gain * (x - level.alpha * M)
    return Estimate(x_0, (x - level.alpha * x_0) / level.sigma)


def moments(sampler: Sampler, levels: Sequence[Level]) -> tuple[float, float]:
    """Return mean and deviation of the samples, which are linear in the start and in the noise of each step."""
    unit = torch.zeros(len(levels) + 1, 1, dtype=torch.float64)
    columns = unit.clone()
    columns[1] = 1.0  # row 0: no noise at all; row 1: the start; row 2 + i: the noise of step i

    def noise(step: int) -> Tensor:
        z = unit.clone()
        z[2 + step] = 1.0
        return z

    *_, last = sampler.sample(gaussian, columns, levels, noise)
    mean = float(last.x[0])
    return mean, float((last.x[1:] - last.x[0]).square().sum().sqrt())


@pytest.mark.parametrize("diffusion", [0.0, 0.5, 1.0, 3.0])
@pytest.mark.parametrize("name", ["trigonometric", "flow"])
def test_interpolants_have_the_same_distribution_for_every_diffusion(name: str, diffusion: float) -> None:
    """Mean and deviation converge to those of the data at first order, whatever epsilon is."""
    schedules = {"flow": difftool.component("schedule", "flow"), "trigonometric": interpolants.Trigonometric()}
    schedule = schedules[name].build(16_000)
    sampler = interpolants.InterpolantSDE(diffusion=diffusion)
    errors = []
    for steps in (100, 200, 400):
        mean, deviation = moments(sampler, trailing(schedule, steps))
        errors.append(max(abs(mean - M), abs(deviation - S)))
    print(name, diffusion, errors)
    assert errors[2] < 0.03
    assert all(1.6 < a / b < 2.4 for a, b in itertools.pairwise(errors))


def test_interpolants_without_diffusion_are_ddim() -> None:
    levels, x = trailing(interpolants.Trigonometric().build(100), 10), standard(5, 2).double()
    ddim = difftool.component("sampler", "ddim")
    ours = end(interpolants.InterpolantSDE(diffusion=0.0), gaussian, x, levels)
    torch.testing.assert_close(ours, end(ddim, gaussian, x, levels), rtol=1e-12, atol=1e-12)


def test_interpolants_predict_their_velocity() -> None:
    """On the trigonometric path, v is d x_t/du over pi/2, by differences of the schedule."""
    schedule = interpolants.Trigonometric().build(1000)
    assert float(schedule.alpha[-1]) < 1e-15
    work = at_work(difftool.component("loss", "mse"), schedule, small(), prediction="v")
    x_0, eps, _ = draws(20)
    t = torch.arange(1, 999, 50)
    inputs = work.inputs(x_0, eps, t)
    later, earlier = (numbers(schedule.alpha, t + d) * x_0 + numbers(schedule.sigma, t + d) * eps for d in (1, -1))
    velocity = (later - earlier) / (2 / 1000)
    torch.testing.assert_close(inputs.target * math.pi / 2, velocity, rtol=1e-2, atol=5e-3)


# --- analog bits -----------------------------------------------------------------------------------------------------


def test_analog_bits_are_the_bits_of_all_pixel_values() -> None:
    codec = bits.Bits().build(CodecSpec(shape=(1, 16, 16)))
    pixels = torch.arange(256).view(1, 1, 16, 16)
    z = codec.encode(pixels / 127.5 - 1)
    assert z.shape == (1, 8, 16, 16)
    for value in range(256):
        row, column = divmod(value, 16)
        expected = [1.0 if digit == "1" else -1.0 for digit in f"{value:08b}"]
        assert z[0, :, row, column].tolist() == expected
    wobbled = z + 0.9 * (2 * torch.rand(z.shape, generator=torch.Generator().manual_seed(0)) - 1)
    assert torch.equal(((codec.decode(wobbled) + 1) * 127.5).round().long(), pixels)


def test_analog_bits_of_several_channels_stay_apart() -> None:
    codec = bits.Bits().build(CodecSpec(shape=(3, 4, 4)))
    x = torch.randint(256, (5, 3, 4, 4), generator=torch.Generator().manual_seed(0)) / 127.5 - 1
    z = codec.encode(x)
    for channel in range(3):
        torch.testing.assert_close(z[:, 8 * channel : 8 * channel + 8], codec.encode(x[:, channel : channel + 1]))
    torch.testing.assert_close(codec.decode(z), x)


def test_self_conditioning_is_algorithm_1_in_training_and_2_in_sampling() -> None:
    """A network sees zeros and then its own estimate without a gradient; a sampler passes on that of the last step."""
    from dataclasses import replace

    torch.manual_seed(0)
    spec = replace(BackboneSpec(shape=(2,), out_channels=2), self_condition=True)
    network = difftool.component("backbone", "mlp", width=16, depth=1).build(spec)
    for weight in network.parameters():
        torch.nn.init.normal_(weight, std=0.3)
    schedule = difftool.component("schedule", "cosine").build(1000)
    work = at_work(difftool.component("loss", "mse"), schedule, network, prediction="x0")
    work.objective.self_condition = True
    x_0, eps, t = draws(16)
    inputs = work.inputs(x_0, eps, t)
    first = network(torch.cat([inputs.x_t, torch.zeros_like(x_0)], dim=1), t.float(), None)
    for seen, self_cond in ((torch.zeros_like(x_0), False), (first.detach().clamp(-4, 4), True)):
        expected = network(torch.cat([inputs.x_t, seen], dim=1), t.float(), None)
        found = work.objective.predict(network, inputs, self_cond=self_cond)
        torch.testing.assert_close(found, expected)
        ours, theirs = (
            torch.autograd.grad((value - x_0).square().mean(), network.first.weight) for value in (found, expected)
        )
        torch.testing.assert_close(ours, theirs)

    prediction, levels = difftool.component("prediction", "x0"), trailing(schedule, 5)
    denoise = Denoiser(network, prediction, ObjectiveSpec(schedule=schedule), self_condition=True)
    ours_x = end(difftool.component("sampler", "ddim"), denoise, x := standard(4, 2), levels)
    estimate: Tensor | None = None
    with torch.no_grad():
        for t_, s in itertools.pairwise(levels):
            estimate = network(with_self_cond(x, estimate), torch.full((4,), t_.t), None).clamp(-4, 4)
            x = s.alpha * estimate + s.sigma * (x - t_.alpha * estimate) / t_.sigma
    torch.testing.assert_close(ours_x, x, rtol=1e-4, atol=1e-4)


def test_analog_bits_train_and_sample_pixels(run: Run) -> None:
    import numpy as np

    plugin = ("--plugin", PAPERS / "analog_bits.py")
    train = ("--codec", "bits", "--self-condition", "--schedule", "cosine", "--prediction", "x0", "--steps", 3)
    done = run("train", *plugin, *IMAGES, *train, "--out", "r")
    assert done.code == 0, done.err
    done = run("sample", "r", *plugin, "-n", 2, "--steps", 2, "--out", "x.npy")
    assert done.code == 0, done.err
    samples = np.load("x.npy")
    assert (samples.dtype, samples.shape) == (np.uint8, (2, 8, 8, 3))
