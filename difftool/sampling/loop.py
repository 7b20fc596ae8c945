"""The sampling loop: batches of samples, step by step. The caller draws progress bars and keeps what it wants.

Noise is keyed by (seed, sample number, step), so that the batch size changes only the last digits of a sample.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from threading import Event, Lock
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from difftool.diffusion.estimate import Denoise, Step
from difftool.errors import DifftoolError, blaming
from difftool.rng import sample_noise
from difftool.sampling.denoiser import clipped, thresholded
from difftool.sampling.inpainting import inpainted, paste
from difftool.sampling.predictions import BatchPredictions, guided

if TYPE_CHECKING:
    from difftool.diffusion.schedule import Level
    from difftool.sampling.plan import Plan
    from difftool.sampling.source import Source

SMALLEST_SINE = 1e-6


def sample(source: Source, plan: Plan, batches: Iterable[int] | None = None) -> Iterator[Step]:
    """Yield x_T and the state after each step of every batch, or of these batches, one batch after the other.

    Raises `DifftoolError` if the sampler fails or does not keep to its contract.
    """
    for batch in range(plan.batches) if batches is None else batches:
        yield from sample_batch(source, plan, batch * plan.batch_size, plan.count(batch))


@torch.no_grad()  # between steps, the caller's own mode holds
def sample_batch(source: Source, plan: Plan, first: int, count: int) -> Iterator[Step]:
    """Yield x_T and the state after each step of the samples first..first+count-1."""
    what = f"sampler {plan.sampler.name}"
    predictions = plan.predictions(source, first, count)
    denoise = denoiser_of(source, plan, predictions)
    x_T = start(source, plan, first, count)
    yield Step(x_T, plan.levels[0], None, first=first)
    noise = partial(sample_noise, first, count, source.space.shape, plan.seed, "step", device=source.device)
    number = 0
    with blaming(what):
        for number, step in enumerate(plan.sampler.sample(denoise, x_T, plan.levels, noise), start=1):
            if not isinstance(step, Step) or step.x.shape != x_T.shape:
                raise DifftoolError(f"{what}: step {number} gave no state shaped {tuple(x_T.shape)}")
            step.number, step.first, step.done = number, first, number == plan.steps
            step.calls = predictions.calls
            yield step
    if number != plan.steps:
        raise DifftoolError(f"{what} made {number} steps of {plan.steps}")


@dataclass(frozen=True, eq=False)
class Trajectories:
    """Samples, with their states after some of the steps."""

    x: Tensor
    """(N, *shape) in model units."""
    states: Tensor
    """(K, N, *shape), one for each step asked for."""
    levels: Sequence[Level]
    """The level of each state."""
    calls: int
    """Network calls for each sample."""


def collect(
    source: Source,
    plan: Plan,
    steps: Sequence[int] = (),
    *,
    batches: Iterable[int] | None = None,
    parallel: int = 1,
    watch: Callable[[Step], object] | None = None,
) -> Trajectories:
    """Return the samples, and their states after these steps (0 is x_T), on the CPU, decoded.

    Samples of other batches than `batches` stay uninitialised. So many batches as `parallel` says are drawn at once,
    each in a thread of its own, which changes no sample. `watch` is called after each step, by one thread at a time.
    """
    # filled as batches come: a list of them would be there twice in the end, and scattered over the memory that the
    # network takes and gives back, which would then be several times as much
    x = torch.empty(plan.num_samples, *source.data.shape)
    states = torch.empty(len(steps), *x.shape)
    watching, ended = Lock(), Event()

    def fill(batch: int) -> int:
        calls = 0
        for step in sample(source, plan, [batch]):
            rows = slice(step.first, step.first + len(step.x))
            if step.number in steps:
                states[steps.index(step.number), rows] = decoded(source, step, plan)
            if step.done:
                x[rows], calls = decoded(source, step, plan), step.calls
            with watching:
                if ended.is_set():
                    break
                if watch is not None:
                    watch(step)
        return calls

    numbers = range(plan.batches) if batches is None else batches
    calls = [fill(batch) for batch in numbers] if parallel == 1 else _in_threads(fill, numbers, parallel, ended)
    return Trajectories(x, states, [plan.levels[step] for step in steps], calls[-1] if calls else 0)


def _in_threads(fill: Callable[[int], int], batches: Iterable[int], parallel: int, ended: Event) -> list[int]:
    """Return what `fill` returns for each batch. A failure, or a signal, sets `ended`, at which `fill` is to return."""
    with ThreadPoolExecutor(parallel) as pool:
        futures = [pool.submit(fill, batch) for batch in batches]
        try:
            return [future.result() for future in futures]
        except BaseException:
            ended.set()
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def draw(source: Source, plan: Plan) -> Tensor:
    """Return all samples of a plan (N, *shape), in data units."""
    x = [decoded(source, step, plan) for step in sample(source, plan) if step.done]
    return source.data.scaling.to_data(torch.cat(x))


@torch.no_grad()
def decoded(source: Source, step: Step, plan: Plan) -> Tensor:
    """Return the state of a step as items (B, *shape) in model units.

    Samples that come from latents lie within the bounds of the data, as clipped estimates do, and the known part of an
    image has its very pixels.
    """
    if source.latents is None:
        return step.x
    x = source.decode(step.x)
    if step.done and source.data.bounds is not None and plan.settings.clip:
        x = x.clamp(*source.data.bounds)
    return paste(x, plan.inpainting) if step.done and plan.inpainting is not None else x


def denoiser_of(source: Source, plan: Plan, predictions: BatchPredictions) -> Denoise:
    """Return the denoiser of a batch: the model's, guided, clipped and kept to the part of an image that is known."""
    settings, bounds = plan.settings, source.space.bounds
    denoise = predictions() if plan.guidance is None else guided(plan.guidance, predictions)
    if bounds is not None and settings.clip:
        quantile = settings.threshold
        denoise = clipped(denoise, bounds) if quantile is None else thresholded(denoise, bounds, quantile)
    if plan.inpainting is not None:
        denoise = inpainted(denoise, plan.inpainting, source)
    return denoise


def start(source: Source, plan: Plan, first: int, count: int) -> Tensor:
    """Return x_T (count, *shape) of the samples first..first+count-1.

    It is noise of the first level's norm, or the image of --init noised to that level (SDEdit; Meng et al., 2022).
    """
    level, shape, seeds = plan.levels[0], source.space.shape, plan.settings.interpolate
    if seeds is None:
        eps = sample_noise(first, count, shape, plan.seed, "x_T", device=source.device)
    else:
        a, b = (sample_noise(0, 1, shape, seed, "x_T", device=source.device) for seed in seeds)
        eps = torch.cat([slerp(a, b, k / (plan.num_samples - 1)) for k in range(first, first + count)])
    if plan.init is None:
        return level.norm * eps
    return level.alpha * source.encode(plan.init[None]) + level.sigma * eps


def slerp(a: Tensor, b: Tensor, fraction: float) -> Tensor:
    """Return the point at a fraction (0..1) of the arc from a to b (Shoemake, 1985; Song et al., 2021, DDIM, eq. 67).

    A straight line between two draws of noise would pass through values too small to be noise.
    """
    cosine = torch.nn.functional.cosine_similarity(a.double().flatten(), b.double().flatten(), dim=0)
    angle = math.acos(max(-1.0, min(1.0, float(cosine))))
    if math.sin(angle) < SMALLEST_SINE:  # as good as parallel, as single numbers always are: no arc between them
        return torch.lerp(a, b, fraction)
    return (math.sin((1.0 - fraction) * angle) * a + math.sin(fraction * angle) * b) / math.sin(angle)
