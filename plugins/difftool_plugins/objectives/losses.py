"""Losses: a distance between prediction and target, averaged over the numbers of an item."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING

from difftool import Loss, option

if TYPE_CHECKING:
    from torch import Tensor, nn

    from difftool import Predict, TrainingBatch


class Distance(Loss):
    """A distance of each number of the prediction from its target."""

    @abstractmethod
    def distance(self, prediction: Tensor, target: Tensor, reduction: str) -> Tensor:
        """Return the distances (B, *shape), or their mean if the reduction is `mean`."""

    def loss(self, predict: Predict, batch: TrainingBatch, auxiliary: nn.Module | None) -> Tensor:
        distances = self.distance(predict(batch.x_t, batch.t, batch.cond), batch.target, "none")
        return distances.mean(tuple(range(1, distances.ndim)))

    def mean_loss(self, predict: Predict, batch: TrainingBatch, auxiliary: nn.Module | None) -> Tensor:
        # one node of the graph instead of three
        return self.distance(predict(batch.x_t, batch.t, batch.cond), batch.target, "mean")


class MSE(Distance, name="mse"):
    """The mean squared error (Ho et al., 2020, eq. 14)."""

    def distance(self, prediction: Tensor, target: Tensor, reduction: str) -> Tensor:
        from torch.nn.functional import mse_loss

        return mse_loss(prediction, target, reduction=reduction)


class L1(Distance, name="l1"):
    """The mean absolute error, on which outliers weigh less than in a square."""

    def distance(self, prediction: Tensor, target: Tensor, reduction: str) -> Tensor:
        from torch.nn.functional import l1_loss

        return l1_loss(prediction, target, reduction=reduction)


class Huber(Distance, name="huber"):
    """The square e^2/2 up to an error of delta, and the line delta (|e| - delta/2) beyond (Huber, 1964)."""

    delta: float = option(default=1.0, gt=0, le=1e6, help="error at which the square becomes a line")

    def distance(self, prediction: Tensor, target: Tensor, reduction: str) -> Tensor:
        from torch.nn.functional import huber_loss

        return huber_loss(prediction, target, reduction=reduction, delta=self.delta)
