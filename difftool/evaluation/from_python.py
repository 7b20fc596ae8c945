"""Evaluation from Python code."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from difftool.components import Features, Metric
from difftool.data.samples import Samples
from difftool.devices import threads
from difftool.evaluation.evaluation import Evaluation, Evaluator
from difftool.evaluation.reference import Reference
from difftool.evaluation.settings import Evaluating
from difftool.options import make
from difftool.plugins.registry import given

if TYPE_CHECKING:
    from difftool.sampling.source import Source


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
        copies = chosen.looks_for_copies(source.data.form, own=reference.own)
        evaluator = Evaluator(reference, named, given(Features, features), chosen, device=source.device, copies=copies)
        if not metrics:
            evaluator.leave_unsuitable_out(n)
        return evaluator.evaluate(source, evaluator.plan(source, **drawing))


def default_metrics() -> list[str]:
    """Return the names of the metrics that are measured where none is named."""
    return Metric.default.split(",")
