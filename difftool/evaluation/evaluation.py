"""An evaluation: samples of a model measured against data, and the document that records it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from difftool.components import Features, Guidance, Metric, Sampler, Spacing
from difftool.data.samples import Samples
from difftool.diffusion.estimate import Step
from difftool.errors import UsageError, printable
from difftool.evaluation.copied import Copied
from difftool.evaluation.copies import copies as find_copies
from difftool.evaluation.drawing import Drawn, conditions_from, draw_rows, drawn_items, table_of
from difftool.evaluation.measuring import Measured, Measurer, by_model
from difftool.evaluation.reference import Reference, some
from difftool.evaluation.scores import Score
from difftool.evaluation.settings import Evaluating
from difftool.evaluation.views import FEATURES, Rows, View, Watch, rows_of, views_for
from difftool.evaluation.words import beside_floor, number
from difftool.runs.recipe import component_table
from difftool.sampling.plan import Plan

if TYPE_CHECKING:
    from difftool.sampling.source import Source


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """The scores of a model, and all that they depend on."""

    source: str
    """The name of the evaluated run or file."""
    measured: Sequence[Measured]
    n: int
    """The number of samples; 0 if none were drawn, since every metric measures the model itself."""
    against: str
    """The data that they are compared with: `train`, `held-out`, or a path."""
    reference: int
    """The number of items that they are compared with."""
    copied: Copied | None = None
    """The nearness of the samples to training items, if that was asked for."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """The step, weights and digest of the model, the features, and the settings of sampling."""

    def __getitem__(self, name: str) -> Score:
        """Return the score of a name, such as `kid`. Raises `KeyError`."""
        return next((each.score for each in self.measured if each.score.name == name), None) or self._unknown(name)

    def _unknown(self, name: str) -> Score:
        raise KeyError(f"{name!r}; there are {', '.join(self)}")

    def __iter__(self) -> Iterator[str]:
        """Iterate over the names of the scores."""
        return (each.score.name for each in self.measured)

    def __len__(self) -> int:
        return len(self.measured)

    def __repr__(self) -> str:
        rows = [f"{each.score.name} {number(each.score)}, {beside_floor(each)}" for each in self.measured]
        rows += [] if self.copied is None else [self.copied.words]
        return "\n  ".join([f"Evaluation of {self.source}, {self.n:,} samples against {self.against}:", *rows])

    def document(self) -> dict[str, Any]:
        """Return the evaluation as plain values, as evaluations.jsonl holds it."""
        counts = {"n": self.n, "against": self.against, "reference": self.reference}
        copies = {} if self.copied is None else {"copies": self.copied.document()}
        return {**self.facts, **counts, "scores": [each.document() for each in self.measured], **copies}


class Evaluator:
    """Metrics, features and data, prepared once, to evaluate one model or several."""

    def __init__(
        self,
        reference: Reference,
        metrics: Sequence[Metric],
        features: Features,
        settings: Evaluating,
        *,
        device: torch.device,
        copies: bool = False,
        watch: Watch | None = None,
    ) -> None:
        """Build the features and compute those of the data. `watch(done, total)` is called as that goes.

        With `copies`, the samples of models are also compared with the training items one by one. Raises `UsageError`
        and `DifftoolError`.
        """
        if twice := next((metric.name for i, metric in enumerate(metrics) if metric in metrics[:i]), None):
            raise UsageError(f"--metric: names {twice} twice")
        reference = reference.at_most(settings.reference)
        self.reference, self.metrics, self.features, self.settings = reference, metrics, features, settings
        self.views: Mapping[str, View] = views_for(
            metrics, features, reference.train, device=device, seed=settings.seed, features_too=copies
        )
        parts = {"reference": reference.samples}
        if reference.others is not None:
            parts["others"] = some(reference.others, settings.num_samples)
        trained = {"train": reference.train, "held_out": reference.held_out} if copies else {}
        found = rows_of(self.views, parts, {name: part for name, part in trained.items() if part is not None}, watch)
        self.measurer = Measurer(reference, found["reference"], found.get("others", {}), seed=settings.seed)
        self.trained = {name: found[name][FEATURES] for name in trained if name in found}
        """The features of the training and the held-out items, where samples are compared with them one by one."""

    @property
    def numbers(self) -> int:
        """The number of numbers that are kept of one sample."""
        return sum(rows.shape[1] for rows in self.measurer.rows.values())

    @property
    def bytes(self) -> int:
        """The memory that the rows of the samples and of the data take."""
        parts = (self.measurer.rows, self.measurer.others, self.trained)
        unique = {rows.data_ptr(): rows.numel() for part in parts for rows in part.values()}
        return 4 * (sum(unique.values()) + self.settings.num_samples * self.numbers)

    def plan(
        self,
        source: Source,
        *,
        sampler: str | Sampler = "ddim",
        spacing: str | Spacing = "trailing",
        guidance: float | str | Guidance | None = None,
    ) -> Plan:
        """Return the plan of the samples: their conditions are those of items of the data. Raises `DifftoolError`."""
        conditions = dict(conditions_from(self.reference.samples, source, self.settings.num_samples))
        if self.settings.label is not None:
            conditions.pop("label", None)
        return Plan.of(
            source,
            self.settings.sampling,
            sampler=sampler,
            spacing=spacing,
            guidance=guidance,
            conditions=conditions,
        )

    def evaluate(
        self,
        source: Source,
        plan: Plan,
        *,
        name: str = "",
        watch: Callable[[Step], object] | None = None,
        tell: Callable[[Metric], object] | None = None,
    ) -> Evaluation:
        """Draw samples and measure them. `watch` is called after each step, and `tell` before each metric.

        What can be refused without samples is refused before they are drawn.
        """
        tell = tell or (lambda _: None)
        found: dict[Metric, list[Measured]] = {}
        for metric in by_model(self.metrics):
            tell(metric)
            found[metric] = self.measurer.of_model(metric, source)
        self.floors(plan.num_samples)
        drawn = draw_rows(source, plan, self.views, watch, keep=bool(self.trained)) if self.views else Drawn()
        facts = {**source.evaluated, **({"sampling": {**table_of(plan), "calls": drawn.calls}} if self.views else {})}
        take = partial(drawn_items, source, plan, drawn.items)
        return self._evaluation(name or source.name, drawn.rows, source, take, found, tell, facts)

    def evaluate_stored(
        self, samples: Samples, *, name: str, watch: Watch | None = None, tell: Callable[[Metric], object] | None = None
    ) -> Evaluation:
        """Measure samples that are there already. Raises `UsageError` for a metric of models."""
        if metrics := by_model(self.metrics):
            raise UsageError(f"--metric: {metrics[0].name} measures models, and {printable(name)} holds samples")
        samples = some(samples, self.settings.num_samples)
        self.floors(len(samples))
        rows = {view: function.of_data(samples, watch) for view, function in self.views.items()}
        return self._evaluation(name, rows, None, samples.take_items, {}, tell or (lambda _: None), {"step": 0})

    def floors(self, count: int) -> list[Score]:
        """Return the scores of data against data, beside which `count` samples stand. They are measured once.

        This refuses what cannot be measured before any sample is drawn.
        """
        metrics = (metric for metric in self.metrics if metric.needs in self.views)
        return [score for metric in metrics for score in self.measurer.floor(metric, count).scores]

    def leave_unsuitable_out(self, count: int) -> dict[str, str]:
        """Leave out the metrics that refuse to compare data with data, and return why by name.

        Raises `UsageError` if none is left.
        """
        reasons: dict[str, str] = {}
        for metric in self.metrics:
            try:
                if metric.needs in self.views:
                    self.measurer.floor(metric, count)
            except UsageError as error:
                reasons[metric.name] = str(error)
        if len(reasons) == len(self.metrics):
            raise UsageError(next(iter(reasons.values())))
        self.metrics = [metric for metric in self.metrics if metric.name not in reasons]
        return reasons

    def _evaluation(
        self,
        name: str,
        rows: Rows,
        source: Source | None,
        take: Callable[[Sequence[int]], Tensor],
        found: dict[Metric, list[Measured]],
        tell: Callable[[Metric], object],
        facts: Mapping[str, Any],
    ) -> Evaluation:
        for metric in self.metrics:
            if metric not in found:
                tell(metric)
                found[metric] = self.measurer.of_samples(metric, rows, source)
        view = self.views.get(FEATURES)
        features = {} if view is None else {"features": {**component_table(self.features), **view.facts}}
        return Evaluation(
            source=name,
            measured=[each for metric in self.metrics for each in found[metric]],
            n=max((len(part) for part in rows.values()), default=0),
            against=self.reference.name,
            reference=len(self.reference.samples),
            copied=self._copied(rows, take),
            facts={**facts, **features},
        )

    def _copied(self, rows: Rows, take: Callable[[Sequence[int]], Tensor]) -> Copied | None:
        """Compare samples with the training items one by one, if that is asked for. `take` gives samples by number."""
        if not self.trained:
            return None
        found = find_copies(rows[FEATURES], self.trained["train"], self.trained.get("held_out"))
        return Copied(found, self.reference.train, take([pair.sample for pair in found.nearest]))
