"""The laws of optimizers, checked on the parameters of a small network and a quadratic loss."""

from __future__ import annotations

import json
import math

import torch
from torch import Tensor, nn

from difftool.components import Optimizer
from difftool.testing.laws import Failed, Skipped, require
from difftool.training.optimizer import Updater
from difftool.training.optimizer_checks import members_of

STEPS, LEARNING_RATES = 300, (1.0, 0.1, 0.03, 0.01, 0.001)
HIGHEST_LOSS = 0.1
"""The loss after `STEPS` steps at most, as a share of the first."""
FARTHEST = 1e-5
"""The largest difference between weights that are joined into one vector and separate ones, which is rounding."""


class Quadratic(nn.Module):
    """Parameters of several shapes, each with a target as the lowest point of a quadratic loss."""

    def __init__(self) -> None:
        super().__init__()
        random = torch.Generator().manual_seed(0)
        shapes = {"weight": (8, 6), "bias": (8,), "conv": (4, 3, 3, 3), "embedding": (5, 8), "gain": (), "row": (1, 4)}
        self.targets = {name: 0.3 * torch.randn(shape, generator=random) for name, shape in shapes.items()}
        for name, target in self.targets.items():
            self.register_parameter(name, nn.Parameter(0.3 * torch.randn(target.shape, generator=random)))

    def loss(self) -> Tensor:
        """Return half of the squared distance to the targets."""
        squares = [(p - self.targets[name]).square().sum() for name, p in self.named_parameters()]
        return 0.5 * torch.stack(squares).sum()


def groups_hold_every_parameter_once(optimizer: Optimizer) -> str:
    """The groups hold each parameter of a network exactly once: matrices, a convolution, vectors and a scalar."""
    network = Quadratic()
    try:
        groups = members_of(optimizer.groups([*network.named_parameters()]), dict(network.named_parameters()))
    except ValueError as error:
        raise Failed(str(error)) from None
    return f"{len(network.targets)} parameters in {len(groups)} group{'' if len(groups) == 1 else 's'}"


def minimises_a_quadratic(optimizer: Optimizer) -> str:
    """At one of five learning rates that fall to 0, from 0.001 to 1, 300 steps bring a quadratic loss down to at most a
    tenth."""
    losses: dict[float, float] = {}
    for lr in LEARNING_RATES:
        network = Quadratic()
        updater, before = Updater(optimizer, network.named_parameters(), lr), float(network.loss().detach())
        for step in range(STEPS):
            take_step(updater, network, lr * (1.0 - step / STEPS))
        losses[lr] = float(network.loss().detach()) / before
    best = min(losses, key=lambda lr: losses[lr] if math.isfinite(losses[lr]) else math.inf)
    require(
        losses[best] <= HIGHEST_LOSS,
        f"{STEPS} steps leave {losses[best]:.2g} of the loss at --lr {best:g}; at most {HIGHEST_LOSS} is allowed",
    )
    return f"{losses[best]:.1g} of the loss left at --lr {best:g}, at most {HIGHEST_LOSS}"


def resumes_to_the_last_bit(optimizer: Optimizer) -> str:
    """After five steps, its state goes through the form of a file into a new optimizer. Five further steps then equal
    those of the first optimizer to the last bit."""
    network = Quadratic()
    updater = Updater(optimizer, network.named_parameters(), 0.01)
    for _ in range(5):
        take_step(updater, network, 0.01)
    again = Quadratic()
    resumed = Updater(optimizer, again.named_parameters(), 0.01)
    resumed.make_state()
    again.load_state_dict(network.state_dict())
    tensors = {name: tensor.clone() for name, tensor in updater.tensors().items()}
    resumed.load(tensors, json.loads(json.dumps(updater.document(), allow_nan=False)))
    for _ in range(5):
        take_step(updater, network, 0.01)
        take_step(resumed, again, 0.01)
    for name, parameter in network.named_parameters():
        require(torch.equal(parameter, again.get_parameter(name)), f"{name} differs after the state was loaded")
    return f"{len(tensors)} tensors of state; equal to the last bit"


def a_step_that_is_not_finite_changes_nothing(optimizer: Optimizer) -> str:
    """A step whose gradients are NaN changes neither weights nor state, the first step included, and the steps after it
    are finite."""
    network = Quadratic()
    updater = Updater(optimizer, network.named_parameters(), 0.01)
    for step in range(3):
        before = [p.detach().clone() for p in network.parameters()]
        state = {name: tensor.clone() for name, tensor in updater.tensors().items()}
        take_step(updater, network, 0.01, factor=math.nan)
        same = all(torch.equal(a, b) for a, b in zip(before, network.parameters(), strict=True))
        require(same, f"a masked step moved the weights, in step {step + 1}")
        after = updater.tensors()
        same = after.keys() == state.keys() and all(torch.equal(state[name], after[name]) for name in state)
        require(same, f"a masked step changed the state, in step {step + 1}")
        take_step(updater, network, 0.01)
        require(all(bool(p.isfinite().all()) for p in network.parameters()), "the weights are NaN after it")
    return "masked on the device" if all(updater.maskable) else "skipped by the host, which waits once a step"


def joined_weights_move_as_separate_ones(optimizer: Optimizer) -> str:
    """If it says that it is `elementwise`, weights that are joined into one vector move as separate ones do."""
    if not optimizer.elementwise:
        raise Skipped("it does not say that it is elementwise")
    joined, separate = Quadratic(), Quadratic()
    updater = Updater(optimizer, joined.named_parameters(), 0.01)
    other = Updater(optimizer, separate.named_parameters(), 0.01, joined=False)
    for _ in range(5):
        take_step(updater, joined, 0.01)
        take_step(other, separate, 0.01)
    worst = max(
        float((a - b).detach().abs().max()) for a, b in zip(joined.parameters(), separate.parameters(), strict=True)
    )
    require(worst <= FARTHEST, f"joined weights end {worst:.2g} from separate ones; at most {FARTHEST:g} is rounding")
    return f"{worst:.1g} apart, at most {FARTHEST:g}"


LAWS = (
    groups_hold_every_parameter_once,
    minimises_a_quadratic,
    resumes_to_the_last_bit,
    a_step_that_is_not_finite_changes_nothing,
    joined_weights_move_as_separate_ones,
)


def take_step(updater: Updater, network: Quadratic, lr: float, *, factor: float = 1.0) -> None:
    """Make a step of training; the gradients are multiplied by a factor."""
    updater.clear_gradients()
    (factor * network.loss()).backward()  # type: ignore[no-untyped-call]
    updater.update(lr, updater.gradient_norm() < math.inf)
