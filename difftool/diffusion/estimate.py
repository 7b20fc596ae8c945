"""The records that core and plugins hand each other, and what a sampler asks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

if TYPE_CHECKING:
    from difftool.diffusion.schedule import Level


ZERO = torch.zeros((), dtype=torch.float32, device="cpu")
MADE = {"x_0": (1.0, 0.0), "eps": (0.0, 1.0)}
"""What of an estimate is made when it is asked for: so much of x_0, and so much of eps."""


@dataclass(frozen=True)
class Estimate:
    """What a denoiser knows at a level; x_t = alpha x_0 + sigma eps holds. May grow fields.

    x_0 and eps are linear in two tensors that the denoiser has anyway, such as x_t and the network's answer. Those made
    by `linear` keep the two, make x_0 and eps when somebody asks for them, and go to another level without either.
    """

    x_0: Tensor
    eps: Tensor
    variance_part: Tensor | None = None
    """Of a learned variance: where it lies between the posterior's (0) and beta (1), in logarithms."""

    def __post_init__(self) -> None:
        self.__dict__["_parts"] = (self.x_0, 1.0, 0.0), (self.eps, 0.0, 1.0)

    @classmethod
    def linear(
        cls,
        a: Tensor,
        b: Tensor,
        *,
        x_0: tuple[float, float],
        eps: tuple[float, float],
        variance_part: Tensor | None = None,
    ) -> Estimate:
        """x_0 and eps are so much of a and so much of b each. Neither tensor may be changed in place afterwards."""
        found = object.__new__(cls)
        made = found.__dict__
        made["_parts"] = (a, x_0[0], eps[0]), (b, x_0[1], eps[1])
        made["variance_part"] = variance_part
        return found

    def with_x_0(self, x_0: Tensor, x: Tensor, level: Level) -> Estimate:
        """The same with another x_0: eps is derived again, so that both describe the state x at this level."""
        found = Estimate.linear(
            x,
            x_0,
            x_0=(0.0, 1.0),
            eps=(1.0 / level.sigma, -level.alpha / level.sigma),
            variance_part=self.variance_part,
        )
        found.__dict__["x_0"] = x_0
        return found

    def at(self, alpha: float, sigma: float, *, onto: Tensor | None = None) -> Tensor:
        """alpha x_0 + sigma eps: in a new tensor, or added to `onto` in place."""
        total = onto
        for part, in_x_0, in_eps in self.__dict__["_parts"]:
            weight = alpha * in_x_0 + sigma * in_eps
            if weight == 0.0:
                continue
            # 0 + weight part: for a product, torch would make a tensor of the weight first
            total = torch.add(ZERO, part, alpha=weight) if total is None else total.add_(part, alpha=weight)
        return torch.zeros_like(part) if total is None else total

    if not TYPE_CHECKING:

        def __getattr__(self, name):
            """x_0 or eps, which was not made yet."""
            if name not in MADE:
                raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
            made = self.__dict__[name] = self.at(*MADE[name])
            return made


@dataclass(slots=True)  # not frozen, which would take three times as long in each step
class Step:
    """One step of a walk: the state reached, the level it is at, and the estimate that led there."""

    x: Tensor
    level: Level
    estimate: Estimate


class Denoise(Protocol):
    """x (B, *shape) at a level -> Estimate, which may keep x: it is not to be changed in place afterwards."""

    def __call__(self, x: Tensor, level: Level) -> Estimate: ...


GUESS_RANGE = 4.0
"""Self-conditioning keeps the guess of unbounded data within this many standard deviations: at the noisy end an
estimate from eps may be off by hundreds."""


def with_guess(net_input: Tensor, guess: Tensor | None) -> Tensor:
    """The network's input with the last estimate of x_0 beside it, zeros before there is one (Chen et al., 2023)."""
    return torch.cat([net_input, torch.zeros_like(net_input) if guess is None else guess], dim=1)


def bounded_guess(x_0: Tensor, bounds: tuple[float, float] | None, sigma_data: float) -> Tensor:
    """An estimate as self-conditioning shows it to the network, the same in training and sampling."""
    low, high = bounds or (-GUESS_RANGE * sigma_data, GUESS_RANGE * sigma_data)
    return x_0.clamp(low, high)
