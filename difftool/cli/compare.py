"""`difftool compare`: samplers and spacings on one model, error by network calls."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Column

from difftool.cli.command import component_command, given_values
from difftool.cli.console import Bar, add_row, new_table, note, progress, show
from difftool.cli.flags import Group, flag_of, make_from_flags, text_of
from difftool.cli.guidance import guidance_groups, guidances, words_of
from difftool.cli.outputs import check_out, report, save_figure
from difftool.cli.parameters import Device, FigureJson, Overwrite, out_option
from difftool.cli.sources import PANELS, EmaLength, RunArgument, SourceRequest, Timesteps, Weights, source_groups
from difftool.components import Component, Sampler, Spacing
from difftool.errors import counted
from difftool.figures.formats import PICTURES
from difftool.files import numbered
from difftool.options import Options, option, plain
from difftool.plugins.registry import registry
from difftool.settings import LARGEST_SEED, Sampling

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from difftool.sampling.comparison import Comparison, Result


ORACLE_POINTS = 1_000
"""The default number of points of an oracle, each of which it compares with all its items."""


class Comparing(Options):
    """The settings of a comparison."""

    samplers: tuple[str, ...] | None = option(
        default=None, help="names joined by commas", otherwise="all that add no noise"
    )
    spacings: tuple[str, ...] = option(default=("trailing", "log-snr"), help="names joined by commas")
    calls: tuple[int, ...] = option(
        default=(5, 10, 20, 40, 80, 160), ge=1, le=100_000, help="network calls; as many steps as they allow"
    )
    num_samples: int | None = option(
        default=None,
        ge=2,
        le=10**7,
        short="-n",
        help="number of samples",
        otherwise="16 images or arrays, 2000 points, 1000 with an oracle",
    )
    batch_size: int | None = option(
        default=None, ge=1, le=10**7, help="samples drawn at once; changes only their last digits"
    )
    seed: int = option(default=0, ge=0, le=LARGEST_SEED, help="seed of the noise that all trajectories start from")
    label: str | None = option(default=None, help="class to sample: its name or index")
    reference: int = option(default=1000, ge=2, le=100_000, help="steps of the exact solution")
    threads: int | None = option(
        default=None, ge=1, le=1024, help="CPU threads", otherwise="the number that suits the network"
    )

    def __post_init__(self) -> None:
        for name in ("samplers", "spacings", "calls"):
            if getattr(self, name) == ():
                raise ValueError(f"{name}: must name at least one")


def _choose(_ctx: typer.Context, params: dict[str, Any], _args: list[str]) -> Sequence[Group]:
    return [*source_groups(params), *guidance_groups(params), Group("compare", (Comparing,), "Comparison")]


def compare(
    ctx: typer.Context,
    model: RunArgument = None,
    timesteps: Timesteps = None,
    weights: Weights = None,
    ema_length: EmaLength = None,
    out: Annotated[Path | None, out_option("The figure.", "a new compare-<name>-NNN.png here")] = None,
    device: Device = "auto",
    overwrite: Overwrite = False,
    json: FigureJson = False,
) -> None:
    """Compare samplers, spacings and guidances on one model: a table here, a figure in a file."""
    request = SourceRequest.of(ctx)
    settings: Comparing = make_from_flags(Comparing, given_values(ctx)["compare"])
    chosen = guidances(ctx)
    spacings, samplers = _named(Spacing, settings.spacings), _named(Sampler, settings.samplers or ())
    calls = sorted(set(settings.calls))
    if out is not None:
        check_out(out, overwrite=overwrite, suffixes=PICTURES)

    from difftool import devices
    from difftool.sampling.comparison import Comparison, conditions_of_items, deterministic, entries

    quick = request.parts is not None
    if quick:  # such a comparison ends within a minute, unless the user wants more
        request = _quick(request, given_values(ctx))
    opened = request.open(devices.choose(device))
    source = opened.source
    sampling = Sampling(
        num_samples=settings.num_samples or (ORACLE_POINTS if quick and source.data.is_points else None),
        batch_size=settings.batch_size,
        seed=settings.seed,
        label=settings.label,
    )
    with devices.threads(settings.threads, opened.threads):
        under = source.of_class(source.label_index(settings.label))
        conditions = conditions_of_items(source, sampling, guided=chosen != [None])
        under += " under the conditions of items" if conditions else ""
        under += f", {words_of(chosen[0])}" if chosen[0] is not None and len(chosen) == 1 else ""
        comparison = Comparison(source, opened.dataset, sampling, settings.reference, conditions, chosen)
        samplers = samplers or deterministic(source.schedule, spacings[0])
        planned = entries(source, samplers, spacings, calls, sampling, conditions, chosen)
        note(
            f"comparing {counted(len(samplers), 'sampler')} on {opened.where} ({source.description}): "
            f"{comparison.num_samples:,} samples{under}; {devices.describe(source.device)}, seed {settings.seed}"
        )
        results = []
        total = comparison.calls_of(planned)
        with progress("comparing", total) as bar:
            for i, entry in enumerate(planned, start=1):
                watch = partial(_show, bar, comparison, f"calls, {i} of {len(planned)}: ")
                results.append(comparison.measure(entry, watch))
            bar.update(total, f"calls, {len(planned)} trajectories")
    _print(results, comparison, calls)
    path = out or (None if json else numbered(Path(), f"compare-{source.name}", ".png"))
    if path is not None:
        title = f"{source.title}, {comparison.num_samples:,} samples{under}, seed {settings.seed}"
        save_figure(_figure(results, comparison, title), path, overwrite=overwrite)
    facts = {**opened.facts, "num_samples": comparison.num_samples, "seed": settings.seed}
    report([path] if path else [], {**facts, **_facts(results, comparison)}, as_json=json)


def add_to(app: typer.Typer) -> None:
    app.command(cls=component_command(_choose, command="compare", panels=PANELS))(compare)


def _quick(request: SourceRequest, given: Mapping[str, Mapping[str, Any]]) -> SourceRequest:
    """Return the request of an oracle with the defaults that a comparison has, which are noted."""
    assert request.parts is not None
    oracle, dataset, schedule = request.parts
    changes = {k: v for k, v in oracle.comparison_defaults.items() if k not in given.get(oracle.kind, {})}
    if changes:
        flags = ", ".join(f"{flag_of(type(oracle), name)} {text_of(value)}" for name, value in changes.items())
        note(f"{oracle.name}: takes {flags} to be quick; give more to know more")
    changed = make_from_flags(type(oracle), {**plain(oracle), **changes})
    return replace(request, parts=(changed, dataset, schedule))


def _show(bar: Bar, comparison: Comparison, before: str, words: str) -> None:
    bar.update(comparison.calls, before + words)


def _named(base: type[Component], names: Iterable[str]) -> list[Any]:
    """Return the components of these names with their default options. Raises `UsageError`."""
    return [make_from_flags(registry().of_kind(base, name), {}) for name in dict.fromkeys(names)]


def _print(results: Sequence[Result], comparison: Comparison, calls: Sequence[int]) -> None:
    """Explain the measures and print their tables, on stderr: stdout is for the figure's path."""
    from difftool.sampling.comparison import SOLVER

    fresh, error = comparison.fresh, comparison.reference_error
    note(
        f"error: RMS distance in model units to the exact solution from the same x_T, {SOLVER} in "
        f"{comparison.reference_steps} steps; it differs by {error:.1e} from a solution in half as many"
    )
    if fresh is None:
        note("sliced W2: not measured, since the data are not available here")
    else:
        distance = f"the distance between two sets of data is {fresh.data_distance:.4f}"
        note(f"sliced W2: against {fresh.count:,} fresh items; {distance}")
    _print_table(results, calls, "error", "error")
    if fresh is not None:
        _print_table(results, calls, "sliced_w2", "sliced W2")


def _print_table(results: Sequence[Result], calls: Sequence[int], measure: str, heading: str) -> None:
    several = len({result.entry.guidance for result in results}) > 1
    names = ("sampler", "spacing", *(["guidance"] if several else []))
    table = new_table(
        *(Column(name, no_wrap=True) for name in names),
        *(Column(str(limit), justify="right", no_wrap=True) for limit in calls),
        title=f"{heading}, by network calls at most",
    )
    rows: dict[tuple[str, ...], list[Result]] = {}
    for result in results:
        entry = result.entry
        key = (entry.sampler, entry.spacing, *([words_of(entry.guidance)] if several and entry.guidance else []))
        rows.setdefault(key, []).append(result)
    for cells, row in rows.items():
        add_row(table, *cells, *(_cell(row, limit, measure) for limit in calls))
    show(table, "")


def _cell(row: Sequence[Result], limit: int, measure: str) -> str:
    """Return the value of the most steps that this number of calls allows."""
    within = [result for result in row if result.entry.calls <= limit]
    value = getattr(max(within, key=lambda result: result.entry.calls), measure) if within else None
    if value is None:
        return "-"
    return f"{value:.2g}" if math.isfinite(value) else "diverges"


def _facts(results: Sequence[Result], comparison: Comparison) -> dict[str, Any]:
    """Return plain numbers. None stands for what was not measured or diverged, for JSON has no infinity."""
    from difftool.runs.recipe import component_table
    from difftool.sampling.comparison import SOLVER

    def plain(value: float | None) -> float | None:
        return value if value is not None and math.isfinite(value) else None

    rows = [
        {
            "sampler": result.entry.sampler,
            "spacing": result.entry.spacing,
            "guidance": None if result.entry.guidance is None else component_table(result.entry.guidance),
            "steps": result.entry.plan.steps,
            "calls": result.entry.calls,
            "error": plain(result.error),
            "sliced_w2": plain(result.sliced_w2),
            "finite": all(v is None or math.isfinite(v) for v in (result.error, result.sliced_w2)),
            "seconds": round(result.seconds, 4),
        }
        for result in results
    ]
    fresh, error = comparison.fresh, plain(comparison.reference_error)
    return {
        "reference": {"sampler": SOLVER, "steps": comparison.reference_steps, "error": error},
        "data": None if fresh is None else {"items": fresh.count, "distance": fresh.data_distance},
        "results": rows,
    }


def _figure(results: Sequence[Result], comparison: Comparison, title: str) -> Figure:
    from difftool.figures.comparison import Point, comparison_figure

    curves: dict[str, dict[str, list[Point]]] = {}
    several = len({result.entry.guidance for result in results}) > 1
    spacings = list(dict.fromkeys(result.entry.spacing for result in results))
    for result in sorted(results, key=lambda result: spacings.index(result.entry.spacing)):
        entry = result.entry
        panel = f"{entry.spacing}, {words_of(entry.guidance)}" if several and entry.guidance else entry.spacing
        points = curves.setdefault(panel, {}).setdefault(entry.sampler, [])
        points.append(Point(result.entry.calls, result.error, result.sliced_w2))
    distance = None if comparison.fresh is None else comparison.fresh.data_distance
    return comparison_figure(curves, floor=distance, title=title)
