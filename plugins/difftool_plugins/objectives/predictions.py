"""What a network may be asked for, given x_t = alpha x_0 + sigma eps. Every round trip is the identity."""

from __future__ import annotations

from typing import TYPE_CHECKING

from difftool import Prediction

if TYPE_CHECKING:
    from torch import Tensor

    from difftool import Schedule

    Scalar = float | Tensor


class EpsPrediction(Prediction, name="eps"):
    """The noise (Ho et al., 2020, eq. 14)."""

    def target(self, x_0: Tensor, eps: Tensor, alpha: Scalar, sigma: Scalar) -> Tensor:
        return eps

    def estimate(self, output: Tensor, x_t: Tensor, alpha: Scalar, sigma: Scalar) -> tuple[Tensor, Tensor]:
        return (x_t - sigma * output) / alpha, output

    def native_weight(self, alpha: Scalar, sigma: Scalar) -> Scalar:
        return (alpha / sigma) ** 2

    def check(self, schedule: Schedule) -> None:
        if schedule[len(schedule) - 1].alpha == 0.0:
            raise ValueError("eps says nothing of x_0 where no signal is left; use x0 or v with this schedule")


class X0Prediction(Prediction, name="x0"):
    """The clean sample."""

    def target(self, x_0: Tensor, eps: Tensor, alpha: Scalar, sigma: Scalar) -> Tensor:
        return x_0

    def estimate(self, output: Tensor, x_t: Tensor, alpha: Scalar, sigma: Scalar) -> tuple[Tensor, Tensor]:
        return output, (x_t - alpha * output) / sigma

    def native_weight(self, alpha: Scalar, sigma: Scalar) -> Scalar:
        return 1.0 + 0.0 * sigma


class VPrediction(Prediction, name="v"):
    """The velocity c eps - s x_0 in the normalised frame, c = alpha/norm, s = sigma/norm (Salimans & Ho, 2022)."""

    def target(self, x_0: Tensor, eps: Tensor, alpha: Scalar, sigma: Scalar) -> Tensor:
        norm = (alpha**2 + sigma**2) ** 0.5
        return (alpha * eps - sigma * x_0) / norm

    def estimate(self, output: Tensor, x_t: Tensor, alpha: Scalar, sigma: Scalar) -> tuple[Tensor, Tensor]:
        norm = (alpha**2 + sigma**2) ** 0.5
        c, s, x = alpha / norm, sigma / norm, x_t / norm
        return c * x - s * output, s * x + c * output

    def native_weight(self, alpha: Scalar, sigma: Scalar) -> Scalar:
        return 1.0 + (alpha / sigma) ** 2
