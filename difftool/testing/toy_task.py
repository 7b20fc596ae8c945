"""A task that a network learns by heart within seconds: eight items of three classes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from difftool.data.condition import Condition
from difftool.rng import generator
from difftool.specs import BackboneSpec, ConditionSpec
from difftool.testing.known import TABLES
from difftool.testing.laws import Failed

CLASSES = 3
BATCH_SIZE, LEARNING_RATE = 32, 2e-3
MAX_STEPS, LOOK_EVERY = 800, 50
"""Steps of a training at most, and the steps between two looks at the loss."""

Loss = Callable[[nn.Module, torch.Generator], Tensor]


@dataclass(frozen=True)
class ToyTask:
    """Eight items in model units, each close to the pattern of its class."""

    items: Tensor
    labels: Tensor
    patterns: Tensor
    """(CLASSES, *shape)."""
    condition: ConditionSpec
    """The conditions that the network takes. Each of their fields tells the class of an item."""

    @classmethod
    def of_shape(cls, shape: tuple[int, ...], condition: ConditionSpec) -> ToyTask:
        random = generator(0, "law")
        # a pattern is constant in each channel, so a network with a small receptive field can tell the items apart
        patterns = torch.randn(CLASSES, shape[0], *(1,) * (len(shape) - 1), generator=random).expand(CLASSES, *shape)
        labels = torch.arange(8) % CLASSES
        items = patterns[labels] + 0.1 * torch.randn(8, *shape, generator=random)
        return cls(items, labels, patterns.contiguous(), condition)

    def batch(self, random: torch.Generator) -> tuple[Tensor, Tensor, Condition | None, Tensor, Tensor]:
        """Return (x_t, t, cond, eps, x_0) on the linear schedule; of one item in ten, the conditions are hidden."""
        table = TABLES["linear"]
        chosen = torch.randint(len(self.items), (BATCH_SIZE,), generator=random)
        t = torch.randint(len(table), (BATCH_SIZE,), generator=random)
        hidden = torch.rand(BATCH_SIZE, generator=random) < 0.1
        x_0 = self.items[chosen]
        eps = torch.randn(x_0.shape, generator=random)
        alpha, sigma = (values[t].float().view(-1, *(1,) * (x_0.ndim - 1)) for values in (table.alpha, table.sigma))
        cond = condition_of(self.condition, self.labels[chosen].masked_fill(hidden, CLASSES))
        return alpha * x_0 + sigma * eps, t.float(), cond, eps, x_0

    def noise_loss(self, network: nn.Module, random: torch.Generator) -> Tensor:
        """Return the mean squared error in eps; a network that predicts 0 has a loss of 1."""
        x_t, t, cond, eps, _ = self.batch(random)
        error: Tensor = (network(x_t, t, cond) - eps).square().mean()
        return error

    def self_conditioning_loss(self, network: nn.Module, random: torch.Generator) -> Tensor:
        """Return the mean squared error in eps; half of the items have x_0 itself beside x_t, the others zeros."""
        x_t, t, cond, eps, x_0 = self.batch(random)
        x_0[::2] = 0.0
        error: Tensor = (network(torch.cat([x_t, x_0], dim=1), t, cond) - eps).square().mean()
        return error

    def pattern_loss(
        self,
        network: nn.Module,
        random: torch.Generator,
        *,
        condition: ConditionSpec,
        field: str,
        hidden: float = 0.3,
        only: int | None = None,
    ) -> Tensor:
        """Return the mean squared error in the pattern of a class, predicted from pure noise and a field.

        `condition` has the fields that the network takes, of which `field` alone tells the class. `hidden` is the share
        of items whose conditions the network does not see, and `only` the class of all items.
        """
        label = torch.randint(CLASSES, (BATCH_SIZE,), generator=random)
        label = label if only is None else torch.full_like(label, only)
        x = torch.randn(BATCH_SIZE, *self.items.shape[1:], generator=random)
        hide = torch.rand(BATCH_SIZE, generator=random) < hidden
        cond = condition_of(condition, label.masked_fill(hide, CLASSES), field)
        output = network(x, torch.full((BATCH_SIZE,), 999.0), cond)
        error: Tensor = (output - self.patterns[label]).square().mean()
        return error


def train(network: nn.Module, loss: Loss, goal: float) -> list[float]:
    """Train with Adam until the loss reaches the goal, for at most `MAX_STEPS` steps.

    Return the loss before training and after every `LOOK_EVERY` steps, always over the same noise.
    """
    optimizer = torch.optim.Adam(network.parameters(), lr=LEARNING_RATE)
    random, losses = generator(0, "train"), [mean_loss(network, loss)]
    for step in range(1, MAX_STEPS + 1):
        network.train()
        optimizer.zero_grad()
        loss(network, random).backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        if step % LOOK_EVERY == 0:
            losses.append(mean_loss(network, loss))
            if losses[-1] <= goal:
                break
    network.eval()
    return losses


@torch.no_grad()
def mean_loss(network: nn.Module, loss: Loss) -> float:
    """Return the loss in evaluation mode, averaged over 16 fixed batches."""
    network.eval()
    return float(torch.stack([loss(network, generator(i, "held")) for i in range(16)]).mean())


@torch.no_grad()
def predict(network: nn.Module, x: Tensor, t: float | Tensor, cond: Condition | None) -> Tensor:
    """Return the network's output in evaluation mode, at one time for all items or at one time for each."""
    network.eval()
    output = network(x, torch.as_tensor(t, dtype=torch.float32, device=x.device).expand(len(x)), cond)
    if not isinstance(output, Tensor):
        raise Failed(f"it returned a {type(output).__name__}, not a tensor")
    return output


def condition_of(condition: ConditionSpec, classes: Tensor, field: str | None = None) -> Condition | None:
    """Return the conditions of items of these classes (B,), where `CLASSES` hides them; None without any field.

    The fields are a function of the class; if one of them is named, the others are those of class 0.
    """
    if not condition:
        return None
    hidden = classes == CLASSES
    rows, fields = classes.masked_fill(hidden, 0), {}
    for name, shape in condition.shapes.items():
        if name == "label":
            values = torch.arange(CLASSES)
        else:
            values = torch.randn(CLASSES, *shape, generator=generator(0, "law", name))
        fields[name] = values[rows if field in (None, name) else torch.zeros_like(rows)]
    return Condition(**fields, hidden=torch.zeros_like(hidden)).hide(hidden)


def noise(spec: BackboneSpec, count: int) -> Tensor:
    """Return standard normal inputs (count, in_channels, ...) for a network of this spec."""
    return torch.randn(count, spec.in_channels, *spec.shape[1:], generator=generator(0, "law"))
