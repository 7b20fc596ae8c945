"""Components of examples/papers under the laws of their kinds, and on devices without numbers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from at_work import script
from test_devices import META, step_on_meta
from torch._subclasses.fake_tensor import FakeTensorMode

import difftool
from difftool import CLEAN, Component, Estimate
from difftool.testing import check_component

LOSSES: dict[str, dict[str, Any]] = {
    "progressive distillation": {"loss": script("progressive_distillation").ProgressiveDistillation(steps=5)},
    "consistency training": {"loss": script("consistency_training").ConsistencyTraining()},
    "consistency distillation": {"loss": script("consistency_distillation").ConsistencyDistillation()},
    "edm2": {"loss": script("edm2").LearnedUncertainty()},
    "cold diffusion": {"loss": script("cold_diffusion").Cold(), "backbone": "unet"},
}
"""The losses that draw no random numbers of their own, for which the meta device has no generator."""
SAMPLERS = {
    "consistency_training": ("Multistep", (2,)),
    "stochastic_interpolants": ("InterpolantSDE", (2,)),
    "masked_diffusion": ("Unmask", (4, 6)),
    "cold_diffusion": ("ColdSampler", (3, 8, 8)),
}


@pytest.mark.parametrize("name", LOSSES)
def test_a_training_step_stays_on_the_device(name: str) -> None:
    result = step_on_meta(prediction="v", **LOSSES[name])
    assert {result.loss.device, result.grad_norm.device} == {META}


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_sampler_stays_on_the_device(name: str) -> None:
    cls, shape = SAMPLERS[name]
    schedule = difftool.component("schedule", "linear").build(100)
    levels = [*difftool.component("spacing", "trailing").levels(schedule, 3), CLEAN]
    with FakeTensorMode(), torch.no_grad():
        x = torch.empty(4, *shape, device="cuda")
        sampler = getattr(script(name), cls)()
        steps = list(sampler.sample(lambda x, level: Estimate(x, x), x, levels, lambda _: torch.empty_like(x)))
    assert [step.x.device for step in steps] == [x.device] * 3


COMPONENTS = [
    *(options["loss"] for options in LOSSES.values()),
    script("masked_diffusion").Words(),
    script("stochastic_interpolants").Trigonometric(),
    *(script("stochastic_interpolants").InterpolantSDE(diffusion=diffusion) for diffusion in (0.0, 1.0)),
    script("analog_bits").Bits(),
    script("dmd").InTurn(),
]


@pytest.mark.parametrize("component", COMPONENTS, ids=lambda component: component.name)
def test_a_component_keeps_the_laws(component: Component) -> None:
    check_component(component)


def test_minibatch_ot_keeps_the_laws() -> None:
    pytest.importorskip("scipy")
    check_component(script("minibatch_ot").MinibatchOT())
