"""The training objective: inputs and targets of the network, and its loss, from tables of the noise levels."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import repeat
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from difftool.components import Loss
from difftool.diffusion.condition_image import with_image_beside
from difftool.diffusion.prediction import native_weight, tables
from difftool.diffusion.self_conditioning import bounded_self_cond, with_self_cond
from difftool.diffusion.variance import VarianceBound, split_variance
from difftool.errors import DifftoolError, UsageError, blaming
from difftool.specs import ObjectiveSpec

if TYPE_CHECKING:
    from difftool.components import Prediction, TimestepSampling, Weighting
    from difftool.data.condition import Condition
    from difftool.data.facts import DataFacts
    from difftool.training.batch import Network

VARIANCE_WEIGHT = 0.001
"""The weight of the variational bound beside the plain loss (Nichol & Dhariwal, 2021, section 3.1)."""


class Objective:
    """Schedule, prediction, weighting, timestep sampling and loss, as tables on the device.

    `network` names the network in errors from its code. Raises `UsageError` if the parts do not fit together.
    """

    def __init__(
        self,
        spec: ObjectiveSpec,
        prediction: Prediction,
        weighting: Weighting,
        timestep_sampling: TimestepSampling,
        loss: Loss,
        *,
        device: torch.device,
        self_condition: bool = False,
        learn_variance: bool = False,
        data: DataFacts,
        image_beside: bool = False,
        network: str = "the network",
    ) -> None:
        self.network, self.image_beside = network, image_beside
        self.spec, self.loss, self.device = spec, loss, device
        self.self_condition, self.data = self_condition, data
        schedule = spec.schedule
        with blaming(f"prediction {prediction.name}", refusal=UsageError):
            a, b, det = tables(prediction, spec)
            scale = torch.tensor([prediction.input_scale(level, spec) for level in schedule], dtype=torch.float64)
        native = native_weight(det, schedule.sigma)
        with blaming(f"weighting {weighting.name}", refusal=UsageError):
            weight = weighting.weight(native, spec)
            factor = weight / native if weight.shape == native.shape else torch.tensor(math.nan)
            if not bool(((factor >= 0) & factor.isfinite()).all()):
                raise ValueError("it gives no finite weight at some level of this schedule")

        def table(values: Tensor) -> Tensor:
            return values.to(device, torch.float32)

        self.alpha, self.sigma, self.factor, self.scale = map(table, (schedule.alpha, schedule.sigma, factor, scale))
        self.a, self.b = Table.of(a, device), Table.of(b, device)
        self.eps_weight = table((schedule.alpha / det).square())
        self.x_0_of_x_t, self.x_0_of_output = table(b / det), table(-schedule.sigma / det)
        with blaming(f"timestep sampling {timestep_sampling.name}", refusal=UsageError):
            self.distribution = table(distribution(timestep_sampling, spec))
        self.bound: VarianceBound | None = None
        if learn_variance:
            pixels = data.bounds if data.is_image else None
            self.bound = VarianceBound(schedule, device=device, pixel_range=pixels)
        self.time = schedule.time(1.0)
        self.unit_scale = bool((scale - 1.0).abs().max() < 1e-6)
        self.weighted = bool((factor != 1.0).any())
        cls = type(loss)
        self.pairs = cls.pair is not Loss.pair
        """True if the loss pairs items and noise of a step."""
        self.in_one_call = cls.mean_loss is not Loss.mean_loss and cls.build is Loss.build and not self.weighted
        """True if the loss gives the mean over the items alone, and the metrics compute the loss of each item."""

    def __len__(self) -> int:
        return len(self.alpha)

    def draw(self, u: Tensor) -> Tensor:
        """Return the levels t, int64, at uniform numbers u in [0, 1), by inversion of the distribution function."""
        return torch.searchsorted(self.distribution, u, right=True).clamp_(max=len(self) - 1)

    def inputs(self, x_0: Tensor, eps: Tensor, t: Tensor, cond: Condition | None) -> Inputs:
        """Return the inputs and the target of the network for items (N, *shape) at levels t (N,)."""
        x_t = self.noised(x_0, eps, t)
        return Inputs(x_0, eps, t, cond, x_t, self.net_input(x_t, t), t * self.time, self.target(x_0, eps, t))

    def noised(self, x_0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """Return x_t = alpha_t x_0 + sigma_t eps. Raises `IndexError` for levels that the schedule does not have."""
        # unlike table[t], this refuses negative levels
        alpha, sigma = (per_item(table.index_select(0, t), x_0) for table in (self.alpha, self.sigma))
        return torch.addcmul(sigma * eps, alpha, x_0)

    def net_input(self, x_t: Tensor, t: Tensor) -> Tensor:
        """Return x_t on the scale of the network's input."""
        return x_t if self.unit_scale else per_item(self.scale[t], x_t) * x_t

    def target(self, x_0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """Return a x_0 + b eps. Coefficients that are 0 or 1 at every level cost nothing."""
        if self.a.constant == 0.0:
            return self.b.times(eps, t)
        if self.b.constant == 0.0:
            return self.a.times(x_0, t)
        return self.a.times(x_0, t) + self.b.times(eps, t)

    def predict(self, network: Network, inputs: Inputs, *, self_cond: bool = False) -> Tensor:
        """Return the output of the network, which has twice the channels if it learns the variance.

        With `self_cond` the network is called twice, and sees its first estimate of x_0 in the second call.
        """
        net_input = inputs.net_input
        if self.image_beside:
            network = with_image_beside(network)
        if self.self_condition:
            net_input = with_self_cond(net_input, self.first_estimate(network, inputs) if self_cond else None)
        output = network(net_input, inputs.time, inputs.cond)
        if (shape := self.prediction(output).shape) != inputs.x_t.shape:
            raise DifftoolError(f"the network returned {tuple(shape)}, not {tuple(inputs.x_t.shape)}")
        return output

    @torch.no_grad()
    def first_estimate(self, network: Network, inputs: Inputs) -> Tensor:
        """Return the estimate of x_0 that the network makes without seeing an earlier one."""
        output = network(with_self_cond(inputs.net_input, None), inputs.time, inputs.cond).float()
        torch.clear_autocast_cache()  # or weights cast without a gradient would be used again with one (torch < 2.10)
        x_0 = self.estimate(self.prediction(output), inputs.x_t, inputs.t)
        return bounded_self_cond(x_0, self.data.bounds, self.spec.sigma_data)

    def eps_errors(self, prediction: Tensor, target: Tensor, t: Tensor) -> Tensor:
        """Return the mean squared error of the estimate of eps of each item (B,), whatever the network predicts.

        An error e of the output is an error e alpha/det of eps, where det = alpha b - sigma a.
        """
        errors = F.mse_loss(prediction, target, reduction="none").mean(tuple(range(1, target.ndim)))
        return errors * self.eps_weight[t]

    def prediction(self, output: Tensor) -> Tensor:
        """Return the part of the output that predicts a x_0 + b eps, without the part for the variance."""
        return output if self.bound is None else split_variance(output)[0]

    def estimate(self, prediction: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """Return the estimate of x_0."""
        of_x_t, of_output = (per_item(table.index_select(0, t), x_t) for table in (self.x_0_of_x_t, self.x_0_of_output))
        return of_x_t * x_t + of_output * prediction

    def variance_loss(self, output: Tensor, inputs: Inputs) -> Tensor:
        """Return 0.001 of the variational bound, summed over the levels (Nichol & Dhariwal, 2021, eq. 16).

        The prediction receives no gradient from it, only the variance does.
        """
        assert self.bound is not None
        prediction, fraction = split_variance(output.float())
        x_0_hat = self.estimate(prediction.detach(), inputs.x_t, inputs.t)
        if self.data.bounds is not None:
            x_0_hat = x_0_hat.clamp(*self.data.bounds)
        return VARIANCE_WEIGHT * len(self) * self.bound(inputs.x_0, x_0_hat, fraction, inputs.t).mean()


@dataclass(frozen=True)
class Table:
    """A number for each level."""

    values: Tensor
    constant: float | None
    """The number, if it is the same at every level."""

    @classmethod
    def of(cls, values: Tensor, device: torch.device) -> Table:
        values = values.to(torch.float32)
        first = float(values[0])
        return cls(values.to(device), first if bool((values == first).all()) else None)

    def times(self, x: Tensor, t: Tensor) -> Tensor:
        if self.constant is None:
            return per_item(self.values[t], x) * x
        return x if self.constant == 1.0 else self.constant * x


def per_item(values: Tensor, x: Tensor) -> Tensor:
    """Return values (B,), shaped to broadcast over x (B, ...)."""
    return values.view(-1, *(1,) * (x.ndim - 1))


def distribution(sampling: TimestepSampling, spec: ObjectiveSpec) -> Tensor:
    """Return the distribution function of the levels, P(t <= i). Raises `ValueError` if there is none."""
    density = sampling.density(spec).to(torch.float64)
    total = float(density.sum())
    if density.shape != spec.schedule.alpha.shape or not bool((density >= 0).all()) or not 0.0 < total < math.inf:
        raise ValueError("it gives no distribution over the levels of this schedule")
    cumulative = density.cumsum(0)
    return cumulative / cumulative[-1]


class Inputs(NamedTuple):
    """Inputs and target of the network for some items."""

    x_0: Tensor
    """The items (B, *shape), in model units."""
    eps: Tensor
    """The noise (B, *shape)."""
    t: Tensor
    """The level of each item (B,), int64."""
    cond: Condition | None
    """The conditions, some of them hidden, or None if the data have none."""
    x_t: Tensor
    """The noised items (B, *shape)."""
    net_input: Tensor
    """x_t, scaled for the network."""
    time: Tensor
    """The levels on the scale of the network (B,), from 0 to 1000."""
    target: Tensor
    """The quantity to predict (B, *shape)."""

    def split(self, size: int) -> Iterator[Inputs]:
        """Yield parts of this many items; the last one may be smaller."""
        columns = (repeat(None) if field is None else field.split(size) for field in self)
        return map(Inputs._make, zip(*columns, strict=False))
