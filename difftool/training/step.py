"""One training step: predict, loss, backward, clip, update, average."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value
from torch.nn.utils import clip_grads_with_norm_

from difftool.compiling import compiled, compiled_network
from difftool.components import Loss
from difftool.devices import autocast, without_denormals
from difftool.distributed import SINGLE, ProcessGroup
from difftool.errors import DifftoolError, blaming
from difftool.training.auxiliary import trainable
from difftool.training.batch import Moment
from difftool.training.minimise import Predictor, batch_of, minimise
from difftool.training.phases import AVERAGE, BACKWARD, FORWARD, OPTIMIZER, REST, enter
from difftool.training.vectors import views_of

if TYPE_CHECKING:
    from difftool.settings import Training
    from difftool.training.batch import Network
    from difftool.training.loss import Inputs, Objective
    from difftool.training.state import TrainState


@dataclass(slots=True)
class StepResult:
    """A completed training step. Tensors stay on the device."""

    step: int
    """The number of completed steps, this one included."""
    inputs: Inputs
    """The batch, or this process's share of it."""
    prediction: Tensor | None
    """The prediction of the network (B, *shape) at the batch's own x_t, or None if the loss made none."""
    losses: Tensor | None
    """The unweighted loss of each item (B,), or None if it follows from the prediction."""
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


@dataclass(frozen=True, slots=True)
class Minimised:
    """The result of a backward pass, detached."""

    loss: Tensor
    losses: Tensor | None = None
    prediction: Tensor | None = None


Backward = Callable[["Inputs", bool], Minimised]
"""(inputs, self_cond): computes the gradients of all weights."""


def make_step(
    state: TrainState, objective: Objective, settings: Training, steps: int, group: ProcessGroup = SINGLE
) -> TrainStep:
    """Return the function that makes a step of a training of so many steps."""
    backward = make_backward(state, objective, settings, steps, group)
    after_step = None if type(objective.loss).after_step is Loss.after_step else objective.loss.after_step
    optimizer, scaler = state.optimizer, state.scaler

    @without_denormals()
    def step(inputs: Inputs, lr: float, self_cond: bool) -> StepResult:
        optimizer.clear_gradients()
        found = backward(inputs, self_cond)
        enter(OPTIMIZER)
        scaler.unscale_(optimizer)  # type: ignore[arg-type]
        grad_norm = group.norm(optimizer.gradient_norm())
        finite = grad_norm < math.inf
        if settings.clip:
            clip_grads_with_norm_(optimizer.parameters, settings.clip, grad_norm)
        state.moving = True
        optimizer.update(lr, finite)  # a step whose gradient is not finite is masked
        scaler.update()
        if after_step is not None:
            with blaming(f"loss {objective.loss.name}"), torch.no_grad():
                after_step(state.network, state.auxiliary)
        enter(AVERAGE)
        state.averages.update()  # averaging weights that a masked step left alone does no harm
        state.step += 1
        state.moving = False
        enter(REST)
        return StepResult(state.step, inputs, found.prediction, found.losses, found.loss, grad_norm, finite, lr)

    return step


def make_backward(
    state: TrainState, objective: Objective, settings: Training, steps: int, group: ProcessGroup
) -> Backward:
    """Return the backward pass: compiled as a whole for small networks, with compiled blocks for others."""

    def eager() -> Backward:
        network = compiled_network(state.network) if settings.compile else state.network
        return eager_backward(network, state, objective, settings, steps, group)  # type: ignore[arg-type]

    varies = objective.self_condition or objective.bound is not None or any(True for _ in state.network.buffers())
    varies = varies or settings.checkpoint_activations  # torch.func and hooks of saved tensors exclude each other
    plain = (
        autocast(objective.device, settings.precision) is None
        and settings.accumulate == 1
        and group.size == 1
        and not varies
    )
    joined = state.auxiliary is None and all(piece.is_vector for piece in state.optimizer.pieces)
    if settings.compile and plain and joined:
        return first_that_compiles(compiled_backward(state, objective), eager)
    return eager()


def eager_backward(
    network: nn.Module,
    state: TrainState,
    objective: Objective,
    settings: Training,
    steps: int,
    group: ProcessGroup,
) -> Backward:
    """Return the backward pass by autograd, part by part of the batch. Only the last part exchanges gradients."""
    context = autocast(objective.device, settings.precision) or nullcontext
    passing = () if group.size == 1 else (RuntimeError,)  # of which some say that another process is gone
    assert isinstance(settings.batch_size, int)
    loss_factor, first_item = group.loss_factor(settings.batch_size), group.shard(settings.batch_size).start
    wrapped, first = group.wrap(network), True
    weights = [weight for _, weight in trainable(state.auxiliary)]
    frozen = any(not weight.requires_grad for weight in state.network.parameters())

    def called(net_input: Tensor, *others: Any) -> Tensor:
        if frozen:  # behind frozen layers, torch's GroupNorm on the CPU needs an input with a gradient: it would crash
            net_input = net_input.detach().requires_grad_()
        with blaming(objective.network, *passing), context():
            output: Tensor = wrapped(net_input, *others)
            return output

    def backward(inputs: Inputs, self_cond: bool) -> Minimised:
        nonlocal wrapped, first
        found, done = [], 0
        for part, share in parts(inputs, settings.accumulate):
            enter(FORWARD)
            moment = Moment(state.step, steps, (settings.seed, "loss", state.step, first_item + done))
            done += len(part.t)
            predict = Predictor(objective, called, part, self_cond=self_cond, guarded=partial(within, context))
            with group.averaging(wrapped, now=done == len(inputs.t)):
                with blaming(f"loss {objective.loss.name}", *passing):
                    loss, losses = minimise(objective, predict, batch_of(objective, part, moment), state.auxiliary)
                    if first and frozen and not group.sharded:
                        check_trainable(loss, [*state.optimizer.weights.values()])
                    if not loss.requires_grad:
                        raise ValueError("its losses do not depend on the network; predict outside of torch.no_grad()")
                weight = share * loss_factor
                loss = loss if weight == 1.0 else weight * loss
                enter(BACKWARD)
                with blaming(f"the backward pass of loss {objective.loss.name} and {objective.network}", *passing):
                    state.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
            output = predict.output
            prediction = None if output is None else objective.prediction(output).detach()
            found.append(Minimised(loss.detach(), None if losses is None else losses.detach(), prediction))
        if weights:
            group.average_gradients(weights)
        state.optimizer.take_gradients()
        if first and frozen and all(weight.grad is None for weight in state.optimizer.parameters):  # of sharded ones
            raise DifftoolError(NOTHING_TRAINS)
        if first:
            wrapped, first = group.wrap_again(wrapped, network), False
        return found[0] if len(found) == 1 else together(found)

    return backward


def within(context: Callable[[], AbstractContextManager[object]], network: nn.Module) -> Network:
    """Return a network that is called in a context, such as that of lower precision."""

    def call(*arguments: Any) -> Tensor:
        with context():
            output: Tensor = network(*arguments)
            return output

    return call


def together(parts: Sequence[Minimised]) -> Minimised:
    """Return the results of the parts of a batch as one."""

    def joined(tensors: Sequence[Tensor | None]) -> Tensor | None:
        present = [tensor for tensor in tensors if tensor is not None]
        return torch.cat(present) if len(present) == len(tensors) else None

    losses, predictions = [part.losses for part in parts], [part.prediction for part in parts]
    return Minimised(torch.stack([part.loss for part in parts]).sum(), joined(losses), joined(predictions))


def check_trainable(loss: Tensor, weights: Sequence[Tensor]) -> None:
    """Raise `DifftoolError` if a loss depends on none of the weights that train, since others are frozen."""
    trained, seen, ahead = {id(weight) for weight in weights}, set(), [loss.grad_fn]
    while ahead:
        node = ahead.pop()
        if node is None or node in seen:
            continue
        if id(getattr(node, "variable", None)) in trained:  # the end of the graph, where a weight gets its gradient
            return
        seen.add(node)
        ahead += [before for before, _ in node.next_functions]
    raise DifftoolError(NOTHING_TRAINS)


NOTHING_TRAINS = "no parameter that trains has a part in the loss; train others too"


def parts(inputs: Inputs, count: int) -> Iterator[tuple[Inputs, float]]:
    """Yield a batch in at most this many parts, each with its share of the items as the weight of its mean loss."""
    size = len(inputs.t)
    if count == 1:
        yield inputs, 1.0
        return
    for part in inputs.split(-(-size // count)):
        yield part, len(part.t) / size


def compiled_backward(state: TrainState, objective: Objective) -> Backward:
    """Return one compiled function from the vectors of weights to their gradients."""
    network, pieces = state.network, state.optimizer.pieces
    vectors = [piece.tensor.detach() for piece in pieces]
    gradients = [piece.tensor.grad for piece in pieces if piece.tensor.grad is not None]
    parts = [(piece.names, [weight.detach() for weight in piece.weights]) for piece in pieces]

    def loss_of(vectors: list[Tensor], inputs: Inputs) -> tuple[Tensor, dict[str, Tensor]]:
        views = {
            name: view
            for vector, (names, like) in zip(vectors, parts, strict=True)
            for name, view in zip(names, views_of(vector, like), strict=True)
        }
        predict = Predictor(objective, lambda *arguments: functional_call(network, views, arguments), inputs)
        loss, losses = minimise(objective, predict, batch_of(objective, inputs, None), None)
        rest = {"losses": losses, "prediction": predict.output}
        return loss, {name: tensor for name, tensor in rest.items() if tensor is not None}

    gradient = compiled(grad_and_value(loss_of, has_aux=True), objective.device, fullgraph=True, dynamic=False)
    first = True

    def backward(inputs: Inputs, self_cond: bool) -> Minimised:
        nonlocal first
        enter(FORWARD)  # and backward
        new, (loss, rest) = gradient(vectors, inputs)
        if first and not any(bool(value.any()) for value in new):  # autograd says whether the loss depends on weights
            raise RuntimeError("the gradient is 0")
        first = False
        for own, value in zip(gradients, new, strict=True):
            own.copy_(value)
        return Minimised(loss, **rest)

    return backward


def first_that_compiles(whole: Backward, fallback: Callable[[], Backward]) -> Backward:
    """Return a backward pass that uses the fallback if the first call of the whole one fails."""
    chosen: Backward | None = None

    def backward(inputs: Inputs, self_cond: bool) -> Minimised:
        nonlocal chosen
        if chosen is None:
            try:
                result = whole(inputs, self_cond)
            except RuntimeError:  # the base of what torch.compile raises
                warnings.warn("the backward pass cannot be compiled as a whole, so only the network is", stacklevel=2)
                chosen = fallback()
            else:
                chosen = whole
                return result
        return chosen(inputs, self_cond)

    return backward
