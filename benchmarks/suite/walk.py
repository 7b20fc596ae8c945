"""What a sampler costs beside its network.

A network that does next to nothing, x / 10, on 16 images of 3x8x8, 50 steps, one thread: what is left is the sampler.
The time of the bare network is taken off, round by round. Drawing the first noise and choosing the levels are not
timed. DDIM by hand has its two coefficients worked out before, and asks torch for what no step can do without: the
network's time, a product and a sum.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.findings import Comparison, Effort, Findings, Table, at_most, digits
from benchmarks.measuring import Contest
from difftool import Denoise, ObjectiveSpec, Samples, devices
from difftool.components import NoiseSchedule, Prediction
from difftool.data.facts import DataFacts
from difftool.plugins.build import build_schedule
from difftool.plugins.registry import registry
from difftool.sampling.denoiser import Denoiser
from difftool.sampling.loop import sample
from difftool.sampling.plan import Plan
from difftool.sampling.source import Autocast, Source
from difftool.settings import Sampling

SHAPE, COUNT, STEPS, TIMESTEPS = (3, 8, 8), 16, 50, 1000
NETWORK, BY_HAND = "the network alone", "DDIM by hand"
GOAL = at_most(7.0)
OURS = {"ddim": "DDIMScheduler", "dpmpp-2m": "DPMSolverMultistepScheduler", "ddpm": "DDPMScheduler"}
"""A sampler of ours -> diffusers' of the same method."""
JUDGED = ("ddim", "dpmpp-2m")


def run(effort: Effort) -> Findings:
    with devices.threads(1), torch.no_grad():
        entries = contest()
        measured = entries.run(warmup=0, steps=STEPS, rounds=effort(300, 20), ahead=1)
    alone = measured.times.pop(NETWORK)
    values = {
        name: [whole - network for whole, network in zip(times, alone, strict=True)]
        for name, times in measured.times.items()
    }
    note = f"The network itself takes {digits(1e6 * sorted(alone)[len(alone) // 2])} us a call."
    return Findings([table(values)], [*entries.notes, note])


def table(values: dict[str, list[float]]) -> Table:
    goals = [Comparison(f"difftool {name}", None, GOAL) for name in JUDGED]
    pairs = [Comparison(f"difftool {name}", f"diffusers {theirs}") for name, theirs in OURS.items()]
    pairs.append(Comparison("difftool ddim", BY_HAND))
    ordered = sorted((*goals, *pairs), key=lambda comparison: comparison.contender)
    return Table(title="A step without the network", unit="us a step", values=values, comparisons=ordered)


def contest() -> Contest:
    entries = Contest()
    entries.add(NETWORK, calls)
    entries.add(BY_HAND, by_hand)
    for name, theirs in OURS.items():
        entries.add(f"difftool {name}", partial(our_walks, name))
        entries.add(f"diffusers {theirs}", partial(their_walks, theirs), needs=("diffusers",))
    return entries


def network(x: Tensor, _t: object = None, _cond: object = None) -> Tensor:
    return 0.1 * x


def calls() -> Iterator[None]:
    """The network's calls, with a yield before them like that of a walk that begins."""
    x = torch.randn(COUNT, *SHAPE)
    while True:
        yield
        for _ in range(STEPS):
            network(x)
            yield


def by_hand() -> Iterator[None]:
    """x_s = alpha_s/alpha_t x_t + (sigma_s - alpha_s/alpha_t sigma_t) eps, with any two numbers for these."""
    zero = torch.zeros(())
    while True:
        x = torch.randn(COUNT, *SHAPE)
        yield
        for _ in range(STEPS):
            eps = network(x, torch.full((COUNT,), 0.5))
            x = torch.add(zero, x, alpha=1.01).add_(eps, alpha=-0.1)
            yield


# ── ours ────────────────────────────────────────────────────────────────────────────────────────


@dataclass
class Idle(Source):
    """A source whose network does next to nothing."""

    data: DataFacts
    spec: ObjectiveSpec
    prediction: Prediction

    @classmethod
    def of(cls, noise: NoiseSchedule, prediction: Prediction) -> Idle:
        spec = ObjectiveSpec(schedule=build_schedule(noise, TIMESTEPS))
        return cls(DataFacts(shape=SHAPE, shift=(0.0,), scale=(1.0,)), spec, prediction)

    def __post_init__(self) -> None:
        self.schedule, self.device = self.spec.schedule, torch.device("cpu")

    name = schedule_name = description = "idle"

    def denoiser(self, count: int, *, label: int | Tensor | None = None, autocast: Autocast | None = None) -> Denoise:
        return Denoiser(network, self.prediction, self.spec)

    def load_samples(self) -> Samples:
        raise NotImplementedError


def our_walks(sampler: str) -> Iterator[object]:
    """Walks without an end, as `difftool sample` makes them: x_T, then each step."""
    source = Idle.of(registry().of_kind(NoiseSchedule, "linear")(), registry().of_kind(Prediction, "eps")())
    plan = Plan.of(source, Sampling(steps=STEPS, num_samples=COUNT), sampler=sampler)
    return itertools.chain.from_iterable(sample(source, plan) for _ in itertools.count())


# ── diffusers' ──────────────────────────────────────────────────────────────────────────────────


def their_walks(scheduler: str) -> Iterator[None]:
    """The loop of a diffusers pipeline: noise and levels, then each step. Estimates are not clipped, nor are ours."""
    import diffusers

    unclipped: dict[str, Any] = {} if scheduler.startswith("DPM") else {"clip_sample": False}
    schedule = getattr(diffusers, scheduler)(num_train_timesteps=TIMESTEPS, **unclipped)
    random = torch.Generator().manual_seed(0)
    while True:
        schedule.set_timesteps(STEPS)
        x = torch.randn(COUNT, *SHAPE, generator=random) * schedule.init_noise_sigma
        yield
        for t in schedule.timesteps:
            x = schedule.step(network(schedule.scale_model_input(x, t), t), t, x).prev_sample
            yield
