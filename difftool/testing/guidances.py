"""The laws of guidances.

They are checked around exact denoisers: one Gaussian under each of two classes, a mixture of Gaussians without a class,
and a wider Gaussian, on another schedule and in other units, in place of another run.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from difftool.components import Guidance
from difftool.data.condition import Condition
from difftool.data.facts import DataFacts
from difftool.data.samples import PIXELS, Samples
from difftool.diffusion.estimate import Denoise, Estimate
from difftool.diffusion.schedule import Level, Schedule
from difftool.errors import UsageError
from difftool.rng import sample_noise
from difftool.sampling.predictions import BatchPredictions, calls_at, guided
from difftool.sampling.source import Autocast, Source
from difftool.testing.known import TABLES, mixture
from difftool.testing.laws import Failed, Skipped, accelerators, gap, raised, require

CPU = torch.device("cpu")
ROUNDING = 1e-3
"""Rounding error of float32, relative to the level's norm."""
COUNT, VISITED = 6, 7
"""Samples in a batch, and levels that are visited, from noisy to clean."""


def gaussian(mean: float, std: float) -> Denoise:
    """Return the exact denoiser of numbers from N(mean, std^2)."""

    def denoise(x: Tensor, level: Level) -> Estimate:
        variance = (level.alpha * std) ** 2 + level.sigma**2
        z = (x - level.alpha * mean) / variance
        return Estimate(mean + level.alpha * std**2 * z, level.sigma * z)

    return denoise


CLASSES = (gaussian(0.8, 0.5), gaussian(-0.6, 0.4))
WIDER = gaussian(0.1, 1.5)


class KnownSource(Source):
    """A source whose denoisers are exact."""

    def __init__(self, data: DataFacts, schedule: Schedule, device: torch.device = CPU, *, is_other: bool = False):
        self.data, self.schedule, self.device, self.is_other = data, schedule, device, is_other

    name = schedule_name = description = "known"

    def denoiser(
        self,
        count: int,
        *,
        condition: Condition | None = None,
        autocast: Autocast | None = None,
        gradients: bool = False,
    ) -> Denoise:
        def denoise(x: Tensor, level: Level) -> Estimate:
            with torch.set_grad_enabled(gradients):
                if self.is_other:
                    return WIDER(x, level)
                if condition is None or condition.label is None:
                    return mixture(x, level)
                first, second = (of_class(x, level) for of_class in CLASSES)
                is_first = (condition.label == 0).view(-1, *(1,) * (x.ndim - 1))
                return Estimate(
                    torch.where(is_first, first.x_0, second.x_0), torch.where(is_first, first.eps, second.eps)
                )

        return denoise

    def open_other(self, run: Path, weights: str) -> Source:
        shifted = DataFacts(
            shape=self.data.shape,
            shift=(self.data.shift[0] + 0.1 * self.data.scale[0],),
            scale=(1.2 * self.data.scale[0],),
            class_names=self.data.class_names,
            form=self.data.form,
        )
        return KnownSource(shifted, TABLES["linear"], self.device, is_other=True)

    def load_samples(self) -> Samples:
        raise UsageError("the laws have no data")


NAMES = ("a", "b")
DATA: Mapping[str, DataFacts] = {
    "points with classes": DataFacts(shape=(2,), class_names=NAMES),
    "images with classes": DataFacts(shape=(3, 4, 4), class_names=NAMES, **PIXELS),
    "points": DataFacts(shape=(3,)),
}


@dataclass(frozen=True)
class Case:
    """A guidance with the data that it accepts."""

    guidance: Guidance
    data: Mapping[str, DataFacts]
    refused: Mapping[str, str]
    """The reasons for which it refuses the others."""

    def trials(self) -> Iterator[tuple[str, KnownSource]]:
        """Yield a source for each accepted kind of data and each schedule, with words for it."""
        for (what, facts), (name, table) in ((d, t) for d in self.data.items() for t in TABLES.items()):
            yield f"{what} on {name}", KnownSource(facts, table)


def prepare(guidance: Guidance) -> Case:
    """Find out which data the guidance accepts. Raises `Failed` if it refuses everything."""
    accepted, refused = {}, {}
    for what, facts in DATA.items():
        try:
            guided(guidance, predictions(KnownSource(facts, TABLES["linear"])))
        except UsageError as error:
            refused[what] = str(error)
        except Exception:  # which is left to the laws
            accepted[what] = facts
        else:
            accepted[what] = facts
    if not accepted:
        raise Failed(f"it refuses everything: {'; '.join(f'{what}: {why}' for what, why in refused.items())}")
    return Case(guidance, accepted, refused)


def gives_consistent_estimates(case: Case) -> str:
    """For points and images, on a variance-preserving schedule, on straight lines and on a variance-exploding schedule,
    x_0 and eps are finite and explain the noisy state at every level: x_t = alpha x_0 + sigma eps."""
    worst = 0.0
    for where, source in case.trials():
        try:
            for level, x, estimate in visits(case.guidance, source):
                error = (level.alpha * estimate.x_0 + level.sigma * estimate.eps - x).abs().max()
                worst = max(worst, float(error) / level.norm if bool(error.isfinite()) else math.inf)
        except Exception as error:
            raise Failed(f"{where}: {error if isinstance(error, Failed) else raised(error)}") from None
        require(
            worst <= ROUNDING,
            f"{where}: alpha x_0 + sigma eps is {worst:.2g} from the noisy state; at most {ROUNDING:g} is rounding",
        )
    refused = "".join(f"; refuses {what}: {why}" for what, why in case.refused.items())
    return f"{worst:.1g} off{refused}"


def is_off_at_scale_1(case: Case) -> str:
    """If it has an option `scale` and uses no gradients, then with scale 1 its estimates are those of the model under
    the condition, to the last bit, and take one network call each."""
    if not isinstance(getattr(case.guidance, "scale", None), (int, float)):
        raise Skipped("it has no option scale")
    off = type(case.guidance)(**{**vars(case.guidance), "scale": 1.0})
    for where, source in case.trials():
        made, alone = predictions(source), predictions(source)()
        for level, x, estimate in visits(off, source, made):
            if made.gradients:
                raise Skipped("it guides by gradients, whose scale has no such meaning")
            expected = alone(x, level)
            same = torch.equal(estimate.x_0, expected.x_0) and torch.equal(estimate.eps, expected.eps)
            require(same, f"{where}: with scale 1 its x_0 is {gap(estimate.x_0, expected.x_0):.2g} from the model's")
        require(made.calls == VISITED, f"{where}: with scale 1 it makes {made.calls} calls for {VISITED} estimates")
    return "the model's estimates to the last bit"


def is_reproducible(case: Case) -> str:
    """Two denoisers made for the same samples give the same estimates along the same states, to the last bit."""
    for where, source in case.trials():
        pairs = zip(visits(case.guidance, source), visits(case.guidance, source), strict=True)
        for (level, _, a), (_, _, b) in pairs:
            if not torch.equal(a.x_0, b.x_0):
                raise Failed(f"{where}: two x_0 at log-SNR {level.log_snr:.1f} are {gap(a.x_0, b.x_0):.2g} apart")
    return "equal to the last bit"


def is_independent_of_the_batch_size(case: Case) -> str:
    """Samples that are guided together and one at a time have the same estimates."""
    worst = 0.0
    for where, source in case.trials():
        alone = [list(visits(case.guidance, source, predictions(source, first, 1))) for first in range(COUNT)]
        for number, (level, _, together) in enumerate(visits(case.guidance, source)):
            x_0 = torch.cat([visited[number][2].x_0 for visited in alone])
            worst = max(worst, gap(x_0, together.x_0) / level.norm)
        require(worst <= ROUNDING, f"{where}: x_0 differs by {worst:.2g} between batches of 1 and {COUNT}")
    return f"{worst:.1g} apart, at most {ROUNDING:g}"


def modifies_no_tensor_in_place(case: Case) -> str:
    """The states that it is called with, and the estimates that it gave before, keep their values."""
    seen: list[tuple[str, Tensor, Tensor]] = []
    for _, source in case.trials():
        for _, x, estimate in visits(case.guidance, source):
            for what, tensor in (("state", x), ("x_0", estimate.x_0), ("eps", estimate.eps)):
                seen.append((what, tensor, tensor.clone()))
        for what, tensor, value in seen:
            require(torch.equal(tensor, value), f"a {what} was changed in place later; make new tensors")
        for level, x, _ in visits(case.guidance, source):
            expected = state(source, level, 0, COUNT)
            require(torch.equal(x, expected), "a state that it was called with was changed in place")
    return f"{len(seen)} tensors unchanged"


def makes_calls_that_depend_on_the_level_alone(case: Case) -> str:
    """At each level it makes as many network calls as it does where all estimates are 0, which is how difftool counts
    them before it samples."""
    found = set()
    for where, source in case.trials():
        made = predictions(source)
        expected, before = calls_at(case.guidance, predictions(source).spec()), 0
        for level, _, _ in visits(case.guidance, source, made):
            calls, before = made.calls - before, made.calls
            if calls != expected(level):
                raise Failed(f"{where}: {calls} calls at log-SNR {level.log_snr:.1f}, but {expected(level)} on zeros")
            found.add(calls)
    return f"{' or '.join(map(str, sorted(found)))} calls an estimate"


def works_on_every_device(case: Case) -> str:
    """On each accelerator of the machine its estimates differ from those on the CPU by at most 1e-3."""
    devices = accelerators()
    for device in devices:
        for where, source in case.trials():
            there = KnownSource(source.data, source.schedule, device)
            pairs = zip(visits(case.guidance, source), visits(case.guidance, there), strict=True)
            worst = max(gap(b.x_0.cpu(), a.x_0) / level.norm for (level, _, a), (_, _, b) in pairs)
            require(worst <= 1e-3, f"{where}: estimates on {device} and on the CPU differ by {worst:.2g}")
    return ", ".join(map(str, devices))


LAWS = (
    gives_consistent_estimates,
    is_off_at_scale_1,
    is_reproducible,
    is_independent_of_the_batch_size,
    modifies_no_tensor_in_place,
    makes_calls_that_depend_on_the_level_alone,
    works_on_every_device,
)


def predictions(source: KnownSource, first: int = 0, count: int = COUNT) -> BatchPredictions:
    """Return the denoisers of samples that take turns in the classes, if there are any."""
    fields = {"label": torch.arange(first, first + count) % 2} if source.data.class_names else {}
    return BatchPredictions(source, Condition.shown(fields), first=first, count=count)


def visits(
    guidance: Guidance, source: KnownSource, made: BatchPredictions | None = None
) -> Iterator[tuple[Level, Tensor, Estimate]]:
    """Yield levels from noisy to clean, a state at each, and its guided estimate, as sampling would call it."""
    made = made or predictions(source)
    denoise = guided(guidance, made)
    last = len(source.schedule) - 1
    for i in range(VISITED):
        level = source.schedule[last - last * i // VISITED]
        x = state(source, level, made.first, made.count)
        with torch.no_grad():
            estimate = denoise(x, level)
        yield level, x, estimate


def state(source: KnownSource, level: Level, first: int, count: int) -> Tensor:
    """Return a noisy state of samples (count, *shape) at a level, keyed by their numbers."""
    shape, device = source.data.shape, source.device
    x_0 = 0.7 * sample_noise(first, count, shape, 0, "law", device=device)
    return level.alpha * x_0 + level.sigma * sample_noise(first, count, shape, 1, "law", device=device)
