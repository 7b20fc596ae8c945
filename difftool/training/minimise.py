"""A loss at work: the pairs of a step, the predictions that the loss asks for, and the number to minimise."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from difftool.errors import DifftoolError, blaming
from difftool.rng import generator
from difftool.training.batch import Moment, Network, Pairing, Predict, TrainingBatch
from difftool.training.loss import Inputs, Objective

if TYPE_CHECKING:
    from difftool.data.condition import Condition


class Predictor:
    """`Predict` for the items of one batch. It remembers the first output at the batch's own x_t.

    `guarded` wraps an auxiliary network for each call; the network itself is wrapped already.
    """

    def __init__(
        self,
        objective: Objective,
        network: Network,
        inputs: Inputs,
        *,
        self_cond: bool = False,
        guarded: Callable[[nn.Module], Network] = lambda network: network,
    ) -> None:
        self.objective, self.network, self.inputs = objective, network, inputs
        self.self_cond, self.guarded = self_cond, guarded
        self.output: Tensor | None = None
        """The first output of the network at the batch's own x_t, or None."""

    def __call__(self, x_t: Tensor, t: Tensor, cond: Condition | None, network: nn.Module | None = None) -> Tensor:
        own = x_t is self.inputs.x_t and t is self.inputs.t
        inputs = self.inputs if own and cond is self.inputs.cond else self._at(x_t, t, cond)
        called = self.network if network is None else self.guarded(network)
        output = self.objective.predict(called, inputs, self_cond=self.self_cond)
        if own and network is None and self.output is None:
            self.output = output
        return self.objective.prediction(output).float()

    def x_0(self, x_t: Tensor, t: Tensor, cond: Condition | None, network: nn.Module | None = None) -> Tensor:
        return self.objective.estimate(self(x_t, t, cond, network), x_t, t)

    def _at(self, x_t: Tensor, t: Tensor, cond: Condition | None) -> Inputs:
        """Return the inputs of the network at other levels, or with another condition."""
        shape = self.inputs.x_0.shape[1:]
        if x_t.shape[1:] != shape or t.shape != x_t.shape[:1]:
            raise DifftoolError(
                f"loss {self.objective.loss.name}: predict() takes x_t (B, {', '.join(map(str, shape))}) and t (B,), "
                f"not {tuple(x_t.shape)} and {tuple(t.shape)}"
            )
        net_input, time = self.objective.net_input(x_t, t), t * self.objective.time
        return self.inputs._replace(x_t=x_t, t=t, cond=cond, net_input=net_input, time=time)


MORE = (
    "it overrides mean_loss(), but needs more than the prediction at batch.x_t, batch.target and batch.t; "
    "override loss() alone"
)


class Recorded:
    """`Predict` that repeats the prediction of a step that is over, for the metrics."""

    def __init__(self, objective: Objective, prediction: Tensor, x_t: Tensor) -> None:
        self.objective, self.prediction, self.x_t = objective, prediction, x_t

    def __call__(self, x_t: Tensor, t: Tensor, cond: Condition | None, network: nn.Module | None = None) -> Tensor:
        if x_t is not self.x_t or network is not None:
            raise ValueError(MORE)
        return self.prediction

    def x_0(self, x_t: Tensor, t: Tensor, cond: Condition | None, network: nn.Module | None = None) -> Tensor:
        return self.objective.estimate(self(x_t, t, cond, network), x_t, t)


def paired(objective: Objective, inputs: Inputs, *key: int | str) -> Inputs:
    """Return the inputs of a step after the loss has paired its items and noise; `key` is that of the step.

    Raises `DifftoolError` if a tensor has another shape or type then.
    """
    x_0, eps, t, cond = inputs[:4]
    with blaming(f"loss {objective.loss.name}"):
        random = generator(*key, "pair", device=objective.device)
        pairing = objective.loss.pair(Pairing(x_0=x_0, eps=eps, t=t, cond=cond, generator=random))
        if not isinstance(pairing, Pairing):
            raise ValueError(f"pair() returned {described(pairing)}, not a Pairing")
        for name, before in (("x_0", x_0), ("eps", eps), ("t", t)):
            if (after := described(getattr(pairing, name))) != described(before):
                raise ValueError(f"pair() returned {name} as {after}, not {described(before)}")
    return objective.inputs(pairing.x_0, pairing.eps, pairing.t, pairing.cond)


def batch_of(objective: Objective, inputs: Inputs, moment: Moment | None, *, weighted: bool = True) -> TrainingBatch:
    """Return the batch of these inputs for the loss. Unless it is `weighted`, all its weights are 1."""
    return TrainingBatch(*inputs[:5], inputs.target, objective.noised, objective.factor if weighted else None, moment)


def minimise(
    objective: Objective, predict: Predictor, batch: TrainingBatch, auxiliary: nn.Module | None
) -> tuple[Tensor, Tensor | None]:
    """Return the loss to minimise, a scalar, and the unweighted loss of each item (B,).

    The first is the mean of the weighted losses, plus the loss of the variance. The second is None for a loss in one
    call. Raises `ValueError` for a loss that breaks its contract.
    """
    if objective.in_one_call:
        losses, loss = None, checked("mean_loss", objective.loss.mean_loss(predict, batch, auxiliary), ())
        if predict.output is None:
            raise ValueError("mean_loss() makes no prediction at batch.x_t; override loss() alone")
    else:
        losses = item_losses(objective, predict, batch, auxiliary)
        applied = objective.loss.weighted or not objective.weighted
        loss = (losses if applied else losses * batch.weight).mean()
    if objective.bound is None:
        return loss, losses
    if predict.output is None:
        raise ValueError("it makes no prediction at batch.x_t, which --learn-variance needs; train without that")
    return loss + objective.variance_loss(predict.output, predict.inputs), losses


def item_losses(objective: Objective, predict: Predict, batch: TrainingBatch, auxiliary: nn.Module | None) -> Tensor:
    """Return the unweighted loss of each item (B,). Raises `ValueError` for another shape."""
    return checked("loss", objective.loss.loss(predict, batch, auxiliary), tuple(batch.t.shape))


def recorded_losses(objective: Objective, prediction: Tensor, target: Tensor, t: Tensor) -> Tensor:
    """Return the unweighted loss of each item (B,) for predictions that were made before.

    Nothing else of their batches was kept. Tensors without values stand for the rest, and refuse to be computed with.
    """
    x_0, eps, x_t = (torch.empty_like(target, device="meta") for _ in range(3))
    predict = Recorded(objective, prediction, x_t)
    batch = TrainingBatch(x_0, eps, t, None, x_t, target, objective.noised, None, None)
    with blaming(f"loss {objective.loss.name}"):
        try:
            return item_losses(objective, predict, batch, None)
        except RuntimeError as error:
            raise ValueError(MORE) from error


def checked(method: str, losses: object, shape: tuple[int, ...]) -> Tensor:
    """Return the result of a loss. Raises `ValueError` unless it is a tensor of this shape."""
    if not isinstance(losses, Tensor) or tuple(losses.shape) != shape:
        expected = f"a loss for each item, {shape}" if shape else "a scalar"
        raise ValueError(f"{method}() returned {described(losses)}, not {expected}")
    return losses


def described(value: object) -> str:
    """Return a value in a few words: `(8, 2) float32` for a tensor, and the type of anything else."""
    if isinstance(value, Tensor):
        return f"{tuple(value.shape)} {str(value.dtype).removeprefix('torch.')}"
    return "None" if value is None else f"a {type(value).__name__}"
