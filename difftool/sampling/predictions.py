"""The denoisers of a batch of samples: those that a guidance combines, or the one of the model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from difftool.data.condition import Condition
from difftool.devices import autocast
from difftool.diffusion.estimate import Denoise, Estimate
from difftool.errors import DifftoolError, UsageError, blaming
from difftool.sampling.denoiser import Counted
from difftool.sampling.guidance import GuidanceSpec
from difftool.sampling.matching import check_same_data, condition_for, matched

if TYPE_CHECKING:
    from difftool.components import Guidance
    from difftool.diffusion.schedule import Level
    from difftool.sampling.source import Source


class BatchPredictions:
    """The counted denoisers of the samples first..first+count-1. It is what `Predictions` describes."""

    def __init__(
        self, source: Source, condition: Condition | None, *, first: int, count: int, precision: str = "fp32"
    ) -> None:
        """Take the condition of these samples as the user gave it, or None."""
        self.source, self.first, self.count = source, first, count
        condition = source.model_condition(condition)
        self.condition = None if condition is None else condition.to(source.device)
        self.counted: list[Counted] = []
        """The denoisers made so far."""
        self.gradients = False
        """True once one of them keeps gradients."""
        self._autocast = autocast(source.device, precision)

    def __call__(
        self,
        *,
        hidden: bool = False,
        condition: Condition | None = None,
        run: Path | None = None,
        weights: str = "ema",
        gradients: bool = False,
    ) -> Denoise:
        if condition is not None:
            if hidden:
                raise ValueError("a denoiser is either hidden or under a condition, not both")
            if len(condition) != self.count:
                raise ValueError(f"the condition is of {len(condition)} items, and the batch has {self.count}")
        used = None if hidden else self.condition if condition is None else condition
        if run is None:
            if hidden or condition is not None:
                self._check_condition(hidden)
            denoise = self._own(used, gradients)
        else:
            denoise = self._other(Path(run), weights, used, gradients)
        self.gradients = self.gradients or gradients
        self.counted.append(Counted(denoise))
        return self.counted[-1]

    @property
    def calls(self) -> int:
        """Network calls so far."""
        return sum([counted.calls for counted in self.counted])

    def spec(self) -> GuidanceSpec:
        """Return the samples of the batch, for a guidance."""
        space, data = self.source.space, self.source.data
        return GuidanceSpec(
            shape=space.shape,
            schedule=self.source.schedule,
            sigma_data=space.std,
            bounds=space.bounds,
            is_image=data.is_image,
            condition=self.condition,
            count=self.count,
            first=self.first,
            decode=self.source.decode,
            scaling=data.scaling,
            device=self.source.device,
        )

    def _check_condition(self, hidden: bool) -> None:
        """Raise `UsageError` where the model has no condition to hide or to change, or cannot do without."""
        takes = self.source.data.condition.shapes
        if not takes:
            raise UsageError(f"--guidance: {self.source.name} has no classes, and no other condition")
        if hidden and self.condition is None:
            flags = " and ".join(f"--{name}" for name in takes)
            raise UsageError(f"--guidance: needs a {flags} to guide towards")
        if hidden and self.source.needs_condition:
            raise UsageError(
                "--guidance: the model was trained with --condition-dropout 0 and has nothing to guide away from"
            )

    def _own(self, condition: Condition | None, gradients: bool) -> Denoise:
        return self.source.denoiser(self.count, condition=condition, autocast=self._autocast, gradients=gradients)

    def _other(self, run: Path, weights: str, condition: Condition | None, gradients: bool) -> Denoise:
        """Return the denoiser of another run. Raises `DifftoolError`."""
        try:
            other = self.source.other(run, weights, check_same_data)
            its_condition = condition_for(other, condition, self.source.space)
        except DifftoolError as error:
            kind = UsageError if isinstance(error, UsageError) else DifftoolError
            raise kind(f"--guidance: {error}") from error
        denoise = other.denoiser(self.count, condition=its_condition, autocast=self._autocast, gradients=gradients)
        return matched(denoise, self.source, other)


def guided(guidance: Guidance, predictions: BatchPredictions) -> Denoise:
    """Return the denoiser that a guidance makes of predictions. Raises `UsageError` where it does not fit."""
    what = f"guidance {guidance.name}"
    with blaming(what, refusal=UsageError):
        denoise = guidance.denoiser(predictions, predictions.spec())

    def denoise_or_blame(x: Tensor, level: Level) -> Estimate:
        with blaming(what), torch.set_grad_enabled(predictions.gradients):
            found: object = denoise(x, level)
        if not isinstance(found, Estimate) or not found.x_0.shape == found.eps.shape == x.shape:
            raise DifftoolError(f"{what} gave no estimate shaped {tuple(x.shape)}")
        return detached(found) if predictions.gradients else found

    return denoise_or_blame


def detached(estimate: Estimate) -> Estimate:
    """Return an estimate without the graph that led to it."""
    fraction, u = estimate.variance_fraction, estimate.unconditional
    return replace(
        estimate,
        x_0=estimate.x_0.detach(),
        eps=estimate.eps.detach(),
        variance_fraction=None if fraction is None else fraction.detach(),
        unconditional=None if u is None else detached(u),
    )


def calls_at(guidance: Guidance | None, spec: GuidanceSpec) -> Callable[[Level], int]:
    """Return a function that gives the network calls of one estimate at a level, counted on estimates of 0."""
    if guidance is None:
        return _one

    @cache
    def count(level: Level) -> int:
        trial = _Trial()
        with blaming(f"guidance {guidance.name}"), torch.enable_grad():
            denoise = guidance.denoiser(trial, spec)
            denoise(torch.zeros(spec.count, *spec.shape, device=spec.device), level)
        return trial.calls

    return count


def _one(_level: Level) -> int:
    return 1


class _Trial:
    """Denoisers that always estimate 0."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, **_: object) -> Denoise:
        def zero(x: Tensor, level: Level) -> Estimate:
            self.calls += 1
            return Estimate(0.0 * x, x / level.sigma)

        return zero
