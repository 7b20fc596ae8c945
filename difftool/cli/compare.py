"""`difftool compare`: samplers, spacings and guidances on one model, or several runs by their distance to the data."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from difftool.cli.command import component_command, given_component, given_names, given_values, named
from difftool.cli.comparing import Comparing, Wanted
from difftool.cli.console import help_text
from difftool.cli.evaluate import given_metrics, metrics_named
from difftool.cli.flags import Group, make_from_flags
from difftool.cli.guidance import guidance_groups, guidances
from difftool.cli.outputs import check_out
from difftool.cli.parameters import Device, FigureJson, Overwrite, out_option
from difftool.cli.sources import PANELS, EmaLength, SourceRequest, Timesteps, Weights, source_groups
from difftool.components import Component, Features, Metric, Sampler, Spacing
from difftool.errors import UsageError
from difftool.figures.formats import PICTURES
from difftool.plugins.registry import registry

CALLS, SEVERAL = (5, 10, 20, 40, 80, 160), (10, 20, 50)
"""The default network calls of one run, and of several."""
TABLES = (".csv", ".md", ".tex")
"""The suffixes of tables."""


def _choose(_ctx: typer.Context, params: dict[str, Any], _args: list[str]) -> Sequence[Group]:
    groups = [*source_groups(params), *guidance_groups(params)]
    if params.get(Metric.kind) is not None:
        groups += [Group.of(*metrics_named(params[Metric.kind])), Group.of(named(Features, params))]
    return [*groups, Group("compare", (Comparing,), "Comparison")]


def compare(
    ctx: typer.Context,
    models: Annotated[
        list[Path] | None,
        typer.Argument(metavar="[RUN]...", help=help_text("Run folders or model files.", "default: the newest run")),
    ] = None,
    timesteps: Timesteps = None,
    weights: Weights = None,
    ema_length: EmaLength = None,
    separate: Annotated[
        bool, typer.Option("--separate", help="Keep runs apart that differ in their seed alone.")
    ] = False,
    out: Annotated[Path | None, out_option("The figure.", "a new compare-<name>-NNN.png here")] = None,
    table: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Also write the table: .csv, .md (Markdown) or .tex (LaTeX with booktabs)."),
    ] = None,
    device: Device = "auto",
    overwrite: Overwrite = False,
    json: FigureJson = False,
) -> None:
    """Compare samplers, spacings and guidances on one model, or several runs: a table, a figure in a file.

    Of one run, it shows the distance to the exact solution and to fresh data. Of several runs, with --seeds or with
    --metric, it shows means with their deviation over runs that differ in their seed alone: of the distance to fresh
    data, or of the metrics.
    """
    given: list[Path | None] = [run for path in models for run in _runs_at(path)] if models else [None]
    requests = [SourceRequest.named(ctx, run) for run in given]
    settings: Comparing = make_from_flags(Comparing, given_values(ctx)["compare"])
    chosen = guidances(ctx)
    seeds = settings.seeds or (settings.seed,)
    metrics, features = _measures(ctx)
    several = len(requests) > 1 or len(seeds) > 1 or bool(metrics)
    spacings = _named(Spacing, settings.spacings or (("trailing",) if several else ("trailing", "log-snr")))
    samplers = _named(Sampler, settings.samplers or (("ddim",) if several else ()))
    calls = sorted(set(settings.calls or (SEVERAL if several else CALLS)))
    if out is not None:
        check_out(out, overwrite=overwrite, suffixes=PICTURES)
    if table is not None:
        check_out(table, overwrite=overwrite, suffixes=TABLES, flag="table")
    if settings.against is not None and not metrics:
        raise UsageError("--against: belongs to --metric; samples are compared with fresh data")
    wanted = Wanted(settings, samplers, spacings, chosen, calls, metrics, features, out, table, overwrite, json)

    from difftool import devices

    if several:
        if settings.reference is not None:
            raise UsageError("--reference: belongs to the comparison of one run under one seed, without --metric")
        if requests[0].parts is not None:
            raise UsageError("--oracle: is compared under one seed, without --metric; difftool evaluate measures it")
        from difftool.cli.compare_runs import compare_runs

        compare_runs(requests, wanted, seeds, devices.choose(device), separate=separate)
        return
    if separate:
        raise UsageError("--separate: there is one run alone")
    from difftool.cli.compare_one import compare_one

    compare_one(requests[0], given_values(ctx), wanted, devices.choose(device))


def add_to(app: typer.Typer) -> None:
    app.command(cls=component_command(_choose, command="compare", panels=PANELS))(compare)


def _runs_at(path: Path) -> list[Path]:
    """Return a path, or the trained runs in a folder that is no run itself, by name."""
    from difftool.runs.folder import is_run, runs_in

    if not path.is_dir() or is_run(path):
        return [path]
    return sorted(run.path for run in runs_in(path) if run.model.is_file()) or [path]


def _measures(ctx: typer.Context) -> tuple[list[Metric], Features]:
    """Return the metrics that the command line names, if it does, and the features. Raises `UsageError`."""
    names = given_names(ctx)
    if Metric.kind not in names:
        if Features.kind in names:
            raise UsageError("--features: belongs to --metric; add one, such as --metric fid")
        return [], named(Features, names)()
    return given_metrics(ctx), given_component(ctx, Features)


def _named(base: type[Component], names: Iterable[str]) -> list[Any]:
    """Return the components of these names with their default options. Raises `UsageError`."""
    return [make_from_flags(registry().of_kind(base, name), {}) for name in dict.fromkeys(names)]
