"""Walking a sampler: batches of samples, each step yielded. The caller draws bars and keeps what it wants.

Noise is keyed by (seed, sample number, step), so the batch size changes no sample.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from difftool.components import Sampler, Spacing
from difftool.data.images import own_image, own_mask
from difftool.devices import autocast, check_precision
from difftool.diffusion.estimate import Denoise, Estimate, Step
from difftool.diffusion.schedule import CLEAN, Level, Schedule
from difftool.errors import DifftoolError, UsageError, blaming
from difftool.options import make
from difftool.plugins.registry import registry
from difftool.rng import sample_noise
from difftool.sampling.denoiser import Clipped, Counted, Inpainted, Thresholded
from difftool.sampling.guidance import Guided, Within
from difftool.settings import STRENGTH, Sampling

if TYPE_CHECKING:
    from difftool.sampling.source import Source

POINTS, IMAGES, PATH = 2_000, 16, 9
"""How many samples when the user does not say; PATH along --interpolate."""
BATCH_ELEMENTS, BATCH_SAMPLES = 2**17, 8_192
"""Numbers and samples a batch may hold when the user gives no batch size: larger ones fall out of the cache."""
SMALLEST_SINE = 1e-6


@dataclass(frozen=True, eq=False)
class Hole:
    """An image of which a part is unknown."""

    image: Tensor
    """(*shape) in model units."""
    unknown: Tensor
    """bool (1, H, W): true where it is to be painted."""

    @classmethod
    def of(cls, source: Source, settings: Sampling) -> Hole | None:
        if settings.inpaint is None or settings.mask is None:
            return None
        image = own_image(settings.inpaint, source.data, source.name, "--inpaint")
        return cls(image.to(source.device), own_mask(settings.mask, source.data, "--mask").to(source.device))


@dataclass(frozen=True, kw_only=True, eq=False)
class Plan:
    """A walk, resolved against a source: nothing is left to decide."""

    sampler: Sampler
    spacing: Spacing
    levels: tuple[Level, ...]
    """The levels visited; the last one is clean."""
    settings: Sampling
    num_samples: int
    batch_size: int
    label: int | None
    init: Tensor | None = None
    """(*shape) in model units: the image that walks start from, noised."""
    hole: Hole | None = None
    """What is painted, and what around it is kept."""

    @classmethod
    def of(
        cls,
        source: Source,
        settings: Sampling | None = None,
        *,
        sampler: str | Sampler = "ddim",
        spacing: str | Spacing = "trailing",
    ) -> Plan:
        """Resolve settings against a source. Raises `UsageError`."""
        settings = settings or Sampling()
        refuse_misfits(source, settings)
        walker = make(registry().of_kind(Sampler, sampler), {}) if isinstance(sampler, str) else sampler
        grid = make(registry().of_kind(Spacing, spacing), {}) if isinstance(spacing, str) else spacing
        T, shape = len(source.schedule), source.data.shape
        steps = settings.steps or min(walker.default_steps or T, T)
        levels = grid_levels(source.schedule, grid, steps)
        if settings.interpolate is not None and rehearse(walker, (*levels, CLEAN))[1]:
            raise UsageError(
                f"--interpolate: the sampler {walker.name} draws noise, so its samples are no function of where they "
                "start; take one that draws none, such as ddim with eta 0"
            )
        init = None
        if settings.init is not None:
            init = own_image(settings.init, source.data, source.name, "--init").to(source.device)
        return cls(
            sampler=walker,
            spacing=grid,
            levels=(*(levels if init is None else last_part(levels, settings.strength or STRENGTH)), CLEAN),
            settings=settings,
            init=init,
            hole=Hole.of(source, settings),
            num_samples=settings.num_samples or default_count(source, settings),
            batch_size=settings.batch_size or max(1, min(BATCH_SAMPLES, BATCH_ELEMENTS // math.prod(shape))),
            label=source.label_index(settings.label),
        )

    @property
    def seed(self) -> int:
        return self.settings.seed

    @property
    def steps(self) -> int:
        return len(self.levels) - 1

    @property
    def batches(self) -> int:
        return -(-self.num_samples // self.batch_size)

    def count(self, batch: int) -> int:
        """How many samples a batch has: the last one may have fewer."""
        return min(self.batch_size, self.num_samples - batch * self.batch_size)

    @property
    def stem(self) -> str:
        """`ddim-50`: what files are called after."""
        return f"{self.sampler.name}-{self.steps}"


@dataclass(slots=True)  # not frozen, which would take five times as long in each step
class Progress:
    """The state of one batch at one level, x_T first. Tensors stay on the device; the walk goes on from x itself."""

    batch: int
    first: int
    """Number of the batch's first sample."""
    step: int
    """Completed steps of this batch."""
    done: bool
    level: Level
    x: Tensor
    """(B, *shape) in model units."""
    estimate: Estimate | None
    """What the denoiser said in the step; None for x_T."""
    calls: int = 0
    """Network calls of this batch so far."""


def grid_levels(schedule: Schedule, spacing: Spacing, steps: int) -> Sequence[Level]:
    """The levels of a grid, checked: exactly `steps`, strictly from noisy to clean. Raises `UsageError`."""
    if steps > len(schedule):
        raise UsageError(f"--steps: {steps} is more than the schedule's {len(schedule)} levels")
    with blaming(f"spacing {spacing.name}", refusal=UsageError):
        levels = list(spacing.levels(schedule, steps))
    angles = [level.theta for level in levels]
    if len(levels) != steps or any(a <= b for a, b in pairwise(angles)) or angles[-1] <= 0.0:
        raise DifftoolError(f"spacing {spacing.name} gave no strictly falling grid of {steps} levels")
    return levels


def refuse_misfits(source: Source, settings: Sampling) -> None:
    """Raise `UsageError` for settings that this source has no use for, or its device no means."""
    check_precision(source.device, settings.precision)
    if settings.guidance != 1.0 and not source.data.classes:
        raise UsageError(f"--guidance: {source.name} has no classes")
    if settings.guidance != 1.0 and settings.label is None:
        raise UsageError("--guidance: needs a --label to guide towards")
    if settings.label is None and source.needs_label:
        raise UsageError("--label: this model was trained with --label-dropout 0 and knows no samples without a class")
    if settings.guidance != 1.0 and source.needs_label:
        raise UsageError("--guidance: this model was trained with --label-dropout 0 and has nothing to guide away from")
    if settings.guidance_rescale and not source.data.is_image:
        raise UsageError(f"--guidance-rescale: brings back the contrast of images, and {source.name} has none")
    if settings.threshold is not None and source.data.bounds is None:
        raise UsageError(f"--threshold: the data of {source.name} have no bounds")


def sample(source: Source, plan: Plan, batches: Iterable[int] | None = None) -> Iterator[Progress]:
    """Walk every batch, or these, yielding x_T and the state after each step."""
    for batch in range(plan.batches) if batches is None else batches:
        yield from walk(source, plan, batch, batch * plan.batch_size, plan.count(batch))


def draw(source: Source, plan: Plan) -> Tensor:
    """All samples of a plan (N, *shape), in data units."""
    return source.data.scaling.to_data(torch.cat([batch.x for batch in sample(source, plan) if batch.done]))


def last_part(levels: Sequence[Level], strength: float) -> Sequence[Level]:
    """The last levels of a grid, as many as the strength takes of them: 0.6 of 50 steps are the last 30."""
    steps = round(strength * len(levels))
    if steps == 0:
        raise UsageError(
            f"--strength: {strength:g} of {len(levels)} steps leaves none; take at least {1 / len(levels):.2g}, "
            "or more --steps"
        )
    return levels[-steps:]


def default_count(source: Source, settings: Sampling) -> int:
    """How many samples when the user does not say."""
    if settings.interpolate is not None:
        return PATH
    return IMAGES if source.data.is_image else POINTS


def denoiser_of(source: Source, plan: Plan, count: int) -> tuple[Denoise, list[Counted]]:
    """The denoiser of a walk, and the bare ones in it, which count their calls."""
    settings = plan.settings
    context = autocast(source.device, settings.precision)

    def bare(label: int | None) -> Counted:
        return Counted(source.denoiser(count, label=label, autocast=context))

    asked = [bare(plan.label)]
    denoise: Denoise = asked[0]
    if settings.guidance != 1.0:
        asked.append(bare(None))
        denoise = guided(asked[0], asked[1], settings)
    if source.data.bounds is not None and settings.clip:
        denoise = within_bounds(denoise, source.data.bounds, settings)
    if plan.hole is not None:
        denoise = Inpainted(denoise, plan.hole.image, plan.hole.unknown)
    return denoise, asked


def guided(conditional: Denoise, unconditional: Denoise, settings: Sampling) -> Denoise:
    """Guidance at every level, or at those of an interval."""
    everywhere = Guided(conditional, unconditional, settings.guidance, rescale=settings.guidance_rescale)
    if settings.guidance_interval is None:
        return everywhere
    low, high = settings.guidance_interval
    return Within((low, high), inside=everywhere, outside=conditional)


def within_bounds(denoise: Denoise, bounds: tuple[float, float], settings: Sampling) -> Denoise:
    """The denoiser with its x_0 kept within the bounds, one way or the other."""
    if settings.threshold is None:
        return Clipped(denoise, bounds)
    return Thresholded(denoise, bounds, settings.threshold)


def start(source: Source, plan: Plan, first: int, count: int) -> Tensor:
    """Where the samples first..first+count-1 start: at noise, or at a noised image (SDEdit; Meng et al., 2022)."""
    level, eps = plan.levels[0], starting_noise(source, plan, first, count)
    return level.norm * eps if plan.init is None else level.alpha * plan.init + level.sigma * eps


def starting_noise(source: Source, plan: Plan, first: int, count: int) -> Tensor:
    """Standard normal noise (count, *shape) of the samples first..: each its own, or the path between two seeds."""
    shape, seeds = source.data.shape, plan.settings.interpolate
    if seeds is None:
        return sample_noise(first, count, shape, plan.seed, "x_T", device=source.device)
    a, b = (sample_noise(0, 1, shape, seed, "x_T", device=source.device) for seed in seeds)
    return torch.cat([slerp(a, b, k / (plan.num_samples - 1)) for k in range(first, first + count)])


def slerp(a: Tensor, b: Tensor, part: float) -> Tensor:
    """The point at `part` (0..1) of the arc from a to b (Shoemake, 1985; Song et al., 2021, eq. 67).

    A straight line between two draws of noise would pass through values too small to be noise.
    """
    cosine = torch.nn.functional.cosine_similarity(a.double().flatten(), b.double().flatten(), dim=0)
    angle = math.acos(max(-1.0, min(1.0, float(cosine))))
    if math.sin(angle) < SMALLEST_SINE:  # as good as parallel, as single numbers always are: no arc between them
        return torch.lerp(a, b, part)
    return (math.sin((1.0 - part) * angle) * a + math.sin(part * angle) * b) / math.sin(angle)


def rehearse(sampler: Sampler, levels: Sequence[Level]) -> tuple[int, bool]:
    """(network calls, whether noise is asked for) of a walk: of one number, with a denoiser that says 0."""
    asked: list[int] = []

    def noise(step: int) -> Tensor:
        asked.append(step)
        return torch.zeros(1, 1)

    def nothing(x: Tensor, level: Level) -> Estimate:
        return Estimate(torch.zeros_like(x), torch.zeros_like(x))

    denoise = Counted(nothing)
    with blaming(f"sampler {sampler.name}"):
        for _ in sampler.sample(denoise, torch.zeros(1, 1), levels, noise):
            pass
    return denoise.calls, bool(asked)


def walk(source: Source, plan: Plan, batch: int, first: int, count: int) -> Iterator[Progress]:
    """Walk the samples first..first+count-1."""
    what, step, steps = f"sampler {plan.sampler.name}", 0, plan.steps
    with torch.no_grad():
        denoise, asked = denoiser_of(source, plan, count)
        x = start(source, plan, first, count)
        shape = x.shape
    yield Progress(batch, first, 0, False, plan.levels[0], x, None)
    draw = partial(sample_noise, first, count, source.data.shape, plan.seed, "step", device=source.device)
    walked = plan.sampler.sample(denoise, x, plan.levels, draw)
    for step, state in enumerate(without_gradients(walked, what), start=1):
        if not isinstance(state, Step) or state.x.shape != shape:
            raise DifftoolError(f"{what}: step {step} gave no state shaped {tuple(shape)}")
        calls = sum([denoiser.calls for denoiser in asked])
        yield Progress(batch, first, step, step == steps, state.level, state.x, state.estimate, calls)
    if step != steps:
        raise DifftoolError(f"{what} made {step} steps of {steps}")


def without_gradients(walked: Iterator[Step], what: str) -> Iterator[Step]:
    """The steps of a sampler, made without gradients; what goes wrong in it becomes one line.

    Between steps the caller's own mode holds. Nothing else is entered and left in each step: that would take as long as
    the arithmetic of a small one.
    """
    with blaming(what):
        while True:
            gradients = torch.is_grad_enabled()
            if gradients:
                torch.set_grad_enabled(False)
            try:
                state = next(walked)
            except StopIteration:
                return
            finally:
                if gradients:
                    torch.set_grad_enabled(True)
            yield state
