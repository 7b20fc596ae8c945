"""Losses of examples/papers at work: on chosen items, noise and levels, with networks of known formulas."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

import difftool
from difftool import Loss, Schedule
from difftool.data.facts import DataFacts
from difftool.scripts import Script
from difftool.specs import ObjectiveSpec
from difftool.training.auxiliary import build_auxiliary
from difftool.training.batch import Moment, TrainingBatch
from difftool.training.loss import Inputs, Objective
from difftool.training.minimise import Predictor, batch_of, paired

PAPERS = Path(__file__).resolve().parents[2] / "examples" / "papers"
CPU = torch.device("cpu")


def script(name: str) -> ModuleType:
    """Return the module of a script."""
    return Script.read(PAPERS / f"{name}.py").load()


@dataclass
class Work:
    """A loss, its objective and its networks."""

    objective: Objective
    network: nn.Module
    auxiliary: Any

    def inputs(self, x_0: Tensor, eps: Tensor, t: Tensor, step: int = 0) -> Inputs:
        """Return the inputs of a step, paired as the loss wishes."""
        inputs = self.objective.inputs(x_0, eps, t, None)
        return paired(self.objective, inputs, 0, step) if self.objective.pairs else inputs

    def batch(self, inputs: Inputs, step: int = 0, steps: int = 10) -> TrainingBatch:
        return batch_of(self.objective, inputs, Moment(step, steps, (0, "loss", step)))

    def losses(self, x_0: Tensor, eps: Tensor, t: Tensor, *, step: int = 0, steps: int = 10) -> Tensor:
        """Return the loss of each item (B,), with its graph and the weight of its level."""
        inputs = self.inputs(x_0, eps, t, step)
        batch = self.batch(inputs, step, steps)
        found = self.objective.loss.loss(Predictor(self.objective, self.network, inputs), batch, self.auxiliary)
        return found if self.objective.loss.weighted else found * batch.weight

    def after_step(self) -> None:
        with torch.no_grad():
            self.objective.loss.after_step(self.network, self.auxiliary)


def at_work(
    loss: Loss,
    schedule: Schedule,
    network: nn.Module,
    *,
    prediction: str = "v",
    weighting: str = "none",
    shape: tuple[int, ...] = (2,),
    std: float = 1.0,
) -> Work:
    objective = Objective(
        ObjectiveSpec(schedule=schedule, sigma_data=std),
        difftool.component("prediction", prediction),
        difftool.component("weighting", weighting),
        difftool.component("timestep-sampling", "uniform"),
        loss,
        device=CPU,
        data=DataFacts(shape=shape),
    )
    return Work(objective, network, build_auxiliary(network, objective, seed=0))


class Formula(nn.Module):
    """A network of a formula f(x, t, p), with parameters p to take gradients of; t is the row of the level."""

    def __init__(self, formula: Callable[[Tensor, Tensor, Tensor], Tensor], timesteps: int, *numbers: float) -> None:
        super().__init__()
        self.formula, self.timesteps = formula, timesteps
        self.p = nn.Parameter(torch.tensor(numbers or (0.0,)))

    def forward(self, x: Tensor, time: Tensor, cond: object = None) -> Tensor:
        return self.formula(x, (time * self.timesteps / 1000).round().long(), self.p)

    def __deepcopy__(self, memo: dict[int, Any]) -> Formula:
        new = Formula(self.formula, self.timesteps, *self.p.tolist())
        memo[id(self)] = new
        return new


def small(shape: tuple[int, ...] = (2,), seed: int = 0) -> nn.Module:
    """Return a small MLP with random weights."""
    from difftool import BackboneSpec

    torch.manual_seed(seed)
    spec = BackboneSpec(shape=shape, out_channels=shape[0])
    network: nn.Module = difftool.component("backbone", "mlp", width=16, depth=2).build(spec)
    for weight in network.parameters():  # the last layer of a new network may be 0
        nn.init.normal_(weight, std=0.3)
    return network


def draws(
    count: int, shape: tuple[int, ...] = (2,), *, levels: int = 1000, seed: int = 0
) -> tuple[Tensor, Tensor, Tensor]:
    """Return items, noise and levels."""
    random = torch.Generator().manual_seed(seed)
    x_0, eps = torch.randn(2, count, *shape, generator=random)
    return x_0, eps, torch.randint(levels, (count,), generator=random)


def numbers(alpha: Tensor, t: Tensor, ndim: int = 2) -> Tensor:
    """Return the numbers of a table at levels t, to multiply items with."""
    return alpha[t].float().view(-1, *(1,) * (ndim - 1))
