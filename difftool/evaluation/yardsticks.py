"""The yardsticks of several runs: the sliced Wasserstein-2 distance to fresh data, or metrics in features."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch

from difftool.components import Dataset, Features, Metric
from difftool.errors import Diverged
from difftool.evaluation.evaluation import Evaluator
from difftool.evaluation.reference import Reference
from difftool.evaluation.settings import HELD_OUT, TRAIN, Evaluating
from difftool.evaluation.views import FEATURES
from difftool.runs.recipe import component_table
from difftool.sampling.comparison import Entry
from difftool.sampling.fresh_data import FreshData
from difftool.sampling.loop import collect
from difftool.sampling.model import Model

SLICED_W2 = "sliced_w2"


class Yardstick(ABC):
    """A way to score samples of several models against the same data."""

    def __init__(self, better: Mapping[str, Literal["lower", "higher"]], floors: Mapping[str, float | None]) -> None:
        self.better = dict(better)
        """The direction of each score."""
        self.floors = dict(floors)
        """Each score of data against data, None for one that has none."""

    @property
    @abstractmethod
    def words(self) -> str:
        """The measure and its data in words."""

    @property
    def facts(self) -> Mapping[str, Any]:
        """The same as plain values."""
        return {}

    @abstractmethod
    def measure(self, source: Model, entry: Entry, watch: Callable[[Any], object]) -> tuple[dict[str, float], int]:
        """Return the scores of the samples of an entry, NaN where they diverged, and its network calls."""


class SlicedW2(Yardstick):
    """The sliced Wasserstein-2 distance to fresh data, in the model units of the first run."""

    def __init__(self, first: Model, label: int | None, count: int) -> None:
        """Load fresh data. Raises `DifftoolError` if they are not available here."""
        self.scaling = first.data.scaling
        self.fresh = FreshData.of(first.recipe[Dataset], self.scaling, label, count)
        super().__init__({SLICED_W2: "lower"}, {SLICED_W2: self.fresh.data_distance})

    @property
    def words(self) -> str:
        return f"sliced W2: against {self.fresh.count:,} fresh items"

    def measure(self, source: Model, entry: Entry, watch: Callable[[Any], object]) -> tuple[dict[str, float], int]:
        found = collect(source, entry.plan, watch=watch)
        if not bool(found.x.isfinite().all()):
            return {SLICED_W2: math.nan}, found.calls
        x = self.scaling.to_model(source.data.scaling.to_data(found.x))
        return {SLICED_W2: self.fresh.distance(x)}, found.calls


class Metrics(Yardstick):
    """Metrics, as `difftool evaluate` measures them, against items of the first run."""

    def __init__(
        self,
        first: Model,
        metrics: Sequence[Metric],
        features: Features,
        *,
        label: str | None,
        count: int,
        against: str | None,
        device: torch.device,
    ) -> None:
        """Load the data and compute their features. By default they are held-out items, if the run has any.

        Raises `UsageError` and `DifftoolError`.
        """
        against = against or (HELD_OUT if first.held_out else TRAIN)
        reference = Reference.of(first, against).of_class(first.label_index(label))
        settings = Evaluating(num_samples=count, label=label, against=against)
        self.evaluator = Evaluator(reference, metrics, features, settings, device=device)
        floors = self.evaluator.floors(count)  # data in place of samples, which also tell the names of the scores
        super().__init__({score.name: score.better for score in floors}, {score.name: score.value for score in floors})

    @property
    def words(self) -> str:
        names = ", ".join(metric.name for metric in self.evaluator.metrics)
        features = f" of {self.evaluator.features.name}" if FEATURES in self.evaluator.views else ""
        reference = self.evaluator.reference
        return f"{names}{features}: against {len(reference.samples):,} {reference.name} items of the first run"

    @property
    def facts(self) -> Mapping[str, Any]:
        reference = self.evaluator.reference
        return {
            "metrics": [component_table(metric) for metric in self.evaluator.metrics],
            "features": component_table(self.evaluator.features) if FEATURES in self.evaluator.views else None,
            "against": reference.name,
            "reference": len(reference.samples),
        }

    def measure(self, source: Model, entry: Entry, watch: Callable[[Any], object]) -> tuple[dict[str, float], int]:
        try:
            found = self.evaluator.evaluate(source, entry.plan, watch=watch)
        except Diverged:
            return dict.fromkeys(self.better, math.nan), entry.calls
        self.better |= {each.score.name: each.score.better for each in found.measured}
        # of as many samples and items as the floor, since many metrics depend on these numbers
        scores = {each.score.name: (each.alike or each.score).value for each in found.measured}
        return scores, found.facts.get("sampling", {}).get("calls", entry.calls)
