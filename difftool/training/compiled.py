"""Compiled training: of a small network the whole step, forward, backward, Adam and average, as one function.

Its layers are too small for compiling them alone to pay; what costs is the way from one to the next.
"""

from __future__ import annotations

import math
import warnings
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.func import functional_call, grad_and_value

from difftool.training.loop import Outcome, TrainState, TrainStep, eager_step
from difftool.training.optimizer import BETA1, BETA2, Moments, adam, shrinking
from difftool.training.weights import laid_out

if TYPE_CHECKING:
    from difftool.settings import Training
    from difftool.training.inputs import Inputs
    from difftool.training.loss import Objective


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
