"""The optimizer and the joined weights against torch's own Adam, on one vector and on separate weights."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from difftool import component
from difftool.training import vectors as weights
from difftool.training.fused_adam import FusedAdam
from difftool.training.optimizer import Updater
from difftool.training.vectors import are_joined, join, views_of


class Net(nn.Module):
    """Layers of several shapes, a convolution in channels-last, a scalar, and a weight that is never used."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.linear = nn.Linear(4, 2)
        self.gain = nn.Parameter(torch.tensor(1.5))
        self.unused = nn.Parameter(torch.ones(5))
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, x: Tensor) -> Tensor:
        answer: Tensor = self.gain * self.linear(torch.tanh(self.conv(x)).mean((2, 3)))
        return answer


def adam(network: nn.Module) -> Updater:
    return Updater(component("optimizer", "adam"), network.named_parameters(), 1e-3)


@pytest.fixture(params=["one vector", "apart"])
def form(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "apart":
        monkeypatch.setattr(weights, "SMALL", 10)
    return request.param


def losses(network: nn.Module) -> Iterator[Tensor]:
    random = torch.Generator().manual_seed(0)
    while True:
        x = torch.randn(8, 3, 4, 4, generator=random)
        yield network(x).sub(x.mean((1, 2, 3))[:, None]).square().mean()


def same_weights(a: nn.Module, b: nn.Module) -> None:
    for left, right in zip(a.parameters(), b.parameters(), strict=True):
        torch.testing.assert_close(left, right, rtol=1e-6, atol=1e-7)


def test_it_is_the_adam_of_torch(form: str) -> None:
    ours, theirs = Net(), Net()
    optimizer, expected = adam(ours), torch.optim.Adam(theirs.parameters(), lr=0.01, fused=True)
    for step, loss, other in zip(range(50), losses(ours), losses(theirs), strict=False):
        lr = 0.01 / (1 + step)
        optimizer.clear_gradients()
        loss.backward()
        norm = optimizer.gradient_norm()
        nn.utils.clip_grads_with_norm_(optimizer.parameters, 0.05, norm)
        optimizer.update(lr, torch.isfinite(norm))
        expected.zero_grad()
        other.backward()
        total = nn.utils.clip_grad_norm_(theirs.parameters(), 0.05)
        torch.testing.assert_close(norm, total)
        expected.param_groups[0]["lr"] = lr
        expected.step()
    same_weights(ours, theirs)
    assert not torch.equal(ours.conv.weight, Net().conv.weight)
    assert torch.equal(ours.unused, torch.ones(5))


def test_weights_of_two_dtypes_move_in_one_group() -> None:
    """A call of the kernel takes one dtype."""
    ours, theirs = (
        [nn.Parameter(torch.ones(3, dtype=dtype)) for dtype in (torch.float32, torch.float64, torch.float32)]
        for _ in range(2)
    )
    optimizers = FusedAdam([{"params": ours}], 0.1), torch.optim.Adam(theirs, 0.1, fused=True)
    for some, optimizer in zip((ours, theirs), optimizers, strict=True):
        for i, weight in enumerate(some):
            weight.grad = torch.full_like(weight, i - 0.5)
        optimizer.step()
    assert all(torch.equal(left, right) for left, right in zip(ours, theirs, strict=True))


def test_a_step_that_is_not_finite_changes_nothing(form: str) -> None:
    network = Net()
    optimizer, steps = adam(network), losses(network)
    for finite in (True, False, True):
        before = [p.detach().clone() for p in network.parameters()]
        state = {i: {k: v.clone() for k, v in slots.items()} for i, slots in optimizer.weight_state().items()}
        optimizer.clear_gradients()
        (next(steps) * (1.0 if finite else torch.nan)).backward()
        optimizer.update(0.01, torch.isfinite(optimizer.gradient_norm()))
        assert finite != all(torch.equal(a, b) for a, b in zip(before, network.parameters(), strict=True))
        if not finite:
            after = optimizer.weight_state()
            assert all(torch.equal(v, after[i][k]) for i, slots in state.items() for k, v in slots.items())
    assert {float(slots["step"]) for slots in optimizer.weight_state().values()} == {2.0}


def test_a_state_goes_from_one_form_to_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a run saved is taken up wherever the border between small and large lies."""
    kept: list[Net] = []
    for first, second in ((2**18, 10), (10, 2**18), (2**18, 2**18)):
        network = Net()
        monkeypatch.setattr(weights, "SMALL", first)
        optimizer, steps = adam(network), losses(network)
        for step in range(10):
            if step == 5:
                state = {name: tensor.clone() for name, tensor in optimizer.tensors().items()}
                numbers = optimizer.document()
                weight = {name: tensor.clone() for name, tensor in network.state_dict().items()}
                monkeypatch.setattr(weights, "SMALL", second)
                network = Net()
                network.load_state_dict(weight)
                optimizer, seen = adam(network), losses(network)
                steps = (loss for loss, _ in zip(seen, iter(int, 1), strict=False))
                for _ in range(5):
                    next(steps)
                optimizer.load(state, numbers)
            optimizer.clear_gradients()
            next(steps).backward()
            optimizer.update(0.01, torch.tensor(True))
        kept.append(network)
    same_weights(kept[0], kept[2])
    same_weights(kept[1], kept[2])


def test_joined_weights_stay_what_they_were() -> None:
    network = Net()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    vector = join([*network.parameters()])
    assert vector is not None
    assert vector.shape == (sum(p.numel() for p in network.parameters()),)
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, before[name])
        assert tensor.stride() == before[name].stride()
    again = join([*network.parameters()])
    assert again is not None
    assert again.data_ptr() == vector.data_ptr()
    vector.zero_()
    assert not any(bool(p.any()) for p in network.parameters())
    views = views_of(torch.arange(len(vector)).float(), [*network.parameters()])
    assert sorted(torch.cat([view.flatten() for view in views]).tolist()) == list(range(len(vector)))


@pytest.mark.parametrize("odd", ["dtype", "gap", "none"])
def test_weights_of_several_kinds_are_not_joined(odd: str) -> None:
    first = nn.Parameter(torch.ones(3))
    others = {"dtype": torch.ones(3, dtype=torch.float64), "gap": torch.ones(6)[::2], "none": None}
    other = others[odd]
    given = [first] if other is None else [first, nn.Parameter(other)]
    assert (join(given) is None) == (other is not None)
    assert are_joined(given) == (other is None)
    assert join([]) is None
