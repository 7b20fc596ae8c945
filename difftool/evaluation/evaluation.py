"""An evaluation: samples of a model measured against data, and the document that records it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from difftool.components import Features, Guidance, Metric, Sampler, Spacing
from difftool.data.samples import Samples
from difftool.devices import threads
from difftool.diffusion.estimate import Step
from difftool.errors import UsageError, printable
from difftool.evaluation.drawing import Drawn, conditions_from, draw_rows
from difftool.evaluation.measuring import Measured, Measurer, by_model
from difftool.evaluation.reference import Reference, some
from difftool.evaluation.scores import Score
from difftool.evaluation.settings import Evaluating
from difftool.evaluation.views import FEATURES, Rows, View, Watch, views_for
from difftool.evaluation.words import beside_floor, number
from difftool.options import Options, fields, make, plain
from difftool.plugins.registry import given, registry
from difftool.runs.recipe import component_table
from difftool.sampling.plan import Plan

if TYPE_CHECKING:
    from difftool.sampling.source import Source


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """The scores of a model, and all that they depend on."""

    source: str
    """What was evaluated: a run, or a file."""
    measured: Sequence[Measured]
    n: int
    """The number of samples; 0 if none were drawn, since every metric measures the model itself."""
    against: str
    """What they are compared with: `train`, `held-out`, or a path."""
    reference: int
    """The number of items that they are compared with."""
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
        return "\n  ".join([f"Evaluation of {self.source}, {self.n:,} samples against {self.against}:", *rows])

    def document(self) -> dict[str, Any]:
        """Return the evaluation as plain values, as evaluations.jsonl holds it."""
        counts = {"n": self.n, "against": self.against, "reference": self.reference}
        return {**self.facts, **counts, "scores": [each.document() for each in self.measured]}


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
        watch: Watch | None = None,
    ) -> None:
        """Build the features and compute those of the data. `watch(done, total)` is called as that goes.

        Raises `UsageError` and `DifftoolError`.
        """
        if twice := next((metric.name for i, metric in enumerate(metrics) if metric in metrics[:i]), None):
            raise UsageError(f"--metric: names {twice} twice")
        self.reference, self.metrics, self.features, self.settings = reference, metrics, features, settings
        self.views: Mapping[str, View] = views_for(
            metrics, features, reference.train, device=device, seed=settings.seed
        )
        others = None if reference.others is None else some(reference.others, settings.num_samples)
        parts = [reference.samples, *([] if others is None else [others])]
        watches = in_turn([len(part) for _ in self.views for part in parts], watch)
        rows, other_rows = dict[str, Tensor](), dict[str, Tensor]()
        for name, view in self.views.items():
            rows[name] = view.of_data(reference.samples, next(watches))
            if others is not None:
                other_rows[name] = view.of_data(others, next(watches))
        self.measurer = Measurer(reference, rows, other_rows, seed=settings.seed)

    @property
    def numbers(self) -> int:
        """The number of numbers that are kept of one sample."""
        return sum(rows.shape[1] for rows in self.measurer.rows.values())

    @property
    def bytes(self) -> int:
        """The memory that the rows of the samples and of the data take."""
        data = sum(rows.numel() for part in (self.measurer.rows, self.measurer.others) for rows in part.values())
        return 4 * (data + self.settings.num_samples * self.numbers)

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
        self.measure_floors(plan.num_samples)
        drawn = draw_rows(source, plan, self.views, watch) if self.views else Drawn()
        facts = {**source.evaluated, **({"sampling": {**table_of(plan), "calls": drawn.calls}} if self.views else {})}
        return self._evaluation(name or source.name, drawn.rows, source, found, tell, facts)

    def evaluate_stored(
        self, samples: Samples, *, name: str, watch: Watch | None = None, tell: Callable[[Metric], object] | None = None
    ) -> Evaluation:
        """Measure samples that are there already. Raises `UsageError` for a metric of models."""
        if metrics := by_model(self.metrics):
            raise UsageError(f"--metric: {metrics[0].name} measures models, and {printable(name)} holds samples")
        samples = some(samples, self.settings.num_samples)
        self.measure_floors(len(samples))
        rows = {view: function.of_data(samples, watch) for view, function in self.views.items()}
        return self._evaluation(name, rows, None, {}, tell or (lambda _: None), {"step": 0})

    def measure_floors(self, count: int) -> None:
        """Measure data against data, which refuses what cannot be measured before any sample is drawn."""
        for metric in self.metrics:
            if metric.needs in self.views:
                self.measurer.floor(metric, count)

    def _evaluation(
        self,
        name: str,
        rows: Rows,
        source: Source | None,
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
            facts={**facts, **features},
        )


def in_turn(counts: Sequence[int], watch: Watch | None) -> Iterator[Watch | None]:
    """Yield a function for each of several parts, which tells `watch` of all parts together."""
    for end, count in zip(accumulate(counts), counts, strict=True):
        yield None if watch is None else partial(_told, watch, end - count, sum(counts))


def _told(watch: Watch, before: int, total: int, done: int, _count: int) -> None:
    watch(before + done, total)


def evaluate(
    source: Source,
    n: int,
    metrics: Sequence[str | Metric],
    features: str | Features,
    against: str | Path | Samples,
    drawing: Mapping[str, Any],
    settings: Mapping[str, Any],
) -> Evaluation:
    """Evaluate a source for Python code. `drawing` are the sampler, the spacing and the guidance.

    Raises `DifftoolError`, and `TypeError`.
    """
    if isinstance(metrics, (str, Metric)) or "num_samples" in settings:
        raise TypeError("evaluate() takes metrics as a list, and the number of samples as n")
    chosen = make(Evaluating, {**settings, "num_samples": n})
    reference = Reference.given(source, against).of_class(source.label_index(chosen.label))
    named = [given(Metric, metric) for metric in metrics or default_metrics()]
    with threads(chosen.threads):
        evaluator = Evaluator(reference, named, given(Features, features), chosen, device=source.device)
        return evaluator.evaluate(source, evaluator.plan(source, **drawing))


def default_metrics() -> list[str]:
    """Return the names of the metrics that are measured where none is named."""
    return Metric.default.split(",")


def table_of(plan: Plan) -> dict[str, Any]:
    """Return the settings of sampling as plain values: `{"sampler": "ddim", "sampler.eta": 0.5, "steps": 50, ...}`.

    Those that have their defaults are left out, but for the names of components, the steps and the seed.
    """
    table: dict[str, Any] = {**_changed(plan.settings), "steps": plan.steps, "seed": plan.seed}
    for part in (plan.sampler, plan.spacing, plan.guidance):
        if part is not None:
            table[part.kind] = registry().reference(type(part))
            table |= {f"{part.kind}.{name}": value for name, value in _changed(part).items()}
    return {name: value for name, value in table.items() if name != "num_samples"}


def _changed(record: Options) -> dict[str, Any]:
    """Return the options of a record that differ from their defaults, as plain values."""
    defaults = {f.name: f.default for f in fields(type(record)) if not f.required}
    names = {f.name for f in fields(type(record)) if f.required or getattr(record, f.name) != defaults[f.name]}
    return {name: value for name, value in plain(record).items() if name in names}
