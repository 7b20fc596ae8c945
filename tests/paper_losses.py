"""Losses of papers, written as a package would: couplings, consistency training, a learnt uncertainty, a mask."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace

import torch
from torch import Tensor, nn

from difftool import Loss, LossSpec, Pairing, Predict, TrainingBatch, hookimpl, option
from difftool.testing import PluginManager


class MinibatchOT(Loss, name="minibatch-ot"):
    """The squared error with noise assigned to items at the least squared distance (Tong et al., 2024)."""

    def pair(self, pairing: Pairing) -> Pairing:
        from scipy.optimize import linear_sum_assignment

        cost = torch.cdist(pairing.x_0.flatten(1), pairing.eps.flatten(1)).square()
        _, columns = linear_sum_assignment(cost.cpu().numpy())
        return replace(pairing, eps=pairing.eps[torch.as_tensor(columns, device=pairing.eps.device)])

    def loss(self, predict: Predict, batch: TrainingBatch, auxiliary: nn.Module | None) -> Tensor:
        return (predict(batch.x_t, batch.t, batch.cond) - batch.target).square().flatten(1).mean(1)


class Consistency(Loss, name="consistency"):
    """Consistency training: the estimate of x_0 agrees with that of a target network one level cleaner.

    The target is an exponential moving average of the network (Song et al., 2023, algorithm 3), and the estimate at
    the clean end is x_0 itself.
    """

    decay: float = option(default=0.9, ge=0, le=1, help="decay of the target network")
    gap: int = option(default=5, ge=1, help="levels between the two estimates")

    def build(self, spec: LossSpec) -> nn.Module:
        return copy.deepcopy(spec.network).eval().requires_grad_(False)

    def loss(self, predict: Predict, batch: TrainingBatch, auxiliary: nn.Module | None) -> Tensor:
        s = (batch.t - self.gap).clamp(min=0)
        with torch.no_grad():
            target = predict.x_0(batch.noised(s), s, batch.cond, network=auxiliary)
            clean = (batch.t < self.gap).view(-1, *(1,) * (target.ndim - 1))
            target = torch.where(clean, batch.x_0, target)
        estimate = predict.x_0(batch.x_t, batch.t, batch.cond)
        return (estimate - target).square().flatten(1).mean(1)

    def after_step(self, network: nn.Module, auxiliary: nn.Module | None) -> None:
        assert auxiliary is not None
        for average, weight in zip(auxiliary.parameters(), network.parameters(), strict=True):
            average.lerp_(weight, 1.0 - self.decay)


class Uncertainty(nn.Module):
    """A number u for each level."""

    def __init__(self, levels: int) -> None:
        super().__init__()
        self.u = nn.Parameter(torch.zeros(levels))

    def forward(self, t: Tensor) -> Tensor:
        return self.u[t]


class LearntUncertainty(Loss, name="learnt-uncertainty"):
    """The loss w e/exp(u) + u with a learnt u of each level (Karras et al., 2024, eq. 14)."""

    weighted = True

    def build(self, spec: LossSpec) -> nn.Module:
        return Uncertainty(len(spec.schedule))

    def loss(self, predict: Predict, batch: TrainingBatch, auxiliary: nn.Module | None) -> Tensor:
        assert auxiliary is not None
        u: Tensor = auxiliary(batch.t)
        error = (predict(batch.x_t, batch.t, batch.cond) - batch.target).square().flatten(1).mean(1)
        return batch.weight * error / u.exp() + u


class Masked(Loss, name="masked"):
    """The squared error where the last channel of an item is positive; that channel is a mask and not learned."""

    def loss(self, predict: Predict, batch: TrainingBatch, auxiliary: nn.Module | None) -> Tensor:
        mask = (batch.x_0[:, -1:] > 0).expand_as(batch.x_0).clone()
        mask[:, -1:] = False
        error = (predict(batch.x_t, batch.t, batch.cond) - batch.target).square()
        return (error * mask).flatten(1).sum(1) / mask.flatten(1).sum(1).clamp(min=1)


class Elsewhere(Loss, name="elsewhere"):
    """The squared error at levels of its own, drawn anew, and never at those of the batch."""

    def loss(self, predict: Predict, batch: TrainingBatch, auxiliary: nn.Module | None) -> Tensor:
        u = torch.rand(batch.t.shape, generator=batch.generator(), device=batch.t.device)
        t = (u * batch.t.clamp(min=1)).long()
        return (predict.x_0(batch.noised(t), t, batch.cond) - batch.x_0).square().flatten(1).mean(1)


class TwoLevels(Loss, name="two-levels"):
    """The squared error at two levels of each item, so that a step has two passes with gradients."""

    def loss(self, predict: Predict, batch: TrainingBatch, auxiliary: nn.Module | None) -> Tensor:
        cleaner = batch.t // 2
        first = predict(batch.x_t, batch.t, batch.cond) - batch.target
        second = predict.x_0(batch.noised(cleaner), cleaner, batch.cond) - batch.x_0
        return first.square().flatten(1).mean(1) + batch.weight * second.square().flatten(1).mean(1)


PLUGIN = SimpleNamespace(
    difftool_losses=hookimpl(lambda: [MinibatchOT, Consistency, LearntUncertainty, Masked, Elsewhere, TwoLevels])
)


@contextlib.contextmanager
def installed() -> Iterator[None]:
    """Let difftool find the losses of this module."""
    manager = PluginManager()
    assert not manager.register(PLUGIN).problems
    with manager.active():
        yield
