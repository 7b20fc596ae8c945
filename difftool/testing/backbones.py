"""Laws of backbones, asked with items of one shape: a network is trained on a problem that it can learn by heart."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import combinations
from pathlib import Path

import torch
from torch import Tensor, nn

from difftool.components import Backbone
from difftool.rng import generator
from difftool.runs import checkpoint
from difftool.specs import BackboneSpec
from difftool.testing.examine import describe
from difftool.testing.known import TABLES
from difftool.testing.laws import Broken, NotAsked, accelerators

SHAPES: Sequence[tuple[int, ...]] = (
    *((2,), (3, 8, 8), (3, 16, 16), (3, 32, 32), (1, 8, 8), (1, 16, 16), (1, 28, 28), (1, 32, 32)),
    *((4, 32, 32), (3, 64, 64), (3, 128, 128)),
)
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
    classes: int | None = CLASSES
    """None where it refuses labels."""

    @property
    def spec(self) -> BackboneSpec:
        return BackboneSpec(shape=self.shape, out_channels=self.shape[0], classes=self.classes)

    def build(self, spec: BackboneSpec | None = None, seed: int = 0) -> nn.Module:
        torch.manual_seed(seed)
        network = self.backbone.build(spec or self.spec)
        if not isinstance(network, nn.Module):
            raise Broken(f"build() gave a {type(network).__name__}, not a module")
        return network

    @cached_property
    def problem(self) -> Problem:
        return Problem.of(self.shape, self.classes)

    @cached_property
    def trained(self) -> tuple[nn.Module, list[float]]:
        """The network after training, and its loss before, on the way and in the end."""
        network = self.build()
        return network, train(network, self.problem.of_noise, LEARNT)

    def ask(self, x: Tensor, t: float | Tensor = 300.0) -> Tensor:
        """What the trained network says, of items of all classes and of none."""
        return ask(self.trained[0], x, t, self.labels(len(x)))

    def labels(self, count: int) -> Tensor | None:
        """All classes in turn, and "no class"."""
        return None if self.classes is None else torch.arange(count) % (self.classes + 1)

    def steady(self, x: Tensor) -> Tensor:
        """The same, where it says the same when asked again. Raises `NotAsked`."""
        first = self.ask(x)
        if not torch.equal(first, self.ask(x)):
            raise NotAsked("its answers differ from one time to the next")
        return first


def subject(backbone: Backbone, *, shape: tuple[int, ...] | None = None) -> Case:
    """The case of the first shape that it builds for and answers, or else builds for. Raises `Broken`."""
    built: list[Case] = []
    reasons: dict[str, str] = {}
    for one in SHAPES if shape is None else (shape,):
        try:
            case = case_of(backbone, one)
        except Exception as error:
            reasons["x".join(map(str, one))] = str(error) if isinstance(error, ValueError) else describe(error)
            continue
        built.append(case)
        try:
            ask(case.build(), noise_like(case.spec, 2), 500.0, case.labels(2))
        except Exception:
            continue
        return case
    if built:  # it answers none; the laws say why
        return built[0]
    tried = "; ".join(f"{size}: {why}" for size, why in reasons.items())
    advice = "" if shape is not None else "; name what it does take by --shape, or check_backbone(..., shape=...)"
    raise Broken(f"it takes none of the items tried ({tried}){advice}")


def case_of(backbone: Backbone, shape: tuple[int, ...]) -> Case:
    """With labels, or without where it refuses these alone. Raises `ValueError` where it does not take the shape."""
    case = Case(backbone, shape)
    try:
        case.build()
    except ValueError:
        case = Case(backbone, shape, classes=None)
        case.build()
    return case


def answers_in_the_right_shape(case: Case) -> str:
    """net(x, t, cond) is shaped as x, float32, for one item and for five, of each class and of none (index `classes`);
    without classes; with twice the channels where the variance is learned, and taking as many where it declares
    self-conditioning. x itself is left as it is. Labels and a learned variance may be refused, by ValueError."""
    specs = {
        "plain": replace(case.spec, classes=None),
        "classes": case.spec,
        "learned variance": replace(case.spec, out_channels=2 * case.shape[0]),
    }
    if case.classes is None:
        del specs["classes"]
    if case.backbone.self_conditioning:
        specs["self-conditioning"] = replace(case.spec, self_condition=True)
    taken, refused = [], [] if case.classes else ["classes"]
    for name, spec in specs.items():
        try:
            network = case.build(spec)
        except ValueError as error:
            if name != "learned variance":
                raise
            refused.append(f"{name} ({error})")
            continue
        taken.append(name)
        for count in (1, 5):
            check_answer(network, spec, count, name)
    return f"{'x'.join(map(str, case.shape))}: {', '.join(taken)}{'; refuses ' if refused else ''}{', '.join(refused)}"


def check_answer(network: nn.Module, spec: BackboneSpec, count: int, name: str) -> None:
    """Ask about items of every class and of none, each at a time of its own. Raises `Broken`."""
    x = noise_like(spec, count)
    before, t = x.clone(), torch.linspace(0.0, 999.0, count)
    for label in (None,) if spec.classes is None else range(spec.classes + 1):
        which = "" if label is None else f", {'no class' if label == spec.classes else f'class {label}'} (cond {label})"
        try:
            found = ask(network, x, t, None if label is None else torch.full((count,), label))
        except Exception as error:
            raise Broken(f"{name}, {count} items{which}: {describe(error)}") from None
        due = (count, spec.out_channels, *spec.shape[1:])
        if tuple(found.shape) != due or found.dtype != torch.float32:
            raise Broken(f"{name}: it answered {tuple(found.shape)} {found.dtype}, not {due} torch.float32")
        if not torch.equal(x, before):
            raise Broken(f"{name}: it changes x in place; make new tensors")


def refuses_what_it_cannot_take(case: Case) -> str:
    """Items of odd shapes are taken, or refused by `build` with a ValueError: users learn it before they train."""
    taken, refused = [], []
    for shape in ODD:
        size, spec = "x".join(map(str, shape)), BackboneSpec(shape=shape, out_channels=shape[0])
        try:
            network = case.build(spec)
        except ValueError:
            refused.append(size)
            continue
        except Exception as error:
            raise Broken(f"build() for items of {size} {describe(error)}; refuse them with ValueError") from None
        try:
            ask(network, noise_like(spec, 2), 500.0, None)
        except Exception as error:
            raise Broken(f"build() took items of {size}, which it cannot answer: {describe(error)}") from None
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


def uses_every_weight(case: Case) -> str:
    """Each weight gets a gradient in a step; what gets none is not trained, and stops training on several devices."""
    network = case.build()
    network.train()
    case.problem.of_noise(network, generator(0, "law")).backward()  # type: ignore[no-untyped-call]
    if idle := [name for name, p in network.named_parameters() if p.requires_grad and p.grad is None]:
        raise Broken(f"no gradient reaches {', '.join(idle[:3])}{f' and {len(idle) - 3} more' if idle[3:] else ''}")
    return f"{sum(1 for _ in network.parameters())} tensors"


def learns(case: Case) -> str:
    """Trained on eight items for at most 800 steps of Adam, its error in eps falls to 0.6 of that of saying nothing."""
    _, losses = case.trained
    rows = f"loss {losses[0]:.2f}, after {LOOK_EVERY * (len(losses) - 1)} steps {losses[-1]:.2f}"
    if not losses[-1] <= LEARNT:
        raise Broken(f"{rows}; at most {LEARNT} was due")
    return f"{rows}, of {LEARNT} at most"


def takes_a_label(case: Case) -> str:
    """Shown nothing but noise, it learns in at most 800 steps to answer the pattern of the class that it is told: its
    error is then half of that without a label, for each class, and no two labels, nor none, are answered alike."""
    if case.classes is None:
        raise NotAsked("it refuses labels")
    network, problem = case.build(), case.problem
    train(network, problem.of_pattern, enough=0.3 * float(problem.patterns.var(0, correction=0).mean()))
    untold = mean_of(network, partial(problem.of_pattern, hidden=1.0))
    rows = [mean_of(network, partial(problem.of_pattern, hidden=0.0, only=label)) for label in range(case.classes)]
    if not max(rows) <= LABELLED * untold:
        worst = max(range(case.classes), key=rows.__getitem__)
        due = f"{untold:.3f} without; {LABELLED * untold:.3f} was due"
        raise Broken(f"error {rows[worst]:.3f} with the label of class {worst}, {due}")
    x = noise_like(case.spec, 1)
    answers = [ask(network, x, 999.0, torch.tensor([label])) for label in range(case.classes + 1)]
    for a, b in combinations(range(len(answers)), 2):
        if not float((answers[a] - answers[b]).abs().max()) > 1e-3 * float(answers[a].abs().max()):
            raise Broken(f"class {a} and {'no class' if b == case.classes else f'class {b}'} are answered alike")
    return f"error {max(rows):.3f} with the label, {untold:.3f} without"


def sees_the_time(case: Case) -> str:
    """After training, its answer to one and the same input depends on t."""
    x = noise_like(case.spec, 4)
    early, late = case.ask(x, 20.0), case.ask(x, 900.0)
    gap, size = float((early - late).abs().max()), float(late.abs().max())
    if not gap > 1e-3 * size:
        raise Broken(f"its answers at t = 20 and 900 are {gap:.2g} apart, of {size:.2g}")
    return f"answers at t = 20 and 900 are {gap:.2g} apart, of {size:.2g}"


def sees_its_last_estimate(case: Case) -> str:
    """Where it declares self-conditioning, what stands beside x_t changes its answer once it is trained with it."""
    if not case.backbone.self_conditioning:
        raise NotAsked("it declares no self-conditioning")
    network = case.build(replace(case.spec, self_condition=True))
    train(network, case.problem.of_noise_and_guess, LEARNT)
    x, guess = noise_like(case.spec, 4), torch.ones(4, *case.shape)
    shown, hidden = (ask(network, torch.cat([x, g], 1), 500.0, case.labels(4)) for g in (guess, 0 * guess))
    gap, size = float((shown - hidden).abs().max()), float(hidden.abs().max())
    if not gap > 1e-3 * size:
        raise Broken(f"with an estimate and without its answers are {gap:.2g} apart, of {size:.2g}")
    return f"{gap:.2g} apart with and without, of {size:.2g}"


def answers_each_item_for_itself(case: Case) -> str:
    """In evaluation, an answer depends on the item's own x, t and label, and not on what else is in the batch; asked
    again it is the same."""
    x, t, cond = noise_like(case.spec, 5), torch.linspace(10.0, 990.0, 5), case.labels(5)
    network = case.trained[0]
    together, again = ask(network, x, t, cond), ask(network, x, t, cond)
    if not torch.equal(together, again):
        raise Broken("asked twice in evaluation, it gives two answers")
    each = (slice(i, i + 1) for i in range(5))
    alone = torch.cat([ask(network, x[i], t[i], None if cond is None else cond[i]) for i in each])
    gap, size = float((together - alone).abs().max()), float(alone.abs().max())
    if not gap <= ALONE * max(size, 1e-6):
        raise Broken(f"alone and among others its answers are {gap:.2g} apart, of {size:.2g}; {ALONE:g} is rounding")
    return f"{gap:.1g} apart, of {size:.2g}"


def comes_back_from_a_file(case: Case) -> str:
    """Saved as safetensors and loaded into a network built anew, it answers the same to the last bit."""
    network, x = case.trained[0], noise_like(case.spec, 3)
    known = case.steady(x)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        checkpoint.save(path, network.state_dict(), {})
        tensors, _ = checkpoint.load(path)
    other = case.build(seed=9)
    if rows := checkpoint.differences(other.state_dict(), tensors):
        raise Broken(f"built anew it has other weights: {rows}")
    other.load_state_dict(tensors)
    if not torch.equal(known, ask(other, x, 300.0, case.labels(3))):
        raise Broken("loaded again it answers otherwise; what it needs must be parameters or buffers")
    return f"{sum(t.numel() * t.element_size() for t in tensors.values()) / 2**20:.2f} MiB"


def works_in_bf16(case: Case) -> str:
    """Under autocast to bf16 its answers are finite, and a tenth from those in float32 at most, on average."""
    x = noise_like(case.spec, 4)
    full = case.steady(x)
    with torch.autocast("cpu", torch.bfloat16):
        half = case.ask(x).float()
    gap, size = float((full - half).abs().mean()), float(full.abs().mean())
    if not gap <= 0.1 * size:
        raise Broken(f"in bf16 its answers are {gap:.2g} apart on average, of {size:.2g}")
    return f"{gap:.1g} apart on average, of {size:.2g}"


def works_on_every_device(case: Case) -> str:
    """On each accelerator that is here it answers what it answers on the CPU, to a hundredth."""
    others, x = accelerators(), noise_like(case.spec, 4)
    here, state = case.steady(x), case.trained[0].state_dict()
    for device in others:
        there = case.build().to(device)
        there.load_state_dict(state)
        cond = case.labels(4)
        answered = ask(there, x.to(device), 300.0, None if cond is None else cond.to(device))
        gap = float((answered.cpu() - here).abs().max())
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
    sees_its_last_estimate,
    answers_each_item_for_itself,
    comes_back_from_a_file,
    works_in_bf16,
    works_on_every_device,
)


def noise_like(spec: BackboneSpec, count: int) -> Tensor:
    """Inputs of a network of this spec (count, in_channels, ...)."""
    return torch.randn(count, spec.in_channels, *spec.shape[1:], generator=generator(0, "law"))


@torch.no_grad()
def ask(network: nn.Module, x: Tensor, t: float | Tensor, cond: Tensor | None) -> Tensor:
    """The answer in evaluation, at one time for all or at one for each item."""
    network.eval()
    found = network(x, torch.as_tensor(t, dtype=torch.float32, device=x.device).expand(len(x)), cond)
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
    classes: int | None

    @classmethod
    def of(cls, shape: tuple[int, ...], classes: int | None) -> Problem:
        random = generator(0, "law")
        # one number a channel, so that also a network with a small field of view sees which item it is
        patterns = torch.randn(CLASSES, shape[0], *(1,) * (len(shape) - 1), generator=random).expand(CLASSES, *shape)
        labels = torch.arange(8) % CLASSES
        items = patterns[labels] + 0.1 * torch.randn(8, *shape, generator=random)
        return cls(items, labels, patterns.contiguous(), classes)

    def of_noise(self, network: nn.Module, random: torch.Generator) -> Tensor:
        """The mean squared error in eps, over the levels of the linear table; one label in ten is hidden."""
        x_t, t, cond, eps, _ = self.batch(random)
        error: Tensor = (network(x_t, t, cond) - eps).square().mean()
        return error

    def of_noise_and_guess(self, network: nn.Module, random: torch.Generator) -> Tensor:
        """The same, with x_0 itself beside x_t in half of the items."""
        x_t, t, cond, eps, x_0 = self.batch(random)
        x_0[::2] = 0.0
        error: Tensor = (network(torch.cat([x_t, x_0], dim=1), t, cond) - eps).square().mean()
        return error

    def batch(self, random: torch.Generator) -> tuple[Tensor, Tensor, Tensor | None, Tensor, Tensor]:
        """(x_t, t, cond, eps, x_0)."""
        table = TABLES["linear"]
        chosen = torch.randint(len(self.items), (BATCH,), generator=random)
        t = torch.randint(len(table), (BATCH,), generator=random)
        hidden = torch.rand(BATCH, generator=random) < 0.1
        x_0 = self.items[chosen]
        eps = torch.randn(x_0.shape, generator=random)
        alpha, sigma = (values[t].float().view(-1, *(1,) * (x_0.ndim - 1)) for values in (table.alpha, table.sigma))
        cond = None if self.classes is None else self.labels[chosen].masked_fill(hidden, self.classes)
        return alpha * x_0 + sigma * eps, t.float(), cond, eps, x_0

    def of_pattern(
        self, network: nn.Module, random: torch.Generator, hidden: float = 0.3, only: int | None = None
    ) -> Tensor:
        """The mean squared error in the pattern of a class, asked for with its label and nothing but noise to see."""
        label = torch.randint(CLASSES, (BATCH,), generator=random) if only is None else torch.full((BATCH,), only)
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
