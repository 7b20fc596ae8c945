"""One training step: predict, loss, backward, clip, update, average."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value
from torch.nn.utils import clip_grads_with_norm_

from difftool.devices import autocast
from difftool.distributed import SINGLE, ProcessGroup
from difftool.errors import DifftoolError, blaming
from difftool.training.optimizer import views_of

if TYPE_CHECKING:
    from difftool.settings import Training
    from difftool.training.loss import Inputs, Objective
    from difftool.training.state import TrainState


@dataclass(slots=True)
class StepResult:
    """A completed training step. Tensors stay on the device."""

    step: int
    """The number of completed steps, this one included."""
    inputs: Inputs
    """The batch, or this process's share of it."""
    prediction: Tensor
    """The prediction of the network (B, *shape)."""
    loss: Tensor
    """The minimised loss, a scalar. With several processes, their mean is the loss of the batch."""
    grad_norm: Tensor
    """The norm of all gradients, before they are clipped."""
    finite: Tensor
    """True if the norm is finite; otherwise the step changed nothing."""
    lr: float
    metrics: Mapping[str, Any] | None = None
    """The row that was logged after this step, if any."""
    preview: bool = False
    """True if a preview is due."""


TrainStep = Callable[["Inputs", float, bool], StepResult]
"""(inputs, learning rate, self_cond): updates the weights and their average."""

Backward = Callable[["Inputs", bool], tuple[Tensor, Tensor]]
"""(inputs, self_cond): computes the gradients of all weights, and returns (loss, prediction)."""


def make_step(state: TrainState, objective: Objective, settings: Training, group: ProcessGroup = SINGLE) -> TrainStep:
    """Return the function that makes a training step."""
    backward = make_backward(state, objective, settings, group)
    optimizer, scaler = state.optimizer, state.scaler

    def step(inputs: Inputs, lr: float, self_cond: bool) -> StepResult:
        optimizer.clear_gradients()
        loss, prediction = backward(inputs, self_cond)
        scaler.unscale_(optimizer)  # type: ignore[arg-type]
        grad_norm = optimizer.gradient_norm()
        finite = grad_norm < math.inf
        if settings.clip:
            clip_grads_with_norm_(optimizer.parameters, settings.clip, grad_norm)
        state.moving = True
        optimizer.update(lr, finite)  # a step whose gradient is not finite is masked
        scaler.update()
        if state.ema is not None:  # averaging weights that a masked step left alone does no harm
            state.ema.update()
        state.step += 1
        state.moving = False
        return StepResult(state.step, inputs, prediction, loss, grad_norm, finite, lr)

    return step


def make_backward(state: TrainState, objective: Objective, settings: Training, group: ProcessGroup) -> Backward:
    """Return the backward pass: compiled as a whole for small networks, with a compiled network for others."""

    def eager() -> Backward:
        network = torch.compile(state.network) if settings.compile else state.network
        return eager_backward(network, state, objective, settings, group)  # type: ignore[arg-type]

    varies = objective.self_condition or objective.bound is not None or any(True for _ in state.network.buffers())
    plain = settings.precision == "fp32" and settings.accumulate == 1 and group.size == 1 and not varies
    if settings.compile and plain and state.optimizer.vector is not None:
        return first_that_compiles(compiled_backward(state, objective), eager)
    return eager()


def eager_backward(
    network: nn.Module, state: TrainState, objective: Objective, settings: Training, group: ProcessGroup
) -> Backward:
    """Return the backward pass by autograd, part by part of the batch. Only the last part exchanges gradients."""
    context = autocast(objective.device, settings.precision) or nullcontext
    passing = () if group.size == 1 else (RuntimeError,)  # of which some say that another process is gone
    assert isinstance(settings.batch_size, int)
    loss_factor = group.loss_factor(settings.batch_size)
    wrapped, first = group.wrap(network), True

    def backward(inputs: Inputs, self_cond: bool) -> tuple[Tensor, Tensor]:
        nonlocal wrapped, first
        losses, predictions, rest = [], [], len(inputs.t)
        for part, share in parts(inputs, settings.accumulate):
            rest -= len(part.t)
            with group.averaging(wrapped, now=rest == 0):
                with blaming(objective.network, *passing), context():
                    output = objective.predict(wrapped, part, self_cond=self_cond)
                loss, weight = objective.loss(output, part), share * loss_factor
                loss = loss if weight == 1.0 else weight * loss
                if not loss.requires_grad:
                    raise DifftoolError("no parameter that trains has a part in the loss; train others too")
                state.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
            losses.append(loss.detach())
            predictions.append(objective.prediction(output).detach())
        if first:
            wrapped, first = group.wrap_again(wrapped, network), False
        if len(losses) == 1:
            return losses[0], predictions[0]
        return torch.stack(losses).sum(), torch.cat(predictions)

    return backward


def parts(inputs: Inputs, count: int) -> Iterator[tuple[Inputs, float]]:
    """Yield a batch in at most this many parts, each with its share of the items as the weight of its mean loss."""
    size = len(inputs.t)
    if count == 1:
        yield inputs, 1.0
        return
    for part in inputs.split(-(-size // count)):
        yield part, len(part.t) / size


def compiled_backward(state: TrainState, objective: Objective) -> Backward:
    """Return one compiled function from the vector of weights to its gradient."""
    network, vector = state.network, state.optimizer.vector
    assert vector is not None
    assert vector.grad is not None
    weights, gradient = vector.detach(), vector.grad
    trained = ((name, weight.detach()) for name, weight in network.named_parameters() if weight.requires_grad)
    names, like = zip(*trained, strict=True)

    def loss_of(weights: Tensor, inputs: Inputs) -> tuple[Tensor, Tensor]:
        views = dict(zip(names, views_of(weights, like), strict=True))
        output = objective.predict(lambda *arguments: functional_call(network, views, arguments), inputs)
        return objective.loss(output, inputs), output

    compiled = torch.compile(grad_and_value(loss_of, has_aux=True), fullgraph=True, dynamic=False)

    def backward(inputs: Inputs, self_cond: bool) -> tuple[Tensor, Tensor]:
        new, (loss, prediction) = compiled(weights, inputs)
        gradient.copy_(new)
        return loss, prediction

    return backward


def first_that_compiles(compiled: Backward, fallback: Callable[[], Backward]) -> Backward:
    """Return a backward pass that uses the fallback if the first call of the compiled one fails."""
    chosen: Backward | None = None

    def backward(inputs: Inputs, self_cond: bool) -> tuple[Tensor, Tensor]:
        nonlocal chosen
        if chosen is None:
            try:
                result = compiled(inputs, self_cond)
            except RuntimeError:  # the base of what torch.compile raises
                warnings.warn("the backward pass cannot be compiled as a whole, so only the network is", stacklevel=2)
                chosen = fallback()
            else:
                chosen = compiled
                return result
        return chosen(inputs, self_cond)

    return backward
