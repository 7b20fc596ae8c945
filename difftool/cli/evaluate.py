"""`difftool evaluate`: how good the samples of models are, against data and beside the same measure of data."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from difftool.cli.command import component_command, given_component, given_names, given_values
from difftool.cli.console import help_text, note, progress, result_json
from difftool.cli.flags import Group, make_from_flags
from difftool.cli.guidance import guidance_groups, guidances, words_of
from difftool.cli.outputs import naming_out
from difftool.cli.parameters import AsJson, Device, Overwrite
from difftool.cli.scores import print_scores
from difftool.cli.sources import PANELS, EmaLength, Opened, SourceRequest, Timesteps, Weights, source_groups
from difftool.components import Features, Guidance, Metric, Sampler, Spacing
from difftool.errors import UsageError, counted, spending
from difftool.evaluation.settings import Evaluating
from difftool.files import check_output, write_text
from difftool.options import options_of
from difftool.plugins.registry import registry

if TYPE_CHECKING:
    from difftool.evaluation.evaluation import Evaluation, Evaluator
    from difftool.sampling.plan import Plan


def _metrics_named(names: Sequence[str] | None) -> list[type[Metric]]:
    """Return the metrics of names, of which each may be several joined by commas. Raises `UsageError`."""
    words = [word.strip() for name in names or [Metric.default] for word in name.split(",")]
    if not all(words):
        raise UsageError("--metric: must be names joined by commas, such as fid,kid")
    return [registry().of_kind(Metric, word) for word in dict.fromkeys(words)]


def _choose(_ctx: typer.Context, params: dict[str, Any], _args: list[str]) -> Sequence[Group]:
    chosen = (Sampler, Spacing, Features)
    groups = [Group.of(registry().of_kind(base, params.get(base.kind) or base.default)) for base in chosen]
    groups.append(Group.of(*_metrics_named(params.get(Metric.kind))))
    evaluating = Group("evaluate", (Evaluating,), "Evaluation")
    return [*source_groups(params), *groups, *guidance_groups(params), evaluating]


def evaluate(
    ctx: typer.Context,
    models: Annotated[
        list[Path] | None,
        typer.Argument(metavar="[RUN]...", help=help_text("Run folders or model files.", "default: the newest run")),
    ] = None,
    timesteps: Timesteps = None,
    weights: Weights = None,
    ema_length: EmaLength = None,
    table: Annotated[
        Path | None, typer.Option("--csv", metavar="FILE", help="Also write the scores to a file, a row each.")
    ] = None,
    device: Device = "auto",
    overwrite: Overwrite = False,
    json: AsJson = False,
) -> None:
    """Measure how good the samples of models are, against data and beside the same measure of data."""
    named: list[Path | None] = [*models] if models else [None]
    requests = [SourceRequest.named(ctx, model) for model in named]
    values = given_values(ctx)
    settings: Evaluating = make_from_flags(Evaluating, values["evaluate"])
    guidance, *others = guidances(ctx)
    if others:
        raise UsageError(f"{Guidance.flag}: evaluate takes one guidance")
    classes = _metrics_named(given_names(ctx).get(Metric.kind))
    metrics = [make_from_flags(cls, options_of(cls, values[Metric.kind])) for cls in classes]
    features, sampler, spacing = (
        given_component(ctx, Features),
        given_component(ctx, Sampler),
        given_component(ctx, Spacing),
    )
    for request in requests:
        request.check(settings.sampling)
    if table is not None:
        with naming_out("csv"):
            check_output(table, overwrite=overwrite)

    from difftool import devices
    from difftool.evaluation.evaluation import Evaluator
    from difftool.evaluation.reference import Reference

    chosen, found = devices.choose(device), []
    opened = [request.open(chosen, compiled=settings.compile) for request in requests]
    first = opened[0].source
    reference = Reference.of(first, settings.against).of_class(first.label_index(settings.label))
    with ExitStack() as stack:
        stack.enter_context(devices.threads(settings.threads, opened[0].threads))
        with progress("features of data", 1) as bar:
            evaluator = Evaluator(reference, metrics, features, settings, device=chosen)
            bar.update(1)
        for each in opened:
            plan = evaluator.plan(each.source, sampler=sampler, spacing=spacing, guidance=guidance)
            found.append(_evaluated(each, evaluator, plan))
    if table is not None:
        write_text(table, _rows(found), overwrite=overwrite)
    documents = [{"source": one.source, **one.document()} for one in found]
    if json:
        result_json({"evaluations": documents})
    else:
        print_scores(found)


def add_to(app: typer.Typer) -> None:
    app.command(cls=component_command(_choose, command="evaluate", panels=PANELS))(evaluate)


def _evaluated(opened: Opened, evaluator: Evaluator, plan: Plan) -> Evaluation:
    """Evaluate one model under a progress bar, and add the result to its run."""
    from difftool import devices
    from difftool.runs.evaluations import append_evaluation

    source, reference = opened.source, evaluator.reference
    guided = "" if plan.guidance is None else f", {words_of(plan.guidance)}"
    note(
        f"evaluating {opened.where} ({source.description}): {counted(plan.num_samples, 'sample')}, "
        f"{plan.sampler.name}, {counted(plan.steps, 'step')}, {plan.spacing.name}{guided}; against "
        f"{len(reference.samples):,} {reference.name} items; {devices.describe(source.device)}, seed {plan.seed}"
    )
    with progress("sampling", plan.batches * plan.steps) as bar, spending(plan.batch_size):

        def watch(step: Any) -> None:
            finished = step.first + (len(step.x) if step.done else 0)
            words = f"{finished:,}/{counted(plan.num_samples, 'sample')}"
            bar.update(step.first // plan.batch_size * plan.steps + step.number, words)

        found = evaluator.evaluate(source, plan, watch=watch)
    if opened.run is not None:
        append_evaluation(opened.run, found.document())
    return found


def _rows(evaluations: Sequence[Evaluation]) -> str:
    """Return the scores as the text of a CSV file."""
    text = io.StringIO()
    columns = (
        "source",
        "step",
        "weights",
        "against",
        "metric",
        "name",
        "value",
        "error",
        "floor",
        "n",
        "better",
        "unit",
    )
    writer = csv.DictWriter(text, columns, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    for one in evaluations:
        document = one.document()
        writer.writerows({**document, "source": one.source, **score} for score in document["scores"])
    return text.getvalue()
