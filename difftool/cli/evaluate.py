"""`difftool evaluate`: how good the samples of models are, against data and beside the same measure of data."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from difftool import manifest
from difftool.cli.command import component_command, given_component, given_names, given_values
from difftool.cli.console import Bar, duration, help_text, note, progress, result_json
from difftool.cli.flags import Group, make_from_flags, split_names
from difftool.cli.guidance import guidance_groups, guidances, words_of
from difftool.cli.outputs import naming_out, save_figure
from difftool.cli.parameters import AsJson, Device, Overwrite
from difftool.cli.scores import csv_of, facts_of, print_scores
from difftool.cli.sources import PANELS, EmaLength, Opened, SourceRequest, Timesteps, Weights, source_groups
from difftool.components import Features, Guidance, Metric, Sampler, Spacing
from difftool.errors import DifftoolError, UsageError, counted, printable, spending
from difftool.evaluation.settings import HELD_OUT, TRAIN, Evaluating, is_stored
from difftool.files import check_output, write_text
from difftool.options import options_of
from difftool.paths import check_inside
from difftool.plugins.registry import registry

if TYPE_CHECKING:
    import torch

    from difftool.data.samples import Samples
    from difftool.diffusion.estimate import Step
    from difftool.evaluation.evaluation import Evaluation, Evaluator
    from difftool.evaluation.reference import Reference
    from difftool.runs.folder import RunFolder
    from difftool.sampling.plan import Plan


def metrics_named(names: Sequence[str] | None) -> list[type[Metric]]:
    """Return the metrics of names, of which each may be several joined by commas. Raises `UsageError`."""
    words = split_names(names or [Metric.default], Metric.flag or "", "fid,kid")
    return [registry().of_kind(Metric, word) for word in words]


def given_metrics(ctx: typer.Context) -> list[Metric]:
    """Return the metrics that the command line names, or the default ones, with their options. Raises `UsageError`."""
    values = given_values(ctx)[Metric.kind]
    classes = metrics_named(given_names(ctx).get(Metric.kind))
    return [make_from_flags(cls, options_of(cls, values)) for cls in classes]


def _choose(_ctx: typer.Context, params: dict[str, Any], _args: list[str]) -> Sequence[Group]:
    chosen = (Sampler, Spacing, Features)
    groups = [Group.of(registry().of_kind(base, params.get(base.kind) or base.default)) for base in chosen]
    groups.append(Group.of(*metrics_named(params.get(Metric.kind))))
    evaluating = Group("evaluate", (Evaluating,), "Evaluation")
    return [*source_groups(params), *groups, *guidance_groups(params), evaluating]


def evaluate(
    ctx: typer.Context,
    models: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="RUN",
            help=help_text(
                "Run folders or model files, or samples that exist: .npy, .npz, a folder of images.",
                "default: the newest run",
            ),
        ),
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
    asked = _asked(ctx)
    requests = _requests(ctx, models or [], asked)
    if table is not None:
        with naming_out("csv"):
            check_output(table, overwrite=overwrite)

    from difftool import devices

    found = _evaluated(requests, asked, devices.choose(device))
    if table is not None:
        write_text(table, csv_of(found), overwrite=overwrite)
    if json:
        result_json(facts_of(found))
    else:
        print_scores(found)


def add_to(app: typer.Typer) -> None:
    app.command(cls=component_command(_choose, command="evaluate", panels=PANELS))(evaluate)


@dataclass(frozen=True)
class _Asked:
    """The measurement that the command line asks for."""

    settings: Evaluating
    metrics: list[Metric]
    by_default: bool
    """True if the command line names no metrics, so that those may be left out that do not suit the data."""
    features: Features
    drawing: dict[str, Any]
    """The sampler, the spacing and the guidance."""


def _asked(ctx: typer.Context) -> _Asked:
    """Return what the command line asks for. Raises `UsageError`."""
    settings: Evaluating = make_from_flags(Evaluating, given_values(ctx)["evaluate"])
    guidance, *others = guidances(ctx)
    if others:
        raise UsageError(f"{Guidance.flag}: evaluate takes one; call it again for each of the others")
    metrics, features = given_metrics(ctx), given_component(ctx, Features)
    drawing = {"sampler": given_component(ctx, Sampler), "spacing": given_component(ctx, Spacing), "guidance": guidance}
    return _Asked(settings, metrics, Metric.kind not in given_names(ctx), features, drawing)


def _requests(ctx: typer.Context, paths: Sequence[Path], asked: _Asked) -> list[SourceRequest | Path]:
    """Return what to evaluate: models, or paths of samples that exist. Raises `UsageError`."""
    stored = [path for path in paths if path.exists() and is_stored(path)]
    if len(stored) == len(paths) > 0 and asked.settings.against in (TRAIN, HELD_OUT):
        raise UsageError(
            f"--against: {printable(str(stored[0]))} holds samples; name the run with whose data they are compared"
        )
    named: list[Path | None] = [*paths] if paths else [None]
    requests = [path if path is not None and path in stored else SourceRequest.named(ctx, path) for path in named]
    for request in requests:
        if isinstance(request, SourceRequest):
            request.check(asked.settings.sampling)
    if stored and (name := next((metric.name for metric in asked.metrics if metric.needs == "model"), None)):
        raise UsageError(f"--metric: {name} measures models, and {printable(str(stored[0]))} holds samples")
    return requests


def _evaluated(requests: Sequence[SourceRequest | Path], asked: _Asked, device: torch.device) -> list[Evaluation]:
    """Open and evaluate models, and samples that exist, all of them beside the same data."""
    from difftool import devices
    from difftool.evaluation.evaluation import Evaluator
    from difftool.evaluation.stored import read_stored

    settings = asked.settings
    candidates = [
        request if isinstance(request, Path) else request.open(device, compiled=settings.compile)
        for request in requests
    ]
    first, reference = _reference(candidates, settings, device)
    stored = {path: read_stored(path, first.source.data) for path in candidates if isinstance(path, Path)}
    with devices.threads(settings.threads, first.threads):
        with _bar("features of data") as watch:
            copies = settings.looks_for_copies(first.source.data.form, own=reference.own)
            evaluator = Evaluator(
                reference, asked.metrics, asked.features, settings, device=device, copies=copies, watch=watch
            )
        note(f"measuring {', '.join(metric.name for metric in asked.metrics)} against {evaluator.reference.words}")
        for view in evaluator.views.values():
            if view.facts:
                note(f"{view.name}: {', '.join(f'{name} {value}' for name, value in view.facts.items())}")
        if asked.by_default:
            count = min([settings.num_samples, *map(len, stored.values())])
            for reason in evaluator.leave_unsuitable_out(count).values():
                note(f"left out: {reason}")
        return [
            _measure_stored(candidate, stored[candidate], evaluator)
            if isinstance(candidate, Path)
            else _measure_model(candidate, evaluator, evaluator.plan(candidate.source, **asked.drawing))
            for candidate in candidates
        ]


def _reference(
    candidates: Sequence[Opened | Path], settings: Evaluating, device: torch.device
) -> tuple[Opened, Reference]:
    """Return the model whose data the samples are like, and the items that they are compared with."""
    from difftool.evaluation.reference import Reference

    models = [candidate for candidate in candidates if isinstance(candidate, Opened)]
    if models:
        first = models[0]
        reference = Reference.of(first.source, settings.against)
    else:
        first = SourceRequest(Path(settings.against), None, None, None, None).open(device)
        reference = replace(Reference.of(first.source), name=settings.against)
    for other in models[1:]:
        _check_alike(first, other)
    return first, reference.of_class(first.source.label_index(settings.label))


def _check_alike(first: Opened, other: Opened) -> None:
    """Refuse models of items of another shape, and warn of models of other data."""
    a, b = first.source.data, other.source.data
    if (a.shape, a.form) != (b.shape, b.form):
        raise UsageError(f"{other.where} has {b.words}, and {first.where} {a.words}; evaluate each by itself")
    if other.dataset != first.dataset:
        warnings.warn(f"{other.where} was trained on other data; compared with those of {first.where}", stacklevel=1)
    elif other.source.held_out != first.source.held_out:
        warnings.warn(f"{other.where} held out other items than {first.where} did", stacklevel=1)


def _measure_model(opened: Opened, evaluator: Evaluator, plan: Plan) -> Evaluation:
    """Evaluate one model under progress bars, and add the result to its run."""
    from difftool import devices

    source = opened.source
    guided = "" if plan.guidance is None else f", {words_of(plan.guidance)}"
    sampling = (
        f": {counted(plan.num_samples, 'sample')}, {plan.sampler.name}, {counted(plan.steps, 'step')}, "
        f"{plan.spacing.name}{guided}"
    )
    note(
        f"evaluating {opened.where} ({source.description}){sampling if evaluator.views else ''}; "
        f"{devices.describe(source.device)}, seed {plan.seed}"
    )
    with _sampling_bar(evaluator, plan) as watch, spending(plan.batch_size):
        found = evaluator.evaluate(source, plan, name=opened.where, watch=watch)
    if opened.run is not None:
        _add(opened.run, found)
    return found


def _measure_stored(path: Path, samples: Samples, evaluator: Evaluator) -> Evaluation:
    """Evaluate samples that exist under a progress bar."""
    note(f"evaluating {path}: {counted(len(samples), 'sample')}")
    with _bar("features of samples") as watch:
        return evaluator.evaluate_stored(samples, name=str(path), watch=watch)


def _add(run: RunFolder, found: Evaluation) -> None:
    """Add an evaluation to its run, whose folder may be somebody else's, and not writable."""
    from difftool.runs.evaluations import append_evaluation

    document = found.document()
    try:
        if found.copied is not None and (picture := _draw_pairs(run, found)) is not None:
            document["pictures"] = [picture.relative_to(run.path).as_posix()]
        append_evaluation(run, document)
    except DifftoolError as error:
        warnings.warn(f"the evaluation is not kept: {error}", stacklevel=1)


def _draw_pairs(run: RunFolder, found: Evaluation) -> Path | None:
    """Draw the samples that are nearest to training items into the run, or return None for a form without pictures."""
    assert found.copied is not None
    features = found.facts["features"]["name"].replace(":", "-")
    path = run.evaluation_pictures / f"step-{found.facts['step']:06d}-{features}-nearest.png"
    check_inside(path, run.path)
    figure = found.copied.figure(f"{run.path.name}: {found.copied.copies.verdict}")
    if figure is None:
        return None
    save_figure(figure, path, overwrite=True)
    manifest.record(path.parent, [manifest.entry(path)])
    return path


@contextmanager
def _bar(title: str) -> Iterator[Callable[[int, int], None]]:
    """Show a bar as soon as the function that the block gets is called with what is done and what is to do."""
    with ExitStack() as stack:
        bars: list[Bar] = []

        def watch(done: int, total: int) -> None:
            if not bars:
                bars.append(stack.enter_context(progress(title, total)))
            bars[0].update(done)

        yield watch


@contextmanager
def _sampling_bar(evaluator: Evaluator, plan: Plan) -> Iterator[Callable[[Step], None]]:
    """Say what time and memory the samples will take, once a few steps tell, and then show a bar."""
    total, started = plan.batches * plan.steps, time.perf_counter()
    with ExitStack() as stack:
        bars: list[Bar] = []

        def watch(step: Step) -> None:
            nonlocal started
            done = step.first // plan.batch_size * plan.steps + step.number
            if done <= 1:  # the first step may be slow
                started = time.perf_counter()
            elif not bars:
                seconds = (time.perf_counter() - started) / (done - 1) * (total - done)
                at_once, mebibytes = min(plan.batch_size, plan.num_samples), math.ceil(evaluator.bytes / 2**20)
                note(
                    f"sampling takes about {duration(max(1.0, seconds))}, {at_once:,} at once; the features of samples "
                    f"and data take {mebibytes:,} MiB"
                )
                bars.append(stack.enter_context(progress("sampling", total)))
            if bars:
                finished = step.first + (len(step.x) if step.done else 0)
                bars[0].update(done, f"{finished:,}/{counted(plan.num_samples, 'sample')}")

        yield watch
