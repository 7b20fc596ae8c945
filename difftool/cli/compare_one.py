"""`difftool compare RUN`: samplers, spacings and guidances on one model, by the error and the distance to the data."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Column

from difftool.cli.comparison_table import ComparisonTable, Number, write_table
from difftool.cli.console import Bar, add_row, duration, new_table, note, progress, show
from difftool.cli.flags import flag_of, make_from_flags, text_of
from difftool.cli.guidance import name_of, words_of
from difftool.cli.outputs import report, save_figure
from difftool.errors import counted
from difftool.evaluation.statistics import Spread
from difftool.files import numbered
from difftool.options import plain
from difftool.settings import Sampling

if TYPE_CHECKING:
    import torch
    from matplotlib.figure import Figure

    from difftool.cli.comparing import Wanted
    from difftool.cli.sources import SourceRequest
    from difftool.sampling.comparison import Comparison, Entry, Result

ORACLE_POINTS = 1_000
"""The default number of points of an oracle, each of which it compares with all its items."""
REFERENCE = 1_000
"""The default steps of the exact solution."""
Given = Mapping[str, Mapping[str, Any]]
"""The options on the command line, by kind."""


def compare_one(request: SourceRequest, given: Given, wanted: Wanted, device: torch.device) -> None:
    """Compare samplers, spacings and guidances on one model with the exact solution and fresh data."""
    from difftool import devices
    from difftool.sampling.comparison import Comparison, conditions_of_items, deterministic, entries

    settings, spacings, chosen, calls = wanted.settings, wanted.spacings, wanted.guidances, wanted.calls
    quick = request.parts is not None
    if quick:  # such a comparison ends within a minute, unless the user wants more
        request = _quick(request, given)
    opened = request.open(device)
    source = opened.source
    sampling = Sampling(
        num_samples=settings.num_samples or (ORACLE_POINTS if quick and source.data.is_points else None),
        batch_size=settings.batch_size,
        seed=settings.seed,
        label=settings.label,
    )
    with devices.threads(settings.threads, opened.threads):
        under = source.of_class(source.label_index(settings.label))
        conditions = conditions_of_items(source, sampling)
        under += " under the conditions of items" if conditions else ""
        under += f", {words_of(chosen[0])}" if chosen[0] is not None and len(chosen) == 1 else ""
        steps = settings.reference or REFERENCE
        comparison = Comparison(source, opened.dataset, sampling, steps, conditions, chosen)
        samplers = wanted.samplers or deterministic(source.schedule, spacings[0])
        planned = entries(source, samplers, spacings, calls, sampling, conditions, chosen)
        note(
            f"comparing {counted(len(samplers), 'sampler')} on {opened.where} ({source.description}): "
            f"{comparison.num_samples:,} samples{under}; {devices.describe(source.device)}, seed {settings.seed}"
        )
        total, exact = comparison.calls_of(planned), comparison.reference_calls(planned)
        if exact:
            note(
                f"the exact solutions take {exact:,} of {total:,} network calls, about "
                f"{duration(exact * comparison.seconds_of_a_call())}; --reference {steps // 4} takes a quarter of them"
            )
        results = []
        with progress("comparing", total) as bar:
            for i, entry in enumerate(planned, start=1):
                watch = partial(_show, bar, comparison, f"calls, {i} of {len(planned)}: ")
                results.append(comparison.measure(entry, watch))
            bar.update(total, f"calls, {len(planned)} trajectories")
    _print(results, comparison, calls)
    title = f"{source.title}, {comparison.num_samples:,} samples{under}, seed {settings.seed}"
    out = wanted.out or (None if wanted.json else numbered(Path(), f"compare-{source.name}", ".png"))
    if out is not None:
        save_figure(_figure(results, comparison, title), out, overwrite=wanted.overwrite)
    if wanted.table is not None:
        write_table(_table(results, comparison, calls, title), wanted.table, overwrite=wanted.overwrite)
    facts = {**opened.facts, "num_samples": comparison.num_samples, "seed": settings.seed}
    written = [path for path in (out, wanted.table) if path is not None]
    report(written, {**facts, **_facts(results, comparison)}, as_json=wanted.json)


def _quick(request: SourceRequest, given: Given) -> SourceRequest:
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
    bar.update(comparison.count.done, before + words)


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

    def key(entry: Entry) -> tuple[str, ...]:
        return entry.sampler, entry.spacing, *([words_of(entry.guidance)] if several and entry.guidance else [])

    for cells, row in _by_line(results, key).items():
        add_row(table, *cells, *(_cell(row, limit, measure) for limit in calls))
    show(table, "")


def _cell(row: Sequence[Result], limit: int, measure: str) -> str:
    """Return the value of the most steps that this number of calls allows."""
    within = _within(row, limit)
    value = None if within is None else getattr(within, measure)
    if value is None:
        return "-"
    return f"{value:.2g}" if math.isfinite(value) else "diverges"


def _table(results: Sequence[Result], comparison: Comparison, calls: Sequence[int], caption: str) -> ComparisonTable:
    """Return the numbers of one run as a table. They are of a single seed, so no deviation is known."""

    def key(entry: Entry) -> tuple[str, ...]:
        return entry.sampler, entry.spacing, name_of(entry.guidance)

    def number(keys: tuple[str, ...], limit: int, best: Result, measure: str) -> Number:
        value = getattr(best, measure)
        spread = Spread(value if math.isfinite(value) else None, None, 1)
        return Number(keys, limit, best.entry.calls, best.entry.plan.steps, measure, spread)

    numbers = [
        number(keys, limit, best, measure)
        for measure in ("error", "sliced_w2")
        for keys, row in _by_line([r for r in results if getattr(r, measure) is not None], key).items()
        for limit in calls
        if (best := _within(row, limit)) is not None
    ]
    floor = None if comparison.fresh is None else comparison.fresh.data_distance
    return ComparisonTable(
        ("sampler", "spacing", "guidance"),
        numbers,
        {"error": "lower", "sliced_w2": "lower"},
        {"sliced_w2": floor},
        caption,
    )


def _by_line(results: Sequence[Result], key: Callable[[Entry], tuple[str, ...]]) -> dict[tuple[str, ...], list[Result]]:
    """Return the results by what their lines of a table are about."""
    lines: dict[tuple[str, ...], list[Result]] = {}
    for result in results:
        lines.setdefault(key(result.entry), []).append(result)
    return lines


def _within(row: Sequence[Result], limit: int) -> Result | None:
    """Return the result of the most steps that this number of calls allows."""
    within = [result for result in row if result.entry.calls <= limit]
    return max(within, key=lambda result: result.entry.calls) if within else None


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
