"""Paths from noise to data: their two ends, files of these, and how straight the paths are."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from difftool import CLEAN, Level, Sampler, Samples, Schedule, UsageError, component, progress

if TYPE_CHECKING:
    from difftool import Denoise, Source, Step

FIELDS = ("items", "noise", "shift", "scale", "bounds", "form")
"""The arrays of a file of pairs. Items are in the units of the data; `bounds` is empty if there are none."""


def noise_of(model: Source, seed: int, first: int, count: int) -> Tensor:
    """Return the standard normal noise of the pairs first..first+count-1, (count, *shape), each by its own number."""
    rows = [torch.Generator().manual_seed(2**32 * seed + number) for number in range(first, first + count)]
    shape = model.data.shape
    return torch.stack([torch.randn(shape, generator=random) for random in rows]).to(model.device)


def path(denoise: Denoise, noise: Tensor, levels: Sequence[Level], sampler: Sampler) -> Iterator[Step]:
    """Yield the steps from noise (B, *shape) to data. Raises `UsageError` for a sampler that draws noise itself."""

    def refuse(step: int) -> Tensor:
        raise UsageError(f"--sampler: {sampler.name} draws noise, so its samples do not follow from where they start")

    yield from sampler.sample(denoise, levels[0].norm * noise, levels, refuse)


def levels_of(schedule: Schedule, steps: int) -> list[Level]:
    """Return evenly spaced levels from noise to data, the clean end included."""
    spacing = component("spacing", "trailing")
    return [*spacing.levels(schedule, steps), CLEAN]  # type: ignore[attr-defined]


def draw_pairs(model: Source, sampler: Sampler, steps: int, n: int, size: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return noise and samples (n, *shape), in model units and on the CPU."""
    levels, noises, samples = levels_of(model.schedule, steps), [], []
    with progress("drawing pairs", n) as bar:
        for first in range(0, n, size):
            noise = noise_of(model, seed, first, min(size, n - first))
            *_, last = path(model.denoiser(len(noise)), noise, levels, sampler)
            noises.append(noise.cpu())
            samples.append(last.x.cpu())
            bar.update(len(noise))
    return torch.cat(noises), torch.cat(samples)


def write_pairs(path: Path, model: Source, noise: Tensor, x: Tensor) -> None:
    """Write pairs, and all that `Samples` need to know of the data."""
    data = model.data
    bounds = () if data.bounds is None else data.bounds
    items = x if data.bounds is None else x.clamp(*bounds)
    arrays = {"items": data.scaling.to_data(items).numpy(), "noise": noise.numpy(), "bounds": np.array(bounds)}
    with path.open("wb") as file:
        np.savez(file, shift=data.scaling.shift, scale=data.scaling.scale, form=np.array(data.form), **arrays)


def read_pairs(path: Path) -> Samples:
    """Read a file of pairs. Raises `ValueError`, and `OSError` if there is none."""
    try:
        with np.load(path, allow_pickle=False) as file:
            items, noise, shift, scale, bounds, form = (file[name] for name in FIELDS)
    except (ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"path: {path} is no file of pairs, which `difftool pairs` writes ({error})") from None
    return Samples(
        items=items,
        noise=noise,
        shape=items.shape[1:],
        shift=tuple(shift.tolist()),
        scale=tuple(scale.tolist()),
        bounds=tuple(bounds.tolist()) or None,
        form=str(form),
    )


def straightness(denoise: Denoise, noise: Tensor, schedule: Schedule, steps: int) -> float:
    """Return S, how far the velocities of a flow are from those of straight lines between both ends of its paths.

    S is the mean of |(z_1 - z_0) - v(z_u, u)|^2 over u in [0, 1] and paths, z_1 the noise and z_0 the sample (Liu et
    al., 2023, section 2.2), and here over the numbers of an item too. A path is integrated by the midpoint rule. Raises
    `UsageError` unless x_t = (1 - u) x_0 + u eps, whose velocity v is eps - x_0.
    """
    if not torch.allclose(schedule.alpha + schedule.sigma, torch.ones_like(schedule.alpha)):
        raise UsageError("straightness is that of a flow; the schedule must be flow, with alpha + sigma = 1")
    x, velocities = noise, []
    for i in range(steps, 0, -1):
        u, du = i / steps, 1 / steps
        middle = x - du / 2 * velocity(denoise, x, u)
        velocities.append(velocity(denoise, middle, u - du / 2))
        x = x - du * velocities[-1]
    line = noise - x
    return float(sum((line - v).square().mean() for v in velocities) / steps)


def velocity(denoise: Denoise, x: Tensor, u: float) -> Tensor:
    """Return eps - x_0 at the level alpha = 1 - u, sigma = u."""
    estimate = denoise(x, Level.of(1 - u, u))
    return estimate.eps - estimate.x_0
