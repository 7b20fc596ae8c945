"""One training step."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor
from torch.func import functional_call, grad_and_value

from difftool.devices import autocast
from difftool.training.loss import Inputs, Objective
from difftool.training.optimizer import BETA1, BETA2, Moments, adam, laid_out, shrinking
from difftool.training.state import TrainState

if TYPE_CHECKING:
    from difftool.settings import Training
    from difftool.training.loss import Inputs, Objective


class Outcome(NamedTuple):
    """What a step came to, on the device."""

    loss: Tensor
    """What was minimised, a scalar."""
    answer: Tensor
    """What the network said (B, *shape)."""
    grad_norm: Tensor
    """Of all gradients together, before they are clipped."""
    sound: Tensor
    """Whether that is finite; else the step changed nothing."""


TrainStep = Callable[[Inputs, float, bool], Outcome]
"""(inputs, learning rate, whether to guess x_0 first): moves the weights and their average."""


def parts(inputs: Inputs, count: int) -> Iterator[tuple[Inputs, float]]:
    """A batch in at most so many parts, each with its share of the items: their losses, so weighted, add up."""
    size = len(inputs.t)
    if count == 1:
        yield inputs, 1.0
        return
    for part in inputs.split(-(-size // count)):
        yield part, len(part.t) / size


def eager_step(
    state: TrainState,
    objective: Objective,
    settings: Training,
    device: torch.device,
    forward: Callable[..., Tensor] | None = None,
    *,
    loss_factor: float = 1.0,
) -> TrainStep:
    """A step as torch runs it, call by call.

    `forward` stands in for the network where it was compiled, or wrapped to share gradients; then the loss is
    multiplied by the `loss_factor` of this process's part.
    """
    network: Callable[..., Tensor] = state.network if forward is None else forward
    optimizer, scaler = state.optimizer, state.scaler
    context = autocast(device, settings.precision) or nullcontext

    def step(inputs: Inputs, lr: float, guess: bool) -> Outcome:
        losses, answers = [], []
        optimizer.clear()
        for part, share in parts(inputs, settings.accumulate):
            with context():
                output = objective.ask(network, part, guess=guess)
            loss, weight = objective.loss(output, part), share * loss_factor
            loss = loss if weight == 1.0 else weight * loss
            scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
            losses.append(loss.detach())
            answers.append(objective.answer(output).detach())
        scaler.unscale_(optimizer)  # type: ignore[arg-type]
        norm = optimizer.norm()
        sound = norm < math.inf
        if settings.clip:
            optimizer.clip(settings.clip, norm)
        optimizer.step(lr, sound)
        scaler.update()
        if state.ema is not None:  # what a masked step left alone may be averaged as well
            state.ema.update()
        if len(losses) == 1:
            return Outcome(losses[0], answers[0], norm, sound)
        return Outcome(torch.stack(losses).sum(), torch.cat(answers), norm, sound)

    return step


def compiled_step(state: TrainState, objective: Objective, settings: Training, device: torch.device) -> TrainStep:
    """The step, compiled as far as may be: as a whole, or else its network."""
    vectors = state.optimizer.vectors()
    simple = not objective.self_condition and objective.bound is None and not any(True for _ in state.network.buffers())
    if vectors is not None and simple and settings.precision == "fp32" and settings.accumulate == 1:
        return _Attempt(state, objective, settings, device, whole_step(state, objective, settings, *vectors))
    return network_step(state, objective, settings, device)


def network_step(state: TrainState, objective: Objective, settings: Training, device: torch.device) -> TrainStep:
    """The step as torch runs it, but for the network."""
    return eager_step(state, objective, settings, device, torch.compile(state.network))


def whole_step(
    state: TrainState, objective: Objective, settings: Training, weights: Tensor, moments: Moments
) -> TrainStep:
    """One compiled function that moves the vectors of weights, moments and average in place."""
    network, average = state.network, state.ema.averaged[0] if state.ema else None
    names = [name for name, _ in network.named_parameters()]
    like = [p.detach() for p in network.parameters()]

    def loss_of(vector: Tensor, inputs: Inputs) -> tuple[Tensor, Tensor]:
        views = dict(zip(names, laid_out(vector, like), strict=True))
        output = objective.ask(lambda *shown: functional_call(network, views, shown), inputs)
        return objective.loss(output, inputs), output

    def step(inputs: Inputs, lr: Tensor, decay: Tensor, bias: Tensor) -> Outcome:
        gradient, (loss, answer) = grad_and_value(loss_of, has_aux=True)(weights, inputs)
        norm = torch.linalg.vector_norm(gradient)
        sound = norm < math.inf
        if settings.clip:
            gradient = gradient * shrinking(settings.clip, norm)
        moved, after = adam(weights, gradient, moments, lr, bias)
        for kept, new in zip((weights, *moments), (moved, *after), strict=True):
            kept.copy_(torch.where(sound, new, kept))
        if average is not None:
            average.lerp_(weights, 1 - decay)
        return Outcome(loss, answer, norm, sound)

    fused = torch.compile(step, fullgraph=True, dynamic=False)
    rate, decay = torch.zeros(()), torch.zeros(())  # as plain numbers they would be compiled in
    betas = torch.tensor([BETA1, BETA2], device=weights.device)

    def whole(inputs: Inputs, lr: float, guess: bool) -> Outcome:
        rate.fill_(lr)
        decay.fill_(state.ema.decay if state.ema else 0.0)
        outcome: Outcome = fused(inputs, rate, decay, 1 - betas ** (moments.steps + 1))
        if state.ema is not None:
            state.ema.updates += 1
        return outcome

    return whole


class _Attempt:
    """The whole step, or, where the first one shows that it cannot be compiled, the network alone."""

    def __init__(
        self, state: TrainState, objective: Objective, settings: Training, device: torch.device, whole: TrainStep
    ) -> None:
        self._given = (state, objective, settings, device)
        self._step, self._sure = whole, False

    def __call__(self, inputs: Inputs, lr: float, guess: bool) -> Outcome:
        if self._sure:
            return self._step(inputs, lr, guess)
        try:
            outcome = self._step(inputs, lr, guess)
        except torch._dynamo.exc.TorchDynamoException:
            warnings.warn("the step cannot be compiled as a whole, so the network is compiled alone", stacklevel=2)
            self._step = network_step(*self._given)
            outcome = self._step(inputs, lr, guess)
        self._sure = True
        return outcome
