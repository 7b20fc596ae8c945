"""The compiled step against torch's own pace. The back end is plain torch: what is compiled is the same function."""

from __future__ import annotations

import contextlib
import math
import warnings
from typing import Any

import pytest
import torch
from paper_losses import TwoLevels
from test_training import Net, cloud, loop, new_state, objective, settings, state_dict
from torch import Tensor, nn

from difftool import Condition, DifftoolError, Loss, Predict, TrainingBatch, compiling
from difftool.training import vectors
from difftool.training.loop import check_finite
from difftool.training.state import TrainState
from difftool.training.step import make_step


class Plain(Net):
    """Without a buffer and a memory, neither of which a compiler can keep."""

    def __init__(self) -> None:
        super().__init__()
        del self.calls

    def forward(self, x: Tensor, t: Tensor, cond: Condition | None = None) -> Tensor:
        h = self.first(torch.cat([x, t[:, None] / 1000], dim=1))
        answer: Tensor = self.last(torch.tanh(h if cond is None else h + cond.class_index(3)[:, None]))
        return answer


class Detour(Plain):
    """Has to wait for a number."""

    def forward(self, x: Tensor, t: Tensor, cond: Condition | None = None) -> Tensor:
        return super().forward(x, t, cond) * (2.0 if float(x.sum()) > 0 else 1.0)


@pytest.fixture(autouse=True)
def _plain_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    compiler = torch.compile
    torch.compiler.reset()
    monkeypatch.setattr(torch, "compile", lambda what, **how: compiler(what, **{**how, "backend": "eager"}))


def trained(network: nn.Module, *, compiled: bool, steps: int = 25, classes: int | None = None, **chosen: Any) -> Any:
    about = {name: chosen.pop(name) for name in ("loss", "weighting") if name in chosen}
    about |= {"weighting": "min-snr"} if classes else {}
    of_state = {name: chosen.pop(name) for name in ("ema", "optimizer") if name in chosen}
    state, given = new_state(network, **of_state), settings(compile=compiled, **chosen)
    records = list(loop(state, cloud(labels=classes is not None), given, steps=steps, **about))
    check_finite(state, given)
    return state, records


@pytest.mark.skipif(torch.__version__.startswith("2.6."), reason="torch 2.6 compiles the network alone")
@pytest.mark.filterwarnings("error:the backward pass cannot be compiled as a whole")
@pytest.mark.parametrize(
    "chosen",
    [
        {},
        {"clip": 0.05},
        {"classes": 3},
        {"ema": 0.0},
        {"warmup": 5, "lr_schedule": "cosine"},
        {"loss": "l1"},
        {"loss": "huber", "weighting": "min-snr"},
        {"optimizer": "adamw"},
        {"optimizer": "sgd"},
    ],
)
def test_the_whole_step_is_the_step(chosen: dict[str, Any]) -> None:
    state, records = trained(Plain(), compiled=True, **chosen)
    expected, others = trained(Plain(), compiled=False, **chosen)
    for a, b in zip(state.network.parameters(), expected.network.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    for i, slots in expected.optimizer.weight_state().items():
        for slot, tensor in slots.items():
            torch.testing.assert_close(state.optimizer.weight_state()[i][slot], tensor, rtol=1e-3, atol=1e-6)
    assert state.averages.updates == expected.averages.updates == 25
    for one, other in zip(state.averages, expected.averages, strict=True):
        for name, tensor in state_dict(other.network).items():
            torch.testing.assert_close(state_dict(one.network)[name], tensor, rtol=1e-4, atol=1e-5)
    for record, other in zip(records, others, strict=True):
        torch.testing.assert_close(record.loss, other.loss, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(record.grad_norm, other.grad_norm, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(record.prediction, other.prediction, rtol=1e-4, atol=1e-5)


def test_a_compiled_step_that_is_not_finite_changes_nothing() -> None:
    state = new_state(Plain())
    given = settings(compile=True)
    step = make_step(state, objective(), given, 40)
    inputs = next(iter(loop(state, cloud(), given, steps=40))).inputs
    before = state_dict(state.network)
    outcome = step(inputs._replace(target=inputs.target * math.nan), 0.01, False)
    assert not bool(outcome.finite)
    assert all(torch.equal(tensor, before[name]) for name, tensor in state_dict(state.network).items())
    assert {float(slots["step"]) for slots in state.optimizer.weight_state().values()} == {1.0}


class Growing(Loss, name="growing"):
    """Depends on the step, which no compiled function may."""

    def loss(self, predict: Predict, batch: TrainingBatch, auxiliary: nn.Module | None) -> Tensor:
        error = predict(batch.x_t, batch.t, batch.cond) - batch.target
        return (1 + batch.step) * error.square().mean(1)


@pytest.mark.parametrize("loss", [Growing(), TwoLevels()])
def test_a_loss_of_a_stranger_is_compiled_as_far_as_may_be(loss: Loss) -> None:
    warned = pytest.warns(UserWarning, match="as a whole") if isinstance(loss, Growing) else contextlib.nullcontext()
    with warned, warnings.catch_warnings():
        if isinstance(loss, TwoLevels):
            warnings.simplefilter("error")
        state, _ = trained(Plain(), compiled=True, steps=10, loss=loss)
    expected, _ = trained(Plain(), compiled=False, steps=10, loss=loss)
    for a, b in zip(state.network.parameters(), expected.network.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


class Constant(Loss, name="constant"):
    """Depends on nothing that is trained."""

    def loss(self, predict: Predict, batch: TrainingBatch, auxiliary: nn.Module | None) -> Tensor:
        return predict(batch.x_t, batch.t, batch.cond).detach().square().mean(1)


def test_a_loss_without_a_gradient_is_refused_though_it_can_be_compiled() -> None:
    with pytest.warns(UserWarning, match="as a whole"), pytest.raises(DifftoolError, match="do not depend on the net"):
        trained(Plain(), compiled=True, steps=10, loss=Constant())


@pytest.mark.parametrize("network", [Detour, Net])
def test_what_cannot_be_compiled_as_a_whole_is_trained_all_the_same(network: type[nn.Module]) -> None:
    state: TrainState
    with pytest.warns(UserWarning, match="as a whole") if network is Detour else contextlib.nullcontext():
        state, _ = trained(network(), compiled=True, steps=10)
    expected, _ = trained(network(), compiled=False, steps=10)
    for a, b in zip(state.network.parameters(), expected.network.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


# --- large networks ---------------------------------------------------------------------------------------------------


class Attention(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.inner = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.tanh(self.inner(x))


class Block(nn.Module):
    """Holds a block, of which there are as many, and a container."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.attention, self.rest = Attention(width), nn.Sequential(nn.Linear(width, width), nn.SiLU())

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = x + self.rest(self.attention(x))
        return output


class Stage(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.blocks, self.out = nn.ModuleList([Block(width), Block(width)]), nn.Linear(width, width + 2)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        output: Tensor = self.out(x)
        return output


def staged() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(Stage(4), Stage(6))


def test_blocks_are_what_repeats_most_from_outside() -> None:
    """The stages repeat too, but less often; the attentions as often, but inside."""
    network = staged()
    assert [*compiling.repeated_blocks(network)] == [block for stage in network for block in stage.blocks]
    assert [*compiling.repeated_blocks(Plain())] == []


def test_blocks_of_one_shape_are_compiled_once(monkeypatch: pytest.MonkeyPatch) -> None:
    graphs: list[object] = []

    def backend(graph: Any, _inputs: object) -> Any:
        graphs.append(graph)
        return graph

    monkeypatch.undo()  # of the fixture's back end
    compiler = torch.compile
    monkeypatch.setattr(torch, "compile", lambda what, **how: compiler(what, **how, backend=backend))
    network, plain, x = staged(), staged(), torch.randn(3, 4, requires_grad=True)
    result = compiling.with_compiled_blocks(network)(x)
    torch.testing.assert_close(result, plain(x))
    assert len(graphs) == 2  # of four blocks
    result.sum().backward()
    plain(x).sum().backward()
    for compiled, eager in zip(network.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(compiled.grad, eager.grad)
    assert network.state_dict().keys() == plain.state_dict().keys()


def test_a_large_network_is_not_compiled_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vectors, "SMALL", 0)
    monkeypatch.setattr(compiling, "SMALL", 0)
    with pytest.warns(UserWarning, match="--compile is left out: training a network of this size on a CPU"):
        state, _ = trained(Plain(), compiled=True, steps=5)
    expected, _ = trained(Plain(), compiled=False, steps=5)
    for compiled, eager in zip(state.network.parameters(), expected.network.parameters(), strict=True):
        assert torch.equal(compiled, eager)
