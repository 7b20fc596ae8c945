"""The laws of metrics, checked with points of four Gaussians, with the same points shifted, and with a small model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from difftool.components import Metric
from difftool.data.samples import Samples
from difftool.errors import UsageError, one_line
from difftool.evaluation.measuring import difference, measure
from difftool.evaluation.scores import Score, Sets
from difftool.evaluation.views import MODEL
from difftool.testing.laws import Failed, Skipped, require
from difftool.testing.oracles import four_gaussians
from difftool.testing.small_model import small_model

SHIFT = 3.0
"""The shift, in standard deviations of the data, of samples that are bad."""


@dataclass(frozen=True)
class Case:
    """A metric and the data that it measures."""

    metric: Metric
    data: Samples
    rows: Tensor
    """(400, 2) in model units."""

    @classmethod
    def of(cls, metric: Metric) -> Case:
        data = four_gaussians()
        return cls(metric, data, data.scaling.to_model(data.take_items(range(len(data)))))

    @property
    def halves(self) -> tuple[Tensor, Tensor]:
        """Two sets of one distribution that share no item: of each four points in turn, one of each Gaussian."""
        first = torch.arange(len(self.rows)) % 8 < 4
        return self.rows[first], self.rows[~first]

    def scores(self, samples: Tensor, reference: Tensor) -> list[Score]:
        """Return the checked scores. Raises `Failed`, and `Skipped` for a metric of models."""
        if self.metric.needs == MODEL:
            raise Skipped("it measures models, not samples")
        return measure(self.metric, Sets(samples=samples, reference=reference, held_out=self.data))

    def of_model(self) -> list[Score]:
        """Return the scores of samples, or for a metric of models those of a small network that was never trained."""
        if self.metric.needs != MODEL:
            return self.scores(*self.halves)
        nothing = torch.empty(0, 0)
        return measure(self.metric, Sets(samples=nothing, reference=nothing, model=small_model(), held_out=self.data))


def gives_finite_scores(case: Case) -> str:
    """It returns at least one score. Each has a name of its own, a finite value, a number of samples that exist, and an
    error that is finite and not below 0, if it has one."""
    scores = case.of_model()
    names = [score.name for score in scores]
    require(len({*names}) == len(names), f"its scores have the same names: {', '.join(names)}")
    for score in scores:
        require(score.error is None or score.error >= 0, f"the error of {score.name} is {score.error}")
        require(1 <= score.n <= len(case.rows), f"{score.name} says that it was measured on {score.n} items")
        require(score.better in ("lower", "higher"), f"better of {score.name} is {score.better!r}")
        require(score.floor is None, f"{score.name} sets its own floor, which the caller measures")
    return ", ".join(f"{score.name} {score.value:.3g}" for score in scores)


def is_the_same_each_time(case: Case) -> str:
    """Two calls give the same scores, whatever the global random state is."""
    torch.manual_seed(1)
    first = case.of_model()
    torch.manual_seed(2)
    second = case.of_model()
    changed = [a.name for a, b in zip(first, second, strict=True) if (a.value, a.error) != (b.value, b.error)]
    require(not changed, f"a second call gave another {', '.join(changed)}; draw by sets.generator()")
    return "equal"


def prefers_the_data_to_shifted_ones(case: Case) -> str:
    """Samples that are the data themselves, and others of their distribution, score better than samples shifted by
    three standard deviations."""
    same, other = case.halves
    shifted = case.scores(same + SHIFT, other)
    for samples, what in ((other, "the data themselves"), (same, "other data")):
        _all_better(case.scores(samples, other), shifted, what)
    return ", ".join(f"{score.name} {score.value:.3g} when shifted" for score in shifted)


def takes_sets_of_any_size(case: Case) -> str:
    """It takes more samples than data and fewer, down to 40; with fewer yet it may raise a `ValueError`."""
    a, b = case.halves
    for samples, reference in ((case.rows, b), (a, case.rows), (a[:40], b), (a, b[:40])):
        case.scores(samples, reference)
    try:
        case.scores(a[:2], b[:2])
    except UsageError as error:
        return f"refuses 2: {one_line(error)}"
    return "any"


LAWS = (
    gives_finite_scores,
    is_the_same_each_time,
    prefers_the_data_to_shifted_ones,
    takes_sets_of_any_size,
)


def _all_better(scores: Sequence[Score], than: Sequence[Score], what: str) -> None:
    for good, bad in zip(scores, than, strict=True):
        if difference(good, bad)[0] <= 0:
            raise Failed(f"{good.name} is {good.value:.3g} for {what}, and {bad.value:.3g} when shifted")
