"""An evaluation: samples of a model measured against data, and the document that records it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from difftool.components import Features, Guidance, Metric, Sampler, Spacing
from difftool.diffusion.estimate import Step
from difftool.errors import UsageError
from difftool.evaluation.drawing import Drawn, conditions_from, draw_rows
from difftool.evaluation.measuring import Measured, Measurer
from difftool.evaluation.reference import Reference
from difftool.evaluation.scores import Score
from difftool.evaluation.settings import Evaluating
from difftool.evaluation.views import View, Watch, views_for
from difftool.options import Options, fields, plain
from difftool.plugins.registry import registry
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
        rows = {name: view.of_data(reference.samples, watch) for name, view in self.views.items()}
        others = (
            {}
            if reference.others is None
            else {name: view.of_data(reference.others, watch) for name, view in self.views.items()}
        )
        self.measurer = Measurer(metrics, reference, rows, others, count=settings.num_samples, seed=settings.seed)

    @property
    def numbers(self) -> int:
        """The number of numbers that are kept of one sample."""
        return sum(rows.shape[1] for rows in self.measurer.rows.values())

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
        watch: Callable[[Step], object] | None = None,
        tell: Callable[[Metric], object] | None = None,
    ) -> Evaluation:
        """Draw samples and measure them. `watch` is called after each step, and `tell` before each metric."""
        drawn = draw_rows(source, plan, self.views, watch) if self.views else Drawn()
        measured = []
        for metric in self.metrics:
            if tell is not None:
                tell(metric)
            measured += self.measurer.measure(drawn.rows, source, metric)
        return Evaluation(
            source=source.name,
            measured=measured,
            n=plan.num_samples if self.views else 0,
            against=self.reference.name,
            reference=len(self.reference.samples),
            facts={
                **source.evaluated,
                **({"features": component_table(self.features)} if "features" in self.views else {}),
                **({"sampling": {**table_of(plan), "calls": drawn.calls}} if self.views else {}),
            },
        )


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
