"""The laws of losses, checked with a small network on items of random numbers."""

from __future__ import annotations

import copy
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from difftool.components import Loss, Prediction, TimestepSampling, Weighting
from difftool.data.facts import DataFacts
from difftool.errors import DifftoolError
from difftool.options import make
from difftool.plugins.registry import registry
from difftool.rng import generator
from difftool.runs import checkpoint
from difftool.specs import ObjectiveSpec
from difftool.testing.known import linear
from difftool.testing.laws import Failed, Skipped, accelerators, gap, largest, raised, require, size
from difftool.training.auxiliary import build_auxiliary, trainable
from difftool.training.batch import Moment
from difftool.training.loss import Inputs, Objective
from difftool.training.minimise import Predictor, batch_of, item_losses, paired, recorded_losses

SHAPES = ((2,), (3, 8, 8))
"""Shapes of items, of which a loss accepts at least one."""
TIMESTEPS, STEPS, COUNT = 100, 10, 6
"""Levels of the schedule, steps of the run, and items in a batch."""
TOLERANCE = 1e-4
"""Largest difference, relative to the largest loss, that counts as rounding."""


class Network(nn.Module):
    """A small network of x and t."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        numbers = torch.Size(shape).numel()
        self.first, self.last = nn.Linear(numbers + 1, 16), nn.Linear(16, numbers)

    def forward(self, x: Tensor, t: Tensor, cond: object = None) -> Tensor:
        h = self.first(torch.cat([x.flatten(1), t[:, None] / 1000], dim=1))
        output: Tensor = self.last(torch.tanh(h)).view_as(x)
        return output


@dataclass
class Trial:
    """A loss at work on one device."""

    objective: Objective
    network: nn.Module
    auxiliary: nn.Module | None

    def inputs(self, step: int = 0, count: int = COUNT) -> Inputs:
        """Return the inputs of a step before the loss has paired them."""
        shape, random = self.objective.data.shape, generator(0, "law", step)
        x_0, eps = torch.randn(2, count, *shape, generator=random)
        t = torch.randint(TIMESTEPS, (count,), generator=random)
        device = self.objective.device
        return self.objective.inputs(x_0.to(device), eps.to(device), t.to(device), None)

    def graph(self, inputs: Inputs, step: int = 0) -> Tensor:
        """Return the loss of each item (B,) with its graph."""
        batch = batch_of(self.objective, inputs, Moment(step, STEPS, (0, "law", step)))
        return item_losses(self.objective, Predictor(self.objective, self.network, inputs), batch, self.auxiliary)

    def losses(self, inputs: Inputs, step: int = 0) -> Tensor:
        """Return the loss of each item (B,)."""
        return self.graph(inputs, step).detach()

    def parameters(self) -> list[nn.Parameter]:
        """Return all parameters that are trained."""
        return [*self.network.parameters(), *(weight for _, weight in trainable(self.auxiliary))]

    def state(self) -> dict[str, Tensor]:
        """Return all that a training state holds of network and auxiliary network."""
        auxiliary = {} if self.auxiliary is None else self.auxiliary.state_dict()
        own = {f"model.{name}": tensor for name, tensor in self.network.state_dict().items()}
        return {**own, **{f"loss.{name}": tensor for name, tensor in auxiliary.items()}}

    def train(self, steps: range) -> None:
        """Make these steps by plain gradient descent, which has no state of its own."""
        for step in steps:
            for weight in self.parameters():
                weight.grad = None
            inputs = self.inputs(step)
            if self.objective.pairs:
                inputs = paired(self.objective, inputs, 0, step)
            self.graph(inputs, step).mean().backward()  # type: ignore[no-untyped-call]
            with torch.no_grad():
                for weight in self.parameters():
                    if weight.grad is not None:
                        weight.sub_(0.01 * weight.grad)
                self.objective.loss.after_step(self.network, self.auxiliary)


@dataclass(frozen=True)
class Case:
    """A loss, and the shape of the items that it is checked with."""

    loss: Loss
    shape: tuple[int, ...]

    def trial(self, *, device: torch.device | str = "cpu", seed: int = 0) -> Trial:
        """Return the loss at work on a new network."""
        torch.manual_seed(seed)
        network, place = Network(self.shape).to(device), torch.device(device)
        objective = Objective(
            ObjectiveSpec(schedule=linear(TIMESTEPS)),
            make(registry().of_kind(Prediction, "eps"), {}),
            make(registry().of_kind(Weighting, "min-snr"), {}),
            make(registry().of_kind(TimestepSampling, "uniform"), {}),
            self.loss,
            device=place,
            data=DataFacts(shape=self.shape),
        )
        return Trial(objective, network, build_auxiliary(network, objective, seed))


def prepare(loss: Loss) -> Case:
    """Return the loss with the first shape that it accepts. Raises `Failed` if it accepts none."""
    reasons = []
    for shape in SHAPES:
        case = Case(loss, shape)
        try:
            trial = case.trial()
            trial.losses(trial.inputs())
        except (ValueError, DifftoolError) as error:
            reasons.append(f"{size(shape)}: {error}")
        except Exception as error:
            raise Failed(f"{size(shape)}: {raised(error)}") from error
        else:
            return case
    raise Failed(f"it accepts none of the shapes that were tried: {'; '.join(reasons)}")


def returns_the_loss_of_each_item(case: Case) -> str:
    """`loss` returns finite floating-point numbers (B,) for one item and for six, in the first and in the last step."""
    trial = case.trial()
    for count in (1, COUNT):
        for step in (0, STEPS - 1):
            losses = trial.losses(trial.inputs(step, count), step)
            if not losses.is_floating_point() or not bool(losses.isfinite().all()):
                raise Failed(f"{count} items in step {step}: {losses.dtype}, from {losses.min()} to {losses.max()}")
    return f"(1,) and ({COUNT},), for items of {size(case.shape)}"


def trains_the_network(case: Case) -> str:
    """The mean loss has a finite gradient in the network that is not 0, and one in every parameter of the auxiliary
    network that requires gradients."""
    trial = case.trial()
    torch.stack([trial.graph(trial.inputs(step), step).mean() for step in range(3)]).sum().backward()  # type: ignore[no-untyped-call]
    if unused := [name for name, weight in trainable(trial.auxiliary) if weight.grad is None]:
        raise Failed(f"{unused[0]} receives no gradient; requires_grad_(False) says that it is not trained")
    gradients = [weight.grad for weight in trial.network.parameters() if weight.grad is not None]
    norm = float(torch.stack([gradient.norm() for gradient in gradients]).norm()) if gradients else 0.0
    require(0.0 < norm < float("inf"), f"the gradient in the network has the norm {norm}")
    return f"norm {norm:.2g}"


def is_reproducible(case: Case) -> str:
    """The same network, batch and step give the same losses to the last bit, so random numbers come from
    `batch.generator` alone."""
    trial = case.trial()
    first, second = (trial.losses(trial.inputs(), 2) for _ in range(2))
    require(torch.equal(first, second), f"two calls give losses that differ by {gap(first, second):.2g}")
    return "equal to the last bit"


def treats_items_independently(case: Case) -> str:
    """The loss of an item does not change with the other items of its batch, unless the loss overrides `pair`."""
    trial = case.trial()
    if trial.objective.pairs:
        raise Skipped("it pairs the items of a batch")
    inputs, others = trial.inputs(0), trial.inputs(1)
    x_0, eps, t = (torch.cat([a[:1], b[1:]]) for a, b in zip(inputs[:3], others[:3], strict=True))
    before, after = trial.losses(inputs)[0], trial.losses(trial.objective.inputs(x_0, eps, t, None))[0]
    rows = f"the loss of an item changes by {gap(before, after):.2g}, from {float(before):.2g}, with the other items"
    require(gap(before, after) <= TOLERANCE * max(abs(float(before)), 1e-6), rows)
    return f"{gap(before, after):.1g} apart"


def changes_no_tensor_in_place(case: Case) -> str:
    """Neither `pair` nor `loss` changes the tensors that it receives, which other steps may share."""
    trial = case.trial()
    inputs = trial.inputs()
    before = copy.deepcopy(inputs)
    trial.losses(paired(trial.objective, inputs, 0, 0))
    changed = [name for name, same in zip(inputs._fields, equal(before, inputs), strict=True) if not same]
    require(not changed, f"it changes {', '.join(changed)}")
    return "none is changed"


def pairs_reproducibly(case: Case) -> str:
    """`pair` keeps shapes and types, and gives the same pairs for equal generators."""
    trial = case.trial()
    if not trial.objective.pairs:
        raise Skipped("it pairs nothing")
    first, second = (paired(trial.objective, trial.inputs(), 0, 0) for _ in range(2))
    require(all(equal(first, second)), "two calls with equal generators give different pairs")
    return "equal to the last bit"


def agrees_with_its_mean(case: Case) -> str:
    """An overridden `mean_loss` is the mean of `loss`, and `loss` follows from the prediction at `batch.x_t` alone."""
    trial, loss = case.trial(), case.loss
    if type(loss).mean_loss is Loss.mean_loss:
        raise Skipped("it does not override mean_loss")
    inputs = trial.inputs()
    predict, batch = Predictor(trial.objective, trial.network, inputs), batch_of(trial.objective, inputs, None)
    mean = loss.mean_loss(predict, batch, trial.auxiliary).detach()
    if predict.output is None:
        raise Failed("mean_loss makes no prediction at batch.x_t; override loss alone")
    losses = recorded_losses(trial.objective, predict.output.detach(), inputs.target, inputs.t)
    rows = f"mean_loss is {float(mean):.6g}, the mean of loss {float(losses.mean()):.6g}"
    require(mean.shape == () and gap(mean, losses.mean()) <= TOLERANCE * largest(losses), rows)
    return rows


def applies_the_weight(case: Case) -> str:
    """If the loss declares `weighted`, `batch.weight` changes its losses."""
    trial = case.trial()
    if not case.loss.weighted:
        raise Skipped("difftool applies the weight")
    before = trial.losses(trial.inputs())
    trial.objective.factor *= 3.0
    require(not torch.equal(before, trial.losses(trial.inputs())), "three times the weight changes nothing")
    return "the weight counts"


def resumes_exactly(case: Case) -> str:
    """Training that is stopped after three steps, and continued from a file of the network and the parameters and
    buffers of the auxiliary network, ends like one that was not stopped, to the last bit."""
    straight, stopped, resumed = case.trial(), case.trial(), case.trial(seed=1)
    straight.train(range(6))
    stopped.train(range(3))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "state.safetensors"
        checkpoint.save(path, stopped.state(), {})
        tensors, _ = checkpoint.load(path)
    if rows := checkpoint.differences(resumed.state(), tensors):
        raise Failed(f"a new auxiliary network has other tensors: {rows}")
    for name, part in (("model", resumed.network), ("loss", resumed.auxiliary)):
        if part is not None:
            own = {key.removeprefix(f"{name}."): t for key, t in tensors.items() if key.startswith(f"{name}.")}
            part.load_state_dict(own)
    resumed.train(range(3, 6))
    expected = straight.state()
    changed = [name for name, tensor in resumed.state().items() if not torch.equal(tensor, expected[name])]
    if changed:
        raise Failed(f"{changed[0]} differs; everything that changes must be a parameter or a buffer of the module")
    return "no auxiliary network" if straight.auxiliary is None else "equal to the last bit"


def works_on_every_device(case: Case) -> str:
    """On each accelerator of the machine its losses differ from those on the CPU by at most a hundredth, unless it
    draws random numbers, which differ by device; then they are finite."""
    devices, on_cpu = accelerators(), case.trial()
    expected, later = on_cpu.losses(on_cpu.inputs(), 2), on_cpu.losses(on_cpu.inputs(), 3)
    for device in devices:
        trial = case.trial(device=device)
        trial.network.load_state_dict(on_cpu.network.state_dict())
        if trial.auxiliary is not None and on_cpu.auxiliary is not None:
            trial.auxiliary.load_state_dict(on_cpu.auxiliary.state_dict())
        losses = trial.losses(trial.inputs(), 2).cpu()
        if torch.equal(expected, later) and not gap(losses, expected) <= 1e-2 * largest(expected):
            raise Failed(f"its losses on {device} and on the CPU differ by {gap(losses, expected):.2g}")
        require(losses.isfinite().all(), f"its losses on {device} are not finite")
    return ", ".join(map(str, devices))


def equal(first: Inputs, second: Inputs) -> list[bool]:
    """Return for each field of two batches whether its numbers are the same."""
    return [(a is None and b is None) or torch.equal(a, b) for a, b in zip(first, second, strict=True)]  # type: ignore[arg-type]


LAWS = (
    returns_the_loss_of_each_item,
    trains_the_network,
    is_reproducible,
    treats_items_independently,
    changes_no_tensor_in_place,
    pairs_reproducibly,
    agrees_with_its_mean,
    applies_the_weight,
    resumes_exactly,
    works_on_every_device,
)
