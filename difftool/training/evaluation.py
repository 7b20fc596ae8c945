"""Metrics of a run while it trains, measured on its samples as `difftool evaluate` measures them."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from difftool.components import Component, Features, Metric
from difftool.errors import DifftoolError, counted
from difftool.evaluation.evaluation import Evaluator
from difftool.evaluation.reference import Reference
from difftool.evaluation.settings import HELD_OUT, TRAIN, Evaluating
from difftool.evaluation.views import FEATURES, MODEL
from difftool.options import make
from difftool.plugins.registry import registry
from difftool.runs.evaluations import append_evaluation, read_evaluations

if TYPE_CHECKING:
    from difftool.data.samples import Samples
    from difftool.runs.folder import RunFolder
    from difftool.sampling.model import Model
    from difftool.specs import Progress

ERROR = "_error"
"""The end of the name of the standard error of a number."""


def with_features(companions: Sequence[Component]) -> list[Component]:
    """Return the components that accompany a run: with the default features if it has metrics alone, and without
    features if it has no metrics."""
    if not any(isinstance(one, Metric) for one in companions):
        return [one for one in companions if not isinstance(one, Features)]
    named = any(isinstance(one, Features) for one in companions)
    return [*companions, *([] if named else [make(registry().of_kind(Features, Features.default), {})])]


class Evaluation:
    """The metrics of a run, ready to measure the model that would be saved now.

    All that is random about them is a function of keys, and the steps of the run do not depend on them.
    """

    def __init__(
        self,
        model: Model,
        train: Samples,
        held_out: Samples | None,
        companions: Sequence[Component],
        *,
        due: Callable[[int], bool],
        folder: Callable[[], RunFolder],
    ) -> None:
        """Compute the features of the data, and measure data against data.

        `companions` have the metrics and their features among them, `due` says after which steps to measure, and
        `folder` returns the run folder for the next write. Raises `UsageError` for metrics or features that do not
        suit the data, and `DifftoolError`.
        """
        self.model, self.due, self.folder = model, due, folder
        wishes = model.recipe.training
        name = wishes.evaluate_against or (TRAIN if held_out is None else HELD_OUT)
        own, others = (train, held_out) if name == TRAIN or held_out is None else (held_out, train)
        reference = Reference(name=name, samples=own, others=others, train=train, held_out=held_out)
        metrics = [one for one in companions if isinstance(one, Metric)]
        features = next(one for one in companions if isinstance(one, Features))
        settings = Evaluating(num_samples=wishes.evaluate_samples, against=name)
        self.evaluator = Evaluator(reference, metrics, features, settings, device=model.device)
        self.plan = self.evaluator.plan(model)
        self.better: dict[str, str] = {}
        """The better direction, `lower` or `higher`, by the name of the number in the rows."""
        self.complete = all(metric.needs != MODEL for metric in metrics)
        """True if `better` has all numbers before the first measurement; not those of metrics of the model."""
        self._learn({score.name: score.better for score in self.evaluator.floors(settings.num_samples)})

    def __str__(self) -> str:
        names = ", ".join(metric.name for metric in self.evaluator.metrics)
        views, reference = self.evaluator.views, self.evaluator.reference
        features = f" by {self.evaluator.features.name}" if FEATURES in views else ""
        steps = counted(self.plan.steps, "step")
        drawn = f" on {counted(self.plan.num_samples, 'sample')} of {steps}" if views else ""
        items = "training" if reference.name == TRAIN else reference.name
        return f"measures {names}{features}{drawn} against {len(reference.samples):,} {items} items"

    def restore(self, folder: RunFolder) -> None:
        """Learn from the evaluations of a run that goes on which numbers there are."""
        for evaluation in read_evaluations(folder):
            self._learn({score["name"]: score["better"] for score in evaluation["scores"]})

    def __call__(self, progress: Progress) -> Mapping[str, float | None]:
        """Measure the model if that is due, and return the numbers of its row; None for what is not measured."""
        numbers = {name: None for one in self.better for name in (one, one + ERROR)}
        if not self.due(progress.step):
            return numbers
        try:
            document = self.evaluator.evaluate(self.model, self.plan).document()
        except DifftoolError as error:
            warnings.warn(f"step {progress.step} was not evaluated: {error}", stacklevel=2)
            return numbers
        document = {key: value for key, value in document.items() if value != ""}  # a file gives a model its digest
        append_evaluation(self.folder(), document)
        self._learn({score["name"]: score["better"] for score in document["scores"]})
        found = {_name(score["name"]): score for score in document["scores"]}
        values = {name: score["value"] for name, score in found.items()}
        return {**numbers, **values, **{name + ERROR: score["error"] for name, score in found.items()}}

    def _learn(self, better: Mapping[str, str]) -> None:
        self.better.update({_name(name): word for name, word in better.items()})


def _name(score: str) -> str:
    """Return the name of a score as rows have it: `fid_infinity` for `fid-infinity`."""
    return score.replace("-", "_")
