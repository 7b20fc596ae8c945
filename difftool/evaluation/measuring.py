"""Metrics at work: samples against data, and data against data."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from difftool.components import Metric
from difftool.errors import DifftoolError, UsageError, blaming, printable
from difftool.evaluation.reference import Reference, apart
from difftool.evaluation.scores import Score, Sets
from difftool.evaluation.views import MODEL, Rows

if TYPE_CHECKING:
    from difftool.sampling.source import Source

CERTAIN = 2.0
"""The standard errors from which on a difference counts as one."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A score of samples, beside the same score of data."""

    metric: str
    """The name of the metric."""
    score: Score
    """The score of all samples against the whole reference, with its floor."""
    floor: Score | None = None
    """The score of data against data that share no item with them; None for a metric of the model."""
    alike: Score | None = None
    """The score of as many samples as the floor has, against the same data, where its sizes differ from `score`'s."""
    sizes: tuple[int, int] | None = None
    """The numbers of items that the floor compares."""

    @property
    def excess(self) -> tuple[float, float | None] | None:
        """The excess of samples over data, positive where they are worse, and its standard error; None without a floor.

        Both are measured with as many items, since the values of many metrics depend on their number.
        """
        return None if self.floor is None else difference(self.floor, self.alike or self.score)

    def document(self) -> dict[str, Any]:
        """Return plain values, as evaluations.jsonl holds them."""
        score = self.score
        found: dict[str, Any] = {"metric": self.metric, "name": score.name, "value": score.value}
        found |= {"error": score.error, "floor": score.floor, "n": score.n, "better": score.better, "unit": score.unit}
        if self.floor is not None and self.sizes is not None:
            found |= {"floor_error": self.floor.error, "floor_sizes": list(self.sizes)}
        if self.alike is not None:
            found |= {"value_at_floor_sizes": self.alike.value, "error_at_floor_sizes": self.alike.error}
        return found


def difference(a: Score, b: Score) -> tuple[float, float | None]:
    """Return how much worse b is than a, and one standard error of that if both have one."""
    worse = b.value - a.value if a.better == "lower" else a.value - b.value
    return worse, None if a.error is None or b.error is None else math.hypot(a.error, b.error)


def is_none(worse: float, error: float | None) -> bool:
    """Return whether a difference is no more than chance brings about, as far as its standard error tells."""
    return worse == 0 or (error is not None and abs(worse) <= CERTAIN * error)


def measure(metric: Metric, sets: Sets) -> list[Score]:
    """Return the scores of a metric, checked. Raises `UsageError` for sets that do not suit it."""
    what = f"metric {metric.name}"
    with blaming(what, refusal=UsageError), torch.no_grad():
        scores = list(metric.measure(sets))
    if not scores or not all(isinstance(score, Score) for score in scores):
        raise DifftoolError(f"{what}: returned no scores")
    for score in scores:
        bad = [number for number in (score.value, score.error) if number is not None and not math.isfinite(number)]
        if bad:
            raise DifftoolError(f"{what}: {printable(score.name)} is {bad[0]}")
    return scores


@dataclass(frozen=True)
class Floor:
    """Data in place of samples, the data that these are compared with, and their scores."""

    data: Tensor
    reference: Tensor
    scores: Sequence[Score]


class Measurer:
    """Metrics with the data that samples are compared with."""

    def __init__(self, reference: Reference, rows: Rows, others: Rows, *, seed: int = 0) -> None:
        """Take the rows of the reference, and of other items of the same data, by view."""
        self.reference, self.rows, self.others, self.seed = reference, rows, others, seed
        self._floors: dict[tuple[Metric, int], Floor] = {}

    def floor(self, metric: Metric, count: int) -> Floor:
        """Return the floor of a metric that compares `count` samples. It is measured once."""
        if (metric, count) not in self._floors:
            data, rest = apart(self.rows[metric.needs], self.others.get(metric.needs), count)
            scores = measure(metric, self._sets(data, rest, None))
            self._floors[metric, count] = Floor(data, rest, scores)
        return self._floors[metric, count]

    def of_model(self, metric: Metric, model: Source) -> list[Measured]:
        """Return the scores of a metric of models."""
        nothing = torch.empty(0, 0)
        scores = measure(metric, self._sets(nothing, nothing, model))
        return [Measured(metric=metric.name, score=score) for score in scores]

    def of_samples(self, metric: Metric, rows: Rows, model: Source | None) -> list[Measured]:
        """Return the scores of a metric of samples, whose rows are given by view."""
        samples, reference = rows[metric.needs], self.rows[metric.needs]
        floor = self.floor(metric, len(samples))
        floors = {score.name: score for score in floor.scores}
        scores, alike = measure(metric, self._sets(samples, reference, model)), dict[str, Score]()
        if (sizes := (len(floor.data), len(floor.reference))) != (len(samples), len(reference)):
            same = measure(metric, self._sets(samples[: sizes[0]], floor.reference, model))
            alike = {score.name: score for score in same}
        return [
            Measured(
                metric=metric.name,
                score=replace(score, floor=None if score.name not in floors else floors[score.name].value),
                floor=floors.get(score.name) if not alike or score.name in alike else None,
                alike=alike.get(score.name),
                sizes=sizes,
            )
            for score in scores
        ]

    def _sets(self, samples: Tensor, reference: Tensor, model: Source | None) -> Sets:
        held_out = self.reference.held_out or self.reference.samples
        return Sets(samples=samples, reference=reference, model=model, held_out=held_out, seed=self.seed)


def by_model(metrics: Sequence[Metric]) -> list[Metric]:
    """Return the metrics of models."""
    return [metric for metric in metrics if metric.needs == MODEL]
