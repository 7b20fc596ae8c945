"""What a sampler costs beside its network.

A sampling step of difftool beside one call of the bare network, on one thread: the default MLP on 2,000 points, as many
as `difftool sample` draws, and on 64; and the default U-Net on 16 images of 3x32x32. The networks are untrained, which
changes no time. Then a step without a network, beside diffusers' schedulers: the network is x / 10, on 16 images of
3x8x8, and its own time is subtracted, round by round. DDIM by hand has its two coefficients computed beforehand, and
asks torch only for what no step can do without: the network's time, a product and a sum. Drawing the first noise and
choosing the levels is not timed.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks import ours
from benchmarks.findings import Comparison, Effort, Findings, Goal, Table, at_most, digits
from benchmarks.measuring import Contest
from difftool import Denoise, Model, ObjectiveSpec, Samples, devices
from difftool.components import NoiseSchedule, Prediction
from difftool.data.condition import Condition
from difftool.data.facts import DataFacts
from difftool.diffusion.memory_layout import layout_of
from difftool.plugins.build import build_schedule
from difftool.plugins.registry import registry
from difftool.sampling.denoiser import Denoiser
from difftool.sampling.loop import sample
from difftool.sampling.plan import Plan
from difftool.sampling.source import Autocast, Source
from difftool.settings import Sampling
from difftool.training.prepare import prepare

SHAPE, COUNT, STEPS, TIMESTEPS = (3, 8, 8), 16, 50, 1000
NETWORK, BY_HAND = "the network alone", "DDIM by hand"
OURS = {"ddim": "DDIMScheduler", "dpmpp-2m": "DPMSolverMultistepScheduler", "ddpm": "DDPMScheduler"}
"""A sampler of ours -> diffusers' of the same method."""


def run(effort: Effort) -> Findings:
    with devices.threads(1), torch.no_grad():
        tables = [beside_network(case, effort) for case in CASES]
        entries = contest()
        measured = entries.run(warmup=0, steps=STEPS, rounds=effort(300, 20), ahead=1)
    alone = measured.times.pop(NETWORK)
    values = {
        name: [whole - network for whole, network in zip(times, alone, strict=True)]
        for name, times in measured.times.items()
    }
    note = f"The network x / 10 takes {digits(1e6 * sorted(alone)[len(alone) // 2])} us a call."
    return Findings([*tables, without_network(values)], [*entries.notes, note])


# ── beside a real network ───────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Case:
    """A network and the samples of a batch."""

    title: str
    unit: str
    document: ours.Document
    count: int
    steps: int
    rounds: int
    goal: Goal | None
    """For the deterministic samplers: ddpm also draws noise."""


IMAGES: ours.Document = {"dataset": {"name": "gradients", "n": 100, "size": (32,)}, "backbone": {"name": "unet"}}
CASES = (
    Case("A step of the MLP, 2,000 points", "us a step", {}, 2_000, STEPS, 20, at_most(1.05)),
    Case("A step of the MLP, 64 points", "us a step", {}, 64, STEPS, 100, None),
    Case("A step of the U-Net, 16 images", "ms a step", IMAGES, 16, 4, 12, at_most(1.05)),
)


def beside_network(case: Case, effort: Effort) -> Table:
    """Time steps of difftool's loop, and calls of the same network without a sampler."""
    model = prepare(ours.recipe(case.document), ours.CPU).model.to("cpu")
    entries = Contest()
    entries.add(NETWORK, lambda: network_calls(model, case))
    for name in OURS:
        entries.add(f"difftool {name}", partial(steps_of, model, name, case.steps, case.count))
    measured = entries.run(warmup=0, steps=case.steps, rounds=effort(case.rounds, 2), ahead=1)
    rows = [Comparison(f"difftool {name}", NETWORK, None if name == "ddpm" else case.goal) for name in OURS]
    return Table(title=case.title, unit=case.unit, values=measured.times, comparisons=rows)


def network_calls(model: Model, case: Case) -> Iterator[None]:
    """Call the network on one batch, as a sampler calls it, again and again; with a yield where x_T would come."""
    x = torch.randn(case.count, *model.data.shape).contiguous(memory_format=layout_of(model.network, model.data.shape))
    t = torch.full((1,), 500.0).expand(case.count)  # one number in memory, of which an embedding is made once
    while True:
        yield
        for _ in range(case.steps):
            model.network(x, t, None)
            yield


def steps_of(source: Source, sampler: str, steps: int, count: int) -> Iterator[object]:
    """Sample without end, as `difftool sample` does: x_T, then each step."""
    settings = Sampling(steps=steps, num_samples=count, batch_size=count, precision="fp32")
    plan = Plan.of(source, settings, sampler=sampler)
    return itertools.chain.from_iterable(sample(source, plan) for _ in itertools.count())


# ── without a network ───────────────────────────────────────────────────────────────────────────


def without_network(values: dict[str, list[float]]) -> Table:
    pairs = [Comparison(f"difftool {name}", f"diffusers {theirs}") for name, theirs in OURS.items()]
    pairs.append(Comparison("difftool ddim", BY_HAND))
    ordered = sorted(pairs, key=lambda comparison: comparison.contender)
    return Table(title="A step without the network", unit="us a step", values=values, comparisons=ordered)


def contest() -> Contest:
    entries = Contest()
    entries.add(NETWORK, calls)
    entries.add(BY_HAND, by_hand)
    for name, theirs in OURS.items():
        entries.add(f"difftool {name}", lambda name=name: steps_of(Idle.new(), name, STEPS, COUNT))  # type: ignore[misc]
        entries.add(f"diffusers {theirs}", partial(their_steps, theirs), needs=("diffusers",))
    return entries


def network(x: Tensor, _t: object = None, _cond: object = None) -> Tensor:
    return 0.1 * x


def calls() -> Iterator[None]:
    """Call the network again and again, with a yield where x_T would come."""
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


@dataclass
class Idle(Source):
    """A source whose network does next to nothing."""

    data: DataFacts
    spec: ObjectiveSpec
    prediction: Prediction

    @classmethod
    def new(cls) -> Idle:
        spec = ObjectiveSpec(schedule=build_schedule(registry().of_kind(NoiseSchedule, "linear")(), TIMESTEPS))
        data = DataFacts(shape=SHAPE, shift=(0.0,), scale=(1.0,))
        return cls(data, spec, registry().of_kind(Prediction, "eps")())

    def __post_init__(self) -> None:
        self.schedule, self.device = self.spec.schedule, torch.device("cpu")

    name = schedule_name = description = "idle"

    def denoiser(
        self,
        count: int,
        *,
        condition: Condition | None = None,
        autocast: Autocast | None = None,
        gradients: bool = False,
    ) -> Denoise:
        return Denoiser(network, self.prediction, self.spec)

    def open_other(self, run: Path, weights: str) -> Source:
        raise NotImplementedError

    def load_samples(self) -> Samples:
        raise NotImplementedError


def their_steps(scheduler: str) -> Iterator[None]:
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
