"""Laws of backbones, asked with items of one shape: a network is trained on a problem that it can learn by heart."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path

import torch
from torch import Tensor, nn

from difftool import checkpoint
from difftool.components import Backbone
from difftool.contracts import BackboneSpec
from difftool.keys import generator
from difftool.testing.known import TABLES
from difftool.testing.laws import Broken, accelerators

SHAPES: Sequence[tuple[int, ...]] = ((2,), (3, 8, 8), (3, 16, 16), (3, 32, 32), (3, 64, 64))
"""Items to try, small ones first."""
ODD: Sequence[tuple[int, ...]] = ((1,), (5,), (1, 1, 1), (3, 7, 5), (1, 12, 8), (4, 6, 6), (2, 9))
"""Items that not every network can take."""
CLASSES = 3
BATCH, STEPS, LOOK_EVERY = 32, 800, 50
"""Items of a step, steps at most, and after how many the loss is looked at."""
RATE = 2e-3
LEARNT = 0.6
"""Part of the loss of a network that says nothing to which it must come down."""
LABELLED = 0.5
"""Part of the error without a label to which a label must bring it."""
ALONE = 1e-4
"""How far an answer may move, for its largest value, with what else is in the batch."""


@dataclass(frozen=True)
class Case:
    """A backbone, the items that it is asked with, and what comes of training it on them."""

    backbone: Backbone
    shape: tuple[int, ...]

    @property
    def spec(self) -> BackboneSpec:
        return BackboneSpec(shape=self.shape, out_channels=self.shape[0], classes=CLASSES)

    def build(self, spec: BackboneSpec | None = None, seed: int = 0) -> nn.Module:
        torch.manual_seed(seed)
        network = self.backbone.build(spec or self.spec)
        if not isinstance(network, nn.Module):
            raise Broken(f"build() gave a {type(network).__name__}, not a module")
        return network

    @cached_property
    def problem(self) -> Problem:
        return Problem.of(self.shape)

    @cached_property
    def trained(self) -> tuple[nn.Module, list[float]]:
        """The network after training, and its loss before, on the way and in the end."""
        network = self.build()
        return network, train(network, self.problem.of_noise, LEARNT)


def subject(backbone: Backbone, *, shape: tuple[int, ...] | None = None) -> Case:
    """The case of the first shape that the backbone takes. Raises `Broken` where there is none."""
    reasons = []
    for one in SHAPES if shape is None else (shape,):
        case = Case(backbone, one)
        try:
            answer(case.build(), one)
        except Exception as error:
            reasons.append(f"{'x'.join(map(str, one))}: {' '.join(str(error).split())}")
        else:
            return case
    raise Broken(f"it takes none of the items tried, so name a shape that it does ({'; '.join(reasons)})")


def answers_in_the_right_shape(case: Case) -> str:
    """net(x, t, cond) is shaped as x, float32, for one item and for five, with classes and without; with twice the
    channels where the variance is learned, and taking them where it knows its last estimate."""
    specs = {
        "plain": replace(case.spec, classes=None),
        "classes": case.spec,
        "learned variance": replace(case.spec, out_channels=2 * case.shape[0]),
    }
    if case.backbone.self_conditioning:
        specs["self-conditioning"] = replace(case.spec, self_condition=True)
    for name, spec in specs.items():
        network = case.build(spec)
        for count in (1, 5):
            shape = (spec.in_channels, *case.shape[1:])
            found = answer(network, shape, count, None if spec.classes is None else 0)
            due = (count, spec.out_channels, *case.shape[1:])
            if tuple(found.shape) != due or found.dtype != torch.float32:
                raise Broken(f"{name}: it answered {tuple(found.shape)} {found.dtype}, not {due} torch.float32")
    return f"{'x'.join(map(str, case.shape))}: {', '.join(specs)}"


def refuses_what_it_cannot_take(case: Case) -> str:
    """Items of odd shapes are taken, or refused by `build` with a ValueError: users learn it before they train."""
    taken, refused = [], []
    for shape in ODD:
        size = "x".join(map(str, shape))
        try:
            network = case.build(BackboneSpec(shape=shape, out_channels=shape[0]))
        except ValueError:
            refused.append(size)
            continue
        except Exception as error:
            raise Broken(
                f"build() for items of {size} raised {type(error).__name__}, not ValueError: {error}"
            ) from None
        try:
            answer(network, shape, label=None)
        except Exception as error:
            raise Broken(f"build() took items of {size}, which it cannot answer: {error}") from None
        taken.append(size)
    return f"takes {', '.join(taken) or 'none'}; refuses {', '.join(refused) or 'none'}"


def begins_alike_from_the_same_seed(case: Case) -> str:
    """Built twice from the same seed of torch the weights are equal; on the meta device there are as many, unborn."""
    a, b = case.build(seed=3).state_dict(), case.build(seed=3).state_dict()
    if different := [name for name in a if not torch.equal(a[name], b[name])]:
        raise Broken(f"{different[0]} differs between two networks of one seed")
    with torch.device("meta"):
        sketch = case.backbone.build(case.spec)
    if rows := checkpoint.differences(sketch.state_dict(), a):
        raise Broken(f"on the meta device it has other weights: {rows}; make no tensors of a fixed device")
    return f"{sum(p.numel() for p in sketch.parameters()):,} parameters"


def learns(case: Case) -> str:
    """Trained on eight items for at most 800 steps of Adam, its error in eps falls to 0.6 of that of saying nothing."""
    _, losses = case.trained
    told = f"loss {losses[0]:.2f}, after {LOOK_EVERY * (len(losses) - 1)} steps {losses[-1]:.2f}"
    if not losses[-1] <= LEARNT:
        raise Broken(f"{told}; at most {LEARNT} was due")
    return told


def uses_every_weight(case: Case) -> str:
    """Each weight gets a gradient in a step; what gets none is not trained, and stops training on several devices."""
    network = case.build()
    network.train()
    case.problem.of_noise(network, generator(0, "law")).backward()  # type: ignore[no-untyped-call]
    if idle := [name for name, p in network.named_parameters() if p.requires_grad and p.grad is None]:
        raise Broken(f"no gradient reaches {', '.join(idle[:3])}{f' and {len(idle) - 3} more' if idle[3:] else ''}")
    return f"{sum(1 for _ in network.parameters())} tensors"


def takes_a_label(case: Case) -> str:
    """Shown nothing but noise, it learns in at most 800 steps to answer the pattern of the class that it is told: its
    error is then half of that without a label."""
    network, problem = case.build(), case.problem
    train(network, problem.of_pattern, enough=0.4 * float(problem.patterns.var(0, correction=0).mean()))
    told, untold = (mean_of(network, partial(problem.of_pattern, hidden=hidden)) for hidden in (0.0, 1.0))
    if not told <= LABELLED * untold:
        raise Broken(f"error {told:.3f} with the label, {untold:.3f} without; {LABELLED * untold:.3f} was due")
    return f"error {told:.3f} with the label, {untold:.3f} without"


def sees_the_time(case: Case) -> str:
    """After training, its answer to one and the same input depends on t."""
    network, _ = case.trained
    x = torch.randn(4, *case.shape, generator=generator(0, "law"))
    early, late = (_ask(network, x, t, 0) for t in (20.0, 900.0))
    gap, size = float((early - late).abs().max()), float(late.abs().max())
    if not gap > 1e-3 * size:
        raise Broken(f"its answers at t = 20 and 900 are {gap:.2g} apart, of {size:.2g}")
    return f"answers at t = 20 and 900 are {gap:.2g} apart, of {size:.2g}"


def answers_each_item_for_itself(case: Case) -> str:
    """In evaluation, an answer does not depend on what else is in the batch, and is the same when asked again."""
    network, _ = case.trained
    x = torch.randn(5, *case.shape, generator=generator(1, "law"))
    together, again = _ask(network, x, 300.0, 1), _ask(network, x, 300.0, 1)
    if not torch.equal(together, again):
        raise Broken("asked twice in evaluation, it gives two answers")
    alone = torch.cat([_ask(network, x[i : i + 1], 300.0, 1) for i in range(5)])
    gap, size = float((together - alone).abs().max()), float(alone.abs().max())
    if not gap <= ALONE * max(size, 1e-6):
        raise Broken(
            f"alone and among others its answers are {gap:.2g} apart, of {size:.2g}; {ALONE:g} of it is rounding"
        )
    return f"{gap:.1g} apart, of {size:.2g}"


def comes_back_from_a_file(case: Case) -> str:
    """Saved as safetensors and loaded into a network built anew, it answers the same to the last bit."""
    network, _ = case.trained
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        checkpoint.save(path, network.state_dict(), {})
        tensors, _ = checkpoint.load(path)
    other = case.build(seed=9)
    if rows := checkpoint.differences(other.state_dict(), tensors):
        raise Broken(f"built anew it has other weights: {rows}")
    other.load_state_dict(tensors)
    x = torch.randn(3, *case.shape, generator=generator(2, "law"))
    if not torch.equal(_ask(network, x, 500.0, 2), _ask(other, x, 500.0, 2)):
        raise Broken("loaded again it answers otherwise; what it needs must be parameters or buffers")
    return f"{sum(t.numel() * t.element_size() for t in tensors.values()) / 2**20:.2f} MiB"


def works_in_bf16(case: Case) -> str:
    """Under autocast to bf16 its answers are finite, and a tenth from those in float32 at most."""
    network, _ = case.trained
    x = torch.randn(4, *case.shape, generator=generator(3, "law"))
    full = _ask(network, x, 300.0, 0)
    with torch.autocast("cpu", torch.bfloat16):
        half = _ask(network, x, 300.0, 0).float()
    gap, size = float((full - half).abs().mean()), float(full.abs().mean())
    if not gap <= 0.1 * size:
        raise Broken(f"in bf16 its answers are {gap:.2g} apart on average, of {size:.2g}")
    return f"{gap:.1g} apart on average, of {size:.2g}"


def works_on_every_device(case: Case) -> str:
    """On each accelerator that is here it answers what it answers on the CPU, to a hundredth."""
    others = accelerators()
    network, _ = case.trained
    x = torch.randn(4, *case.shape, generator=generator(4, "law"))
    here, state = _ask(network, x, 300.0, 0), network.state_dict()
    for device in others:
        there = case.build().to(device)
        there.load_state_dict(state)
        gap = float((_ask(there, x.to(device), 300.0, 0).cpu() - here).abs().max())
        if not gap <= 1e-2 * float(here.abs().max()):
            raise Broken(f"on {device} its answers are {gap:.2g} from those on the CPU")
    return ", ".join(map(str, others))


LAWS = (
    answers_in_the_right_shape,
    refuses_what_it_cannot_take,
    begins_alike_from_the_same_seed,
    uses_every_weight,
    learns,
    takes_a_label,
    sees_the_time,
    answers_each_item_for_itself,
    comes_back_from_a_file,
    works_in_bf16,
    works_on_every_device,
)


def answer(network: nn.Module, shape: tuple[int, ...], count: int = 2, label: int | None = 0) -> Tensor:
    """What an untrained network says to noise; without a label where it has no classes."""
    x = torch.randn(count, *shape, generator=generator(0, "law"))
    return _ask(network, x, 500.0, label)


@torch.no_grad()
def _ask(network: nn.Module, x: Tensor, t: float, label: int | None) -> Tensor:
    network.eval()
    cond = None if label is None else torch.full((len(x),), label, device=x.device)
    found = network(x, torch.full((len(x),), t, device=x.device), cond)
    if not isinstance(found, Tensor):
        raise Broken(f"it answered a {type(found).__name__}, not a tensor")
    return found


@dataclass(frozen=True)
class Problem:
    """Eight items, each of one of three classes, in model units."""

    items: Tensor
    labels: Tensor
    patterns: Tensor
    """(CLASSES, *shape): what the items of a class are near to."""

    @classmethod
    def of(cls, shape: tuple[int, ...]) -> Problem:
        random = generator(0, "law")
        # one number a channel, so that also a network with a small field of view sees which item it is
        patterns = torch.randn(CLASSES, shape[0], *(1,) * (len(shape) - 1), generator=random).expand(CLASSES, *shape)
        labels = torch.arange(8) % CLASSES
        items = patterns[labels] + 0.1 * torch.randn(8, *shape, generator=random)
        return cls(items, labels, patterns.contiguous())

    def of_noise(self, network: nn.Module, random: torch.Generator) -> Tensor:
        """The mean squared error in eps, over the levels of the linear table; one label in ten is hidden."""
        table = TABLES["linear"]
        chosen = torch.randint(len(self.items), (BATCH,), generator=random)
        t = torch.randint(len(table), (BATCH,), generator=random)
        hidden = torch.rand(BATCH, generator=random) < 0.1
        x_0, cond = self.items[chosen], self.labels[chosen].masked_fill(hidden, CLASSES)
        eps = torch.randn(x_0.shape, generator=random)
        alpha, sigma = (values[t].float().view(-1, *(1,) * (x_0.ndim - 1)) for values in (table.alpha, table.sigma))
        error: Tensor = (network(alpha * x_0 + sigma * eps, t.float(), cond) - eps).square().mean()
        return error

    def of_pattern(self, network: nn.Module, random: torch.Generator, hidden: float = 0.3) -> Tensor:
        """The mean squared error in the pattern of a class, asked for with its label and nothing but noise to see."""
        label = torch.randint(CLASSES, (BATCH,), generator=random)
        x = torch.randn(BATCH, *self.items.shape[1:], generator=random)
        hide = torch.rand(BATCH, generator=random) < hidden
        answered = network(x, torch.full((BATCH,), 999.0), label.masked_fill(hide, CLASSES))
        error: Tensor = (answered - self.patterns[label]).square().mean()
        return error


Loss = Callable[[nn.Module, torch.Generator], Tensor]


def train(network: nn.Module, loss: Loss, enough: float) -> list[float]:
    """Train until the loss is `enough`, or for so many steps; the losses, for the same noise, before and on the way."""
    optimizer = torch.optim.Adam(network.parameters(), lr=RATE)
    random, losses = generator(0, "train"), [mean_of(network, loss)]
    for step in range(1, STEPS + 1):
        network.train()
        optimizer.zero_grad()
        loss(network, random).backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        if step % LOOK_EVERY == 0:
            losses.append(mean_of(network, loss))
            if losses[-1] <= enough:
                break
    network.eval()
    return losses


@torch.no_grad()
def mean_of(network: nn.Module, loss: Loss) -> float:
    network.eval()
    return float(torch.stack([loss(network, generator(i, "held")) for i in range(16)]).mean())
