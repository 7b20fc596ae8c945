"""Another model beside the one that is sampled: its denoiser at the levels, and in the model units, of that one."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from difftool.data.condition import Condition
from difftool.diffusion.estimate import Denoise, Estimate
from difftool.diffusion.schedule import Level, Schedule
from difftool.errors import UsageError

if TYPE_CHECKING:
    from difftool.data.facts import DataFacts
    from difftool.data.scaling import Scaling
    from difftool.sampling.source import Source

LARGEST_SPREAD = 1.05
"""The largest quotient of two ratios of scales, as two draws of the same data have them: noise of one deviation in the
model units of one model then has almost one deviation in those of the other."""


def check_same_data(source: Source, other: Source) -> None:
    """Raise `UsageError` unless data of two sources have one shape and one codec, scaled in the same proportions."""
    if source.data.shape != other.data.shape:
        raise UsageError(
            f"the data of {other.name} are {other.data.words}, and those of {source.name} {source.data.words}"
        )
    if not same_latents(source, other):
        raise UsageError(f"{other.name} works in other latents than {source.name}; both need the same codec")
    ratios = ratios_of_scales(source.space.scaling, other.space.scaling)
    if max(ratios) > LARGEST_SPREAD * min(ratios):
        raise UsageError(
            f"{other.name} scales the coordinates or channels of its data in other proportions than {source.name}, by "
            f"{min(ratios):.3g} to {max(ratios):.3g} times, so the noise of one is not that of the other"
        )


def same_latents(a: Source, b: Source) -> bool:
    """Return whether two sources work on the data themselves, or on latents of the same codec."""
    if a.latents is None or b.latents is None:
        return a.latents is b.latents
    ours, theirs = a.latents.codec.state_dict(), b.latents.codec.state_dict()
    if (a.latents.name, a.space.shape, a.data.scaling) != (b.latents.name, b.space.shape, b.data.scaling):
        return False
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def matched(denoise: Denoise, source: Source, other: Source) -> Denoise:
    """Return the denoiser of another source, called with the states and levels of this one.

    Data, or raw latents, are shift + scale x_0 in both. With r = scale/scale' and o = (shift - shift')/scale', where
    primes mark the other source, x_0' = r x_0 + o. Hence x_t' = r x_t + alpha o is a state at the level (alpha, r
    sigma) with the same eps.
    """
    mine, its = source.space.scaling, other.space.scaling
    same_table = same_schedule(source.schedule, other.schedule)
    if mine == its:
        return denoise if same_table else lambda x, level: denoise(x, Level.of(level.alpha, level.sigma))
    ratios = ratios_of_scales(mine, its)
    r = math.exp(sum(map(math.log, ratios)) / len(ratios))
    ends = (1,) * (len(source.space.shape) - 1)
    scale, shift, scale_, shift_ = (
        torch.tensor(values, dtype=torch.float64).view(-1, *ends)
        for values in (mine.scale, mine.shift, its.scale, its.shift)
    )
    r_c, o = (values.to(source.device, torch.float32) for values in (scale / scale_, (shift - shift_) / scale_))

    def denoise_matched(x: Tensor, level: Level) -> Estimate:
        estimate = denoise(r_c * x + level.alpha * o, Level.of(level.alpha, r * level.sigma))
        return replace(estimate, variance_fraction=None).with_x_0((estimate.x_0 - o) / r_c, x, level)

    return denoise_matched


def ratios_of_scales(mine: Scaling, its: Scaling) -> list[float]:
    """Return scale/scale' for each channel or coordinate, one if both have one for all."""
    channels = max(len(mine.scale), len(its.scale))
    pairs = zip(_repeated(mine.scale, channels), _repeated(its.scale, channels), strict=True)
    return [a / b for a, b in pairs]


def _repeated(values: tuple[float, ...], count: int) -> tuple[float, ...]:
    return values * count if len(values) == 1 else values


def same_schedule(a: Schedule, b: Schedule) -> bool:
    """Return whether two schedules have the same tables, so that t means the same level in both."""
    return torch.equal(a.alpha, b.alpha) and torch.equal(a.sigma, b.sigma)


def condition_for(other: Source, condition: Condition | None, mine: DataFacts) -> Condition | None:
    """Return the part of a condition, in the units of a network for data `mine`, that another source takes.

    Raises `UsageError` if it takes something else.
    """
    takes = other.space.condition.shapes
    fields = {} if condition is None else condition.fields()
    if missing := [name for name in takes if name not in fields]:
        if other.needs_condition or len(missing) < len(takes):
            raise UsageError(f"{other.name} needs a {missing[0]}, and the samples have none")
        return None
    for name, shape in takes.items():
        if mine.condition.shapes.get(name) != shape or (name == "label" and mine.class_names != other.data.class_names):
            raise UsageError(f"{other.name} knows {other.data.conditions_text}, not {mine.conditions_text}")
    if condition is None or not takes:
        return None
    kept = {name: fields[name] for name in takes}
    if "vector" in kept and mine.vector_scaling != other.data.vector_scaling:
        kept["vector"] = other.data.vector_scaling.to_model(mine.vector_scaling.to_data(kept["vector"]))
    return Condition(**kept, hidden=condition.hidden)
