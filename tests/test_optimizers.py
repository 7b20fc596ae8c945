"""Optimizers against torch's own, and those of strangers: groups, masks, exact resume, and what is refused."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import POINTS, Run
from torch import Tensor, nn

from difftool import FusedAdam, Optimizer, UsageError, component, hookimpl, option
from difftool.components import Component
from difftool.errors import DifftoolError
from difftool.runs import checkpoint
from difftool.testing import PluginManager
from difftool.testing.examine import examine
from difftool.training import vectors
from difftool.training.ema import Average, warming_decay
from difftool.training.optimizer import Updater
from difftool_plugins.optimizers import updates


class Net(nn.Module):
    """Matrices, a convolution, norms, biases and a scalar."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.norm = nn.GroupNorm(2, 4)
        self.linear = nn.Linear(4, 6)
        self.embedding = nn.Embedding(3, 6)
        self.gain = nn.Parameter(torch.tensor(1.5))
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, x: Tensor) -> Tensor:
        h = self.linear(torch.tanh(self.norm(self.conv(x))).mean((2, 3)))
        answer: Tensor = self.gain * h + self.embedding(torch.arange(len(x)) % 3)
        return answer


def losses(network: nn.Module) -> Iterator[Tensor]:
    random = torch.Generator().manual_seed(0)
    while True:
        x = torch.randn(8, 3, 4, 4, generator=random)
        yield network(x).sub(x.mean((1, 2, 3))[:, None]).square().mean()


def updater(optimizer: Component, network: nn.Module, lr: float = 0.01, **how: Any) -> Updater:
    assert isinstance(optimizer, Optimizer)
    return Updater(optimizer, network.named_parameters(), lr, **how)


def train(driver: Updater, network: nn.Module, steps: int = 12, *, lr: float = 0.01, loss: Any = None) -> None:
    """Train with a learning rate that falls."""
    for step, one in zip(range(steps), loss or losses(network), strict=False):
        driver.clear_gradients()
        one.backward()
        driver.update(lr / (1 + step), driver.gradient_norm() < math.inf)


def assert_equal_weights(a: nn.Module, b: nn.Module, *, rtol: float = 1e-5, atol: float = 1e-6) -> None:
    for (name, left), right in zip(a.named_parameters(), b.parameters(), strict=True):
        torch.testing.assert_close(left, right, rtol=rtol, atol=atol, msg=lambda text, name=name: f"{name}: {text}")


def decayed(network: nn.Module, decay: float) -> list[dict[str, Any]]:
    """The groups that everybody writes: decay of matrices alone."""
    parameters = [*network.parameters()]
    return [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]


# --- the built-in ones against torch's -------------------------------------------------------------------------------

Theirs = Callable[[nn.Module], "torch.optim.Optimizer | Sequence[torch.optim.Optimizer]"]
OURS_AND_THEIRS: dict[str, tuple[str, dict[str, Any], Theirs]] = {
    "adam": ("adam", {"betas": [0.9, 0.99]}, lambda n: torch.optim.Adam(n.parameters(), betas=(0.9, 0.99))),
    "adam, L2": ("adam", {"weight_decay": 0.1, "eps": 1e-6}, lambda n: torch.optim.Adam(decayed(n, 0.1), eps=1e-6)),
    "adamw": ("adamw", {"weight_decay": 0.1}, lambda n: torch.optim.AdamW(decayed(n, 0.1))),
    "adamw, all": (
        "adamw",
        {"weight_decay": 0.1, "decay_all": True},
        lambda n: torch.optim.AdamW(n.parameters(), weight_decay=0.1),
    ),
    "sgd": ("sgd", {"momentum": 0.0}, lambda n: torch.optim.SGD(n.parameters())),
    "sgd, momentum": ("sgd", {}, lambda n: torch.optim.SGD(n.parameters(), momentum=0.9)),
    "sgd, nesterov": (
        "sgd",
        {"nesterov": True, "weight_decay": 0.1},
        lambda n: torch.optim.SGD(decayed(n, 0.1), momentum=0.9, nesterov=True),
    ),
}


@pytest.mark.parametrize("what", OURS_AND_THEIRS)
@pytest.mark.parametrize("form", ["joined", "apart"])
def test_it_is_that_of_torch(what: str, form: str) -> None:
    name, options, make = OURS_AND_THEIRS[what]
    ours, theirs = Net(), Net()
    driver, optimizer = updater(component("optimizer", name, **options), ours, joined=form == "joined"), make(theirs)
    assert isinstance(optimizer, torch.optim.Optimizer)
    assert all(piece.is_vector for piece in driver.pieces) == (form == "joined")
    train(driver, ours)
    for step, loss in zip(range(12), losses(theirs), strict=False):
        optimizer.zero_grad()
        loss.backward()
        for group in optimizer.param_groups:
            group["lr"] = 0.01 / (1 + step)
        optimizer.step()
    assert_equal_weights(ours, theirs)
    assert not torch.equal(ours.conv.weight, Net().conv.weight)


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="this torch has no Muon")
@pytest.mark.parametrize(("scale", "adjust"), [("rms", "match_rms_adamw"), ("shape", "original")])
@pytest.mark.parametrize("nesterov", [True, False])
def test_muon_is_that_of_torch(scale: str, adjust: str, nesterov: bool) -> None:
    torch.manual_seed(0)
    shapes = ((8, 6), (6, 8), (5, 5))
    ours = [nn.Parameter(torch.randn(shape)) for shape in shapes]
    theirs = [nn.Parameter(p.detach().clone()) for p in ours]
    chosen = component("optimizer", "muon", scale=scale, nesterov=nesterov, weight_decay=0.1)
    driver = Updater(chosen, [(f"w{i}", p) for i, p in enumerate(ours)], 0.01)  # type: ignore[arg-type]
    optimizer = torch.optim.Muon(theirs, lr=0.01, nesterov=nesterov, weight_decay=0.1, adjust_lr_fn=adjust)
    for _ in range(8):
        driver.clear_gradients()
        for a, b in zip(ours, theirs, strict=True):
            a.grad = torch.randn_like(a)
            b.grad = a.grad.clone()
        driver.update(0.01, torch.tensor(True))
        optimizer.step()
        for a, b in zip(ours, theirs, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("shape", [(8, 6), (6, 8)], ids=["tall", "wide"])
def test_muon_moves_matrices_of_one_shape_as_it_moves_each(
    shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(updates, "LARGEST_STACK", 2 * math.prod(shape))  # two of the five, two, and one
    monkeypatch.setattr(updates, "multiplies_bfloat16", lambda _: False)
    torch.manual_seed(0)
    together = [nn.Parameter(torch.randn(shape)) for _ in range(5)]
    alone = [nn.Parameter(weight.detach().clone()) for weight in together]
    muon: Any = component("optimizer", "muon")
    groups = [{"params": weights, "weight_decay": 0.1, "muon": True} for weights in (together, *([w] for w in alone))]
    optimizers = [optimizer for group in groups for optimizer in muon.build([group], 0.01)]
    for _ in range(3):
        for a, b in zip(together, alone, strict=True):
            a.grad = torch.randn(shape)
            b.grad = a.grad.clone()
        for optimizer in optimizers:
            optimizer.step()
    for a, b in zip(together, alone, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("options", [{"momentum": 0.9, "nesterov": True}, {"momentum": 0.0}])
@pytest.mark.parametrize("name", ["sgd", "muon"])
def test_a_masked_step_changes_nothing(name: str, options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    weights = [nn.Parameter(torch.randn(4, 3)) for _ in range(3)]
    chosen: Any = component("optimizer", name, **options)
    built = chosen.build(chosen.groups([(str(i), weight) for i, weight in enumerate(weights)]), 0.1)
    (optimizer,) = built if isinstance(built, list) else [built]
    tensors = [*weights, *(tensor for entry in optimizer.state.values() for tensor in entry.values())]
    assert len(tensors) == (6 if options["momentum"] else 3)
    for mask, value in ((0.0, 1.0), (1.0, math.nan)):
        before = [tensor.detach().clone() for tensor in tensors]
        for weight in weights:
            weight.grad = torch.full_like(weight, value)
        optimizer.found_inf = torch.tensor(mask)
        optimizer.step()
        assert [torch.equal(a, b) for a, b in zip(tensors, before, strict=True)] == [mask == 1.0] * len(tensors)


def test_muon_makes_matrices_orthogonal_and_leaves_the_rest_to_adamw() -> None:
    network = Net()
    before = {name: p.detach().clone() for name, p in network.named_parameters()}
    driver = updater(component("optimizer", "muon", scale="shape", adamw="embed", adamw_lr=0.5), network)
    muon, adamw = driver.optimizers
    assert {id(p) for g in muon.param_groups for p in g["params"]} == {
        id(network.conv.weight),
        id(network.linear.weight),
    }
    assert isinstance(adamw, FusedAdam)
    train(driver, network, 1)
    moved = (network.linear.weight.detach() - before["linear.weight"]) / (0.01 * math.sqrt(6 / 4))
    assert torch.linalg.svdvals(moved).sub(1).abs().max() < 0.35
    conv = (network.conv.weight.detach() - before["conv.weight"]).flatten(1) / 0.01
    assert torch.linalg.svdvals(conv).sub(1).abs().max() < 0.35
    gain = float((network.gain.detach() - before["gain"]).abs())
    assert gain == pytest.approx(0.005, rel=1e-3)  # the first step of Adam, at half of the rate


def test_groups_of_a_decay_are_matrices_and_the_rest() -> None:
    network = Net()
    groups = component("optimizer", "adamw").groups([*network.named_parameters()])  # type: ignore[attr-defined]
    assert [group["weight_decay"] for group in groups] == [0.01, 0.0]
    assert {p.ndim for p in groups[0]["params"]} == {2, 4}
    assert {p.ndim for p in groups[1]["params"]} == {0, 1}
    assert len(component("optimizer", "adam").groups([*network.named_parameters()])) == 1  # type: ignore[attr-defined]


def averaged(network: nn.Module) -> Average:
    return Average(network, "ema", partial(warming_decay, cap=0.5))


def test_the_average_follows_several_vectors() -> None:
    network, plain = Net(), Net()
    driver = updater(component("optimizer", "adamw"), network)
    average, expected = averaged(network), averaged(plain)
    assert len(average._live) == 2
    train(driver, network, 1)
    plain.load_state_dict(network.state_dict())
    for step in range(1, 4):
        with torch.no_grad():
            for p, q in zip(network.parameters(), plain.parameters(), strict=True):
                p.add_(1.0)
                q.add_(1.0)
        average.update(step)
        expected.update(step)
    assert_equal_weights(average.network, expected.network)


def test_frozen_weights_have_no_state_and_stay() -> None:
    network = Net()
    network.linear.requires_grad_(False)
    before = network.linear.weight.detach().clone()
    driver = updater(component("optimizer", "adamw", weight_decay=1.0), network)
    average = averaged(network)
    train(driver, network, 3)
    average.update(1)
    assert torch.equal(network.linear.weight, before)
    assert torch.equal(average.network.get_parameter("linear.weight"), before)
    assert torch.equal(average.network.get_parameter("conv.weight"), network.conv.weight)
    assert not any(name.startswith("linear") for name in driver.weights)


# --- strangers' ------------------------------------------------------------------------------------------------------


class RMSProp(Optimizer, name="rmsprop"):
    """RMSprop, whose state torch makes in its first step."""

    elementwise = True

    def build(self, groups: list[dict[str, Any]], lr: float) -> torch.optim.Optimizer:
        return torch.optim.RMSprop(groups, lr, momentum=0.5)


class NAdam(Optimizer, name="nadam"):
    """NAdam, which keeps a product in its state."""

    def build(self, groups: list[dict[str, Any]], lr: float) -> torch.optim.Optimizer:
        return torch.optim.NAdam(groups, lr)


class Sum(torch.optim.Optimizer):
    """An optimizer of the schedule-free kind: numbers in its groups, and a number and a tensor in its state."""

    def __init__(self, groups: Any, lr: float) -> None:
        super().__init__(groups, {"lr": lr, "k": 0, "weight_sum": 0.0, "lr_max": -math.inf, "pair": (1, 2.0)})

    @torch.no_grad()
    def step(self, closure: object = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            group["lr_max"] = max(group["lr_max"], group["lr"])
            group["weight_sum"] += group["lr_max"] ** 2
            group["k"] += 1
            group["pair"] = (group["k"], 2.0)
            for p in group["params"]:
                if p.grad is not None:
                    state = self.state[p]
                    state.setdefault("z", p.clone())
                    state["count"] = state.get("count", 0) + 1
                    state["z"].sub_(p.grad, alpha=group["lr"])
                    share = group["lr_max"] ** 2 / group["weight_sum"] / math.sqrt(state["count"])
                    p.lerp_(state["z"], share)


class Averaging(Optimizer, name="averaging"):
    """Keeps numbers in its groups."""

    def build(self, groups: list[dict[str, Any]], lr: float) -> torch.optim.Optimizer:
        return Sum(groups, lr)


class Fused(Optimizer, name="fused"):
    """torch's fused SGD, whose momentum has no value if its first step is masked."""

    def build(self, groups: list[dict[str, Any]], lr: float) -> torch.optim.Optimizer:
        return torch.optim.SGD(groups, lr, momentum=0.9, fused=True)


class Falling(Optimizer, name="falling"):
    """Sets its own rate."""

    elementwise = True

    def build(self, groups: list[dict[str, Any]], lr: float) -> FusedAdam:
        return FusedAdam(groups, lr)

    def factor(self, step: int, steps: int) -> float:
        return 1 / (1 + step)


STRANGERS = (RMSProp, NAdam, Averaging, Fused, Falling)


@pytest.mark.parametrize("stranger", STRANGERS)
def test_a_strangers_optimizer_passes_the_laws(stranger: type[Optimizer]) -> None:
    failed = [finding for finding in examine(stranger()) if finding.failed]
    assert [finding.law for finding in failed] == ["imports nothing heavy"]  # of this file


@pytest.mark.parametrize(("stranger", "joined"), [(RMSProp, True), (RMSProp, False), (NAdam, False), (Fused, False)])
def test_a_strangers_optimizer_is_called_as_torch_would(stranger: type[Optimizer], joined: bool) -> None:
    ours, theirs = Net(), Net()
    driver = updater(stranger(), ours, joined=joined)
    optimizer: Any = stranger().build([{"params": [*theirs.parameters()]}], 0.01)
    train(driver, ours)
    for step, loss in zip(range(12), losses(theirs), strict=False):
        optimizer.zero_grad()
        loss.backward()
        optimizer.param_groups[0]["lr"] = 0.01 / (1 + step)
        optimizer.step()
    assert_equal_weights(ours, theirs)


@pytest.mark.parametrize("first", [4, 2**18])
def test_the_state_fits_however_weights_are_joined(first: int, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = []
    for later in (first, 4 + 2**18 - first):
        network, seen = Net(), None
        monkeypatch.setattr(vectors, "SMALL", first)
        driver = updater(RMSProp(), network)
        seen = losses(network)
        train(driver, network, 5, loss=seen)
        monkeypatch.setattr(vectors, "SMALL", later)
        other = Net()
        resumed = updater(RMSProp(), other)
        resumed.make_state()
        other.load_state_dict(network.state_dict())
        resumed.load({k: v.clone() for k, v in driver.tensors().items()}, driver.document())
        train(resumed, other, 5)
        kept.append(other)
    assert_equal_weights(*kept)


def test_a_learning_rate_has_a_factor_for_each_group() -> None:
    class Scaled(Optimizer, name="scaled"):
        def groups(self, parameters: Sequence[tuple[str, nn.Parameter]]) -> list[dict[str, Any]]:
            return [{"params": [p], "lr_scale": 0.5 * i} for i, (_, p) in enumerate(parameters)]

        def build(self, groups: list[dict[str, Any]], lr: float) -> torch.optim.Optimizer:
            return torch.optim.SGD(groups, lr)

    network = Net()
    driver = updater(Scaled(), network)
    before = [p.detach().clone() for p in network.parameters()]
    driver.clear_gradients()
    for p in network.parameters():
        p.grad = torch.ones_like(p)
    driver.update(0.25, torch.tensor(True))
    for i, (old, new) in enumerate(zip(before, network.parameters(), strict=True)):
        torch.testing.assert_close(old - new, torch.full_like(old, 0.125 * i))


@pytest.mark.parametrize("name", ["adam", "adamw", "sgd", "muon"])
def test_a_built_in_waits_for_no_number(name: str) -> None:
    """The mask is read on the device: a step on the meta device, which has no numbers, succeeds."""
    with torch.device("meta"):
        weights = [("w", nn.Parameter(torch.empty(4, 3))), ("b", nn.Parameter(torch.empty(4)))]
    driver = Updater(component("optimizer", name), weights, 0.1)  # type: ignore[arg-type]
    for _, weight in weights:
        weight.grad = torch.empty_like(weight) if weight.grad is None else weight.grad
    driver.update(0.1, driver.gradient_norm() < math.inf)
    assert all(driver.maskable)


# --- runs ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def strangers(plugin_manager: PluginManager) -> None:
    plugin = SimpleNamespace(__name__="theirs", difftool_optimizers=hookimpl(lambda: [*STRANGERS, *REFUSED]))
    assert not plugin_manager.register(plugin).problems


RESUMED: dict[str, tuple[object, ...]] = {
    "adamw": ("--optimizer.weight-decay", 0.1),
    "sgd": ("--optimizer.nesterov",),
    "muon": ("--lr", 0.01),
    "rmsprop": (),
    "nadam": (),
    "averaging": (),
    "fused": (),
    "falling": ("--ema", 0),
}


@pytest.mark.usefixtures("strangers")
@pytest.mark.parametrize("name", RESUMED)
def test_a_resumed_run_is_that_which_was_never_interrupted(run: Run, name: str) -> None:
    chosen = ("train", *POINTS, "--optimizer", name, *RESUMED[name], "--threads", 1)
    assert run(*chosen, "--steps", 7, "--out", "straight").code == 0
    assert run(*chosen, "--steps", 3, "--out", "broken").code == 0
    for steps in (4, 7):
        assert run("train", "--resume", "broken", "--steps", steps).code == 0
    states = [Path(folder) / "state" / "step-000000007.safetensors" for folder in ("straight", "broken")]
    (one, _), (other, document) = map(checkpoint.load, states)
    assert one.keys() == other.keys()
    assert all(torch.equal(one[key], other[key]) for key in one)
    documents = [checkpoint.load(state)[1]["optimizer_state"] for state in states]
    assert json.dumps(documents[0]) == json.dumps(documents[1])
    assert document["optimizer"]["name"].endswith(name)


def test_the_acceptance_line_runs(run: Run) -> None:
    chosen = ("--optimizer", "adamw", "--optimizer.weight-decay", 0.01, "--lr-schedule", "linear")
    assert run("train", *POINTS, "--dataset", "two-moons", *chosen, "--steps", 5).code == 0


def test_a_state_whose_numbers_do_not_fit_is_refused(run: Run, points_run: Path, tmp_path: Path) -> None:
    import shutil

    from conftest import write_signed

    changes: list[Callable[[dict[str, Any]], object]] = [
        lambda d: d.pop("optimizer_state"),
        lambda d: d.update(optimizer_state=3),
        lambda d: d["optimizer_state"].update(groups=[]),
        lambda d: d["optimizer_state"]["groups"][0].pop("eps"),
        lambda d: d["optimizer_state"]["groups"][0].update(eps={"a": 1}),
        lambda d: d["optimizer_state"].update(weights=[]),
        lambda d: d["optimizer_state"].update(weights={"0": {"step": 3}}),
    ]
    for i, change in enumerate(changes):
        folder = tmp_path / f"run-{i}"
        shutil.copytree(points_run, folder)
        (path,) = (folder / "state").glob("*30.safetensors")
        tensors, document = checkpoint.load(path)
        change(document)
        for other in (folder / "state").iterdir():
            other.unlink()
        write_signed(path, tensors, json.dumps(document))
        outcome = run("train", "--resume", folder, "--steps", 31)
        assert outcome.code == 1
        assert "the numbers of its optimizer do not fit" in outcome.err


class Lists(torch.optim.SGD):
    def step(self, closure: object = None) -> None:  # type: ignore[override]
        super().step()
        for group in self.param_groups:
            for p in group["params"]:
                self.state[p]["history"] = [p.grad]


class Counting(torch.optim.SGD):
    count = 0

    def step(self, closure: object = None) -> None:  # type: ignore[override]
        self.count += 1
        super().step()


class Closing(Optimizer, name="closing"):
    """Needs a closure."""

    def build(self, groups: list[dict[str, Any]], lr: float) -> torch.optim.Optimizer:
        return torch.optim.LBFGS(groups, lr)


class Listing(Optimizer, name="listing"):
    """Keeps a list."""

    def build(self, groups: list[dict[str, Any]], lr: float) -> torch.optim.Optimizer:
        return Lists(groups, lr)


class Hidden(Optimizer, name="hidden"):
    """Counts where nobody looks."""

    def build(self, groups: list[dict[str, Any]], lr: float) -> torch.optim.Optimizer:
        return Counting(groups, lr)


class Wrapper:
    """An optimizer around another one, whose state nobody sees."""

    def __init__(self, inner: torch.optim.Optimizer) -> None:
        self.inner, self.param_groups = inner, inner.param_groups
        self.state: dict[Tensor, dict[str, Any]] = {}

    def step(self) -> None:
        self.inner.step()


class Wrapped(Optimizer, name="wrapped"):
    """Keeps its momentum where nobody looks."""

    def build(self, groups: list[dict[str, Any]], lr: float) -> Any:
        return Wrapper(torch.optim.SGD(groups, lr, momentum=0.9))


class Forgetful(Optimizer, name="forgetful"):
    """Leaves parameters out."""

    def groups(self, parameters: Sequence[tuple[str, nn.Parameter]]) -> list[dict[str, Any]]:
        return [{"params": [p for _, p in parameters][1:]}]

    def build(self, groups: list[dict[str, Any]], lr: float) -> torch.optim.Optimizer:
        return torch.optim.SGD(groups, lr)


class Nothing(Optimizer, name="nothing"):
    """Builds nothing."""

    def build(self, groups: list[dict[str, Any]], lr: float) -> Any:
        return None


class Half(Optimizer, name="half"):
    """Builds an optimizer of some groups."""

    def build(self, groups: list[dict[str, Any]], lr: float) -> torch.optim.Optimizer:
        return torch.optim.SGD([groups[0]["params"][0]], lr)


class Endless(Optimizer, name="endless"):
    """Has a factor that is no number."""

    def build(self, groups: list[dict[str, Any]], lr: float) -> torch.optim.Optimizer:
        return torch.optim.SGD(groups, lr)

    def factor(self, step: int, steps: int) -> float:
        return math.nan


class Late(torch.optim.SGD):
    """Fails when the weights are those of the network, and not the small copies."""

    def step(self, closure: object = None) -> None:  # type: ignore[override]
        if max(p.numel() for g in self.param_groups for p in g["params"]) > 16:
            raise KeyError("momentum")


class Failing(Optimizer, name="failing"):
    """Fails in its first step."""

    wanted: bool = option(default=True, help="an option")

    def build(self, groups: list[dict[str, Any]], lr: float) -> torch.optim.Optimizer:
        return Late(groups, lr)


REFUSED = (Closing, Listing, Hidden, Wrapped, Forgetful, Nothing, Half, Endless, Failing)
MESSAGES = {
    "closing": "optimizer closing failed: TypeError: LBFGS.step() missing 1 required positional argument: 'closure'",
    "listing": "optimizer listing: Lists keeps 'history', a list, in its state; difftool saves only tensors",
    "hidden": "optimizer hidden: Counting.count changes from step to step and would not be saved; keep it in the state",
    "wrapped": "optimizer wrapped: it does not resume exactly: ",
    "forgetful": "optimizer forgetful: groups() must return each parameter once, not ",
    "nothing": "optimizer nothing: build() returned a NoneType, not an optimizer",
    "half": "optimizer half: the optimizers that build() returned must hold each parameter of the groups exactly once",
    "endless": "optimizer endless: factor() must return a number that is not negative, or None, not nan",
    "failing": "optimizer failing failed: KeyError: 'momentum'",
}


@pytest.mark.usefixtures("strangers")
@pytest.mark.parametrize("name", MESSAGES)
def test_what_cannot_be_resumed_is_refused_before_the_first_step(run: Run, name: str) -> None:
    outcome = run("train", *POINTS, "--steps", 3, "--optimizer", name, "--out", "run")
    assert outcome.code in (1, 2)
    assert MESSAGES[name] in outcome.err
    assert "Traceback" not in outcome.err
    assert name == "failing" or not Path("run").exists()


@pytest.mark.usefixtures("strangers")
def test_an_optimizer_with_its_own_rate_takes_no_schedule(run: Run) -> None:
    for words in (("--lr-schedule", "linear"), ("--warmup", 7)):
        outcome = run("train", *POINTS, "--steps", 3, "--optimizer", "falling", *words)
        assert outcome.code == 2
        assert f"{words[0]}: optimizer falling sets the course of the learning rate itself" in outcome.err
    assert run("train", *POINTS, "--steps", 3, "--optimizer", "falling", "--lr", 0.5, "--out", "run").code == 0
    rows = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    assert [row["lr"] for row in rows] == pytest.approx([0.5, 0.25, 0.5 / 3])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--optimizer", "sgd", "--optimizer.nesterov", "--optimizer.momentum", 0), "nesterov: needs momentum"),
        (("--optimizer", "muon", "--optimizer.adamw", "("), "--optimizer.adamw: not a regular expression"),
        (("--optimizer.betas", "0.9"), "--optimizer.betas"),
        (("--optimizer.betas", "0.9,1"), "--optimizer.betas"),
        (("--lr-decay-steps", 10), "--lr-decay-steps: belongs to --lr-schedule inverse-sqrt"),
        (
            ("--lr-schedule", "inverse-sqrt", "--warmup", 0),
            "--lr-schedule: inverse-sqrt needs the step from which it falls; add --lr-decay-steps N",
        ),
    ],
)
def test_options_that_do_not_fit_are_refused(run: Run, words: tuple[object, ...], message: str) -> None:
    outcome = run("train", *POINTS, "--steps", 3, *words)
    assert outcome.code == 2
    assert message in outcome.err


def test_groups_with_a_wrong_scale_or_a_foreign_tensor_are_refused() -> None:
    class Wrong(Forgetful, name="wrong"):
        scale: float = option(default=1.0, help="")

        def groups(self, parameters: Sequence[tuple[str, nn.Parameter]]) -> list[dict[str, Any]]:
            extra = [nn.Parameter(torch.ones(2))] if self.scale == 1.0 else []
            return [{"params": [*(p for _, p in parameters), *extra], "lr_scale": self.scale}]

    with pytest.raises(UsageError, match="a tensor that is not among the parameters"):
        updater(Wrong(), Net())
    with pytest.raises(DifftoolError, match="lr_scale of a group must be a number that is not negative, not -1"):
        updater(replace(Wrong(), scale=-1.0), Net())
