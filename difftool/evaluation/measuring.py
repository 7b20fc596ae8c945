"""Metrics at work: samples against data, and data against data."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
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
        """How much worse samples are than data, and one standard error of that; None without a floor."""
        if self.floor is None:
            return None
        return difference(self.floor, self.alike or self.score)

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
    return error is not None and abs(worse) <= CERTAIN * error


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


class Measurer:
    """Metrics with the data that samples are compared with, measured once against data for the floor."""

    def __init__(
        self,
        metrics: Sequence[Metric],
        reference: Reference,
        rows: Rows,
        others: Rows,
        *,
        count: int,
        seed: int = 0,
    ) -> None:
        """Take the rows of the reference, and of its other items, by view. `count` is the number of samples to come."""
        self.metrics, self.reference, self.rows = metrics, reference, rows
        self.count, self.seed = count, seed
        self._apart = {view: apart(found, others.get(view), count) for view, found in rows.items()}
        self._floors: dict[Metric, list[Score]] = {}

    def measure(self, rows: Rows, model: Source | None, metric: Metric) -> list[Measured]:
        """Return the scores of one metric, for samples with these rows by view, or for the model itself."""
        if metric.needs == MODEL:
            nothing = torch.empty(0, 0)
            scores = measure(metric, self._sets(nothing, nothing, model))
            return [Measured(metric=metric.name, score=score) for score in scores]
        samples, reference = rows[metric.needs], self.rows[metric.needs]
        data, other = self._apart[metric.needs]
        if metric not in self._floors:
            self._floors[metric] = measure(metric, self._sets(data, other, None))
        floors: Mapping[str, Score] = {score.name: score for score in self._floors[metric]}
        scores, alike = measure(metric, self._sets(samples, reference, model)), dict[str, Score]()
        if (len(data), len(other)) != (len(samples), len(reference)):
            same = measure(metric, self._sets(samples[: len(data)], other, model))
            alike = {score.name: score for score in same}
        return [
            Measured(
                metric=metric.name,
                score=replace(score, floor=None if score.name not in floors else floors[score.name].value),
                floor=floors.get(score.name),
                alike=alike.get(score.name),
                sizes=(len(data), len(other)),
            )
            for score in scores
        ]

    def _sets(self, samples: Tensor, reference: Tensor, model: Source | None) -> Sets:
        held_out = self.reference.held_out or self.reference.samples
        return Sets(samples=samples, reference=reference, model=model, held_out=held_out, seed=self.seed)
