"""What is minimised: the loss of the network's answer, as tables of the noise levels on the device."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import repeat
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from difftool.diffusion.prediction import native_weight, tables
from difftool.diffusion.self_conditioning import bounded_self_cond, with_self_cond
from difftool.diffusion.variance import VarianceBound, split_variance
from difftool.errors import DifftoolError
from difftool.specs import ObjectiveSpec

if TYPE_CHECKING:
    from difftool.components import Prediction, TimestepSampling, Weighting
    from difftool.data.facts import DataFacts

VARIANCE_WEIGHT = 0.001
"""Of the bound beside the plain loss: so small that it guides the variance alone."""

LOSSES: dict[str, Callable[..., Tensor]] = {"mse": F.mse_loss, "l1": F.l1_loss, "huber": F.smooth_l1_loss}


class Objective:
    """What is minimised: schedule, prediction type, weighting, time density and loss as tables on the device.

    Raises `ValueError` where they do not go together.
    """

    def __init__(
        self,
        spec: ObjectiveSpec,
        prediction: Prediction,
        weighting: Weighting,
        time: TimestepSampling,
        loss: str,
        *,
        device: torch.device,
        self_condition: bool = False,
        learn_variance: bool = False,
        data: DataFacts,
    ) -> None:
        self.spec, self.distance, self.device = spec, LOSSES[loss], device
        self.self_condition, self.bounds = self_condition, data.bounds
        schedule = spec.schedule
        a, b, det = tables(prediction, spec)
        native = native_weight(det, schedule.sigma)
        factor = weighting.weight(native, spec) / native
        if factor.shape != native.shape or not bool(torch.isfinite(factor).all()) or bool((factor < 0).any()):
            raise ValueError(f"weighting {weighting.name} gives no finite weight at some level of this schedule")
        scale = torch.tensor([prediction.input_scale(level, spec) for level in schedule], dtype=torch.float64)

        def table(values: Tensor) -> Tensor:
            return values.to(device, torch.float32)

        self.alpha, self.sigma, self.factor, self.scale = map(table, (schedule.alpha, schedule.sigma, factor, scale))
        self.a, self.b = Table.of(table(a)), Table.of(table(b))
        self.x_0_of_x_t, self.x_0_of_output = table(b / det), table(-schedule.sigma / det)
        self.distribution = table(distribution(time, spec))
        self.bound: VarianceBound | None = None
        if learn_variance:
            pixels = data.bounds if data.is_image else None
            self.bound = VarianceBound(schedule, device=device, pixel_range=pixels)
        self.time = schedule.time(1.0)
        self.unit_scale = bool((scale - 1.0).abs().max() < 1e-6)
        self.weighted = bool((factor != 1.0).any())

    def __len__(self) -> int:
        return len(self.alpha)

    def draw(self, u: Tensor) -> Tensor:
        """The levels t, int64, that uniform numbers in [0, 1) stand for."""
        return torch.searchsorted(self.distribution, u, right=True).clamp_(max=len(self) - 1)

    def inputs(self, x_0: Tensor, eps: Tensor, t: Tensor, cond: Tensor | None) -> Inputs:
        """What the network is shown of items (N, *shape) at levels t (N,), and what it should answer.

        x_t = alpha_t x_0 + sigma_t eps.
        """
        x_t = torch.addcmul(per_item(self.sigma[t], eps) * eps, per_item(self.alpha[t], x_0), x_0)
        net_input = x_t if self.unit_scale else per_item(self.scale[t], x_t) * x_t
        return Inputs(x_0, eps, t, cond, x_t, net_input, t * self.time, self.target(x_0, eps, t))

    def target(self, x_0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """What the network should answer: a x_0 + b eps. What is 0 or 1 at every level costs nothing."""
        if self.a.constant == 0.0:
            return self.b.times(eps, t)
        if self.b.constant == 0.0:
            return self.a.times(x_0, t)
        return self.a.times(x_0, t) + self.b.times(eps, t)

    def ask(self, network: Callable[..., Tensor], inputs: Inputs, *, guess: bool = False) -> Tensor:
        """The network's output. `guess`: self-conditioned, it is first asked for x_0."""
        net_input = inputs.net_input
        if self.self_condition:
            net_input = with_self_cond(net_input, self._guess(network, inputs) if guess else None)
        output = network(net_input, inputs.time, inputs.cond)
        if (answered := self.answer(output).shape) != inputs.target.shape:
            raise DifftoolError(f"the network answered {tuple(answered)}, not {tuple(inputs.target.shape)}")
        return output

    @torch.no_grad()
    def _guess(self, network: Callable[..., Tensor], inputs: Inputs) -> Tensor:
        output = network(with_self_cond(inputs.net_input, None), inputs.time, inputs.cond).float()
        torch.clear_autocast_cache()  # or weights cast without a gradient would be used again with one (torch < 2.10)
        x_0 = self.estimate(self.answer(output), inputs.x_t, inputs.t)
        return bounded_self_cond(x_0, self.bounds, self.spec.sigma_data)

    def loss(self, output: Tensor, inputs: Inputs) -> Tensor:
        """What is minimised: the mean of the weighted losses, and what learning the variance adds to it."""
        answer = self.answer(output).float()
        if self.weighted:
            loss = (self.item_losses(answer, inputs.target) * self.factor[inputs.t]).mean()
        else:  # one node of the graph instead of four
            loss = self.distance(answer, inputs.target)
        return loss if self.bound is None else loss + self.variance_loss(output, inputs)

    def item_losses(self, answer: Tensor, target: Tensor) -> Tensor:
        """The unweighted loss of each item (B,)."""
        return self.distance(answer, target, reduction="none").mean(tuple(range(1, target.ndim)))

    def answer(self, output: Tensor) -> Tensor:
        """What the network says of x_0 and eps, without what it says of the variance."""
        return output if self.bound is None else split_variance(output)[0]

    def estimate(self, answer: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """x_0 from the network's answer."""
        return per_item(self.x_0_of_x_t[t], x_t) * x_t + per_item(self.x_0_of_output[t], x_t) * answer

    def variance_loss(self, output: Tensor, inputs: Inputs) -> Tensor:
        """What learning the variance adds to the loss: 0.001 of the bound, summed over the levels.

        Nichol & Dhariwal (2021), eq. 16; the mean takes no gradient from it.
        """
        assert self.bound is not None
        answer, part = split_variance(output.float())
        x_0_hat = self.estimate(answer.detach(), inputs.x_t, inputs.t)
        if self.bounds is not None:
            x_0_hat = x_0_hat.clamp(*self.bounds)
        return VARIANCE_WEIGHT * len(self) * self.bound(inputs.x_0, x_0_hat, part, inputs.t).mean()


@dataclass(frozen=True)
class Table:
    """A number for each level, and the number itself where it is one for all."""

    values: Tensor
    constant: float | None

    @classmethod
    def of(cls, values: Tensor) -> Table:
        first = float(values[0])
        return cls(values, first if bool((values == first).all()) else None)

    def times(self, x: Tensor, t: Tensor) -> Tensor:
        if self.constant is None:
            return per_item(self.values[t], x) * x
        return x if self.constant == 1.0 else self.constant * x


def per_item(values: Tensor, x: Tensor) -> Tensor:
    """(B,) shaped to broadcast over x (B, ...)."""
    return values.view(-1, *(1,) * (x.ndim - 1))


def distribution(time: TimestepSampling, spec: ObjectiveSpec) -> Tensor:
    """The distribution function over the levels: P(t <= i). Raises `ValueError`."""
    density = time.density(spec).to(torch.float64)
    total = float(density.sum())
    if density.shape != spec.schedule.alpha.shape or not bool((density >= 0).all()) or not 0.0 < total < math.inf:
        raise ValueError(f"time {time.name} gives no distribution over the levels of this schedule")
    cumulative = density.cumsum(0)
    return cumulative / cumulative[-1]


class Inputs(NamedTuple):
    """What the network is shown of some items, and what it should answer."""

    x_0: Tensor
    """(B, *shape), in model units."""
    eps: Tensor
    """(B, *shape)."""
    t: Tensor
    """The level of each item (B,), int64."""
    cond: Tensor | None
    """Labels (B,), some of them hidden; None where there are no classes."""
    x_t: Tensor
    """The noised items (B, *shape)."""
    net_input: Tensor
    """x_t as the network sees it."""
    time: Tensor
    """The level as the network sees it (B,)."""
    target: Tensor
    """What the network should answer (B, *shape)."""

    def split(self, size: int) -> Iterator[Inputs]:
        """The same in parts of so many items; the last one may be smaller."""
        columns = (repeat(None) if field is None else torch.split(field, size) for field in self)
        return map(Inputs._make, zip(*columns, strict=False))
