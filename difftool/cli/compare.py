"""`difftool compare`: samplers and level grids on one model, error against network calls."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from difftool.cli.command import component_command, given_names, given_values
from difftool.cli.console import bar, help_text, note, show
from difftool.cli.flags import Group, make_from_flags
from difftool.cli.outputs import check_out, report
from difftool.cli.sources import PANELS, RunArgument, SourceRequest, Timesteps, Weights, source_groups
from difftool.components import Sampler, Spacing
from difftool.errors import printable
from difftool.figures.formats import PICTURES
from difftool.files import numbered
from difftool.options import Options, option
from difftool.plugins.registry import registry
from difftool.settings import LARGEST_SEED, Sampling

if TYPE_CHECKING:
    from difftool.sampling.comparison import FreshData, Reference, Result


class Comparing(Options):
    """What is compared."""

    samplers: tuple[str, ...] | None = option(
        default=None, help="names joined by commas", otherwise="all that add no noise"
    )
    spacings: tuple[str, ...] = option(default=("trailing", "log-snr"), help="level grids joined by commas")
    calls: tuple[int, ...] = option(
        default=(5, 10, 20, 40, 80, 160), ge=1, le=100_000, help="network calls; as many steps as they allow"
    )
    num_samples: int | None = option(
        default=None, ge=2, le=10**7, short="-n", help="how many", otherwise="16 images, 2000 points"
    )
    batch_size: int | None = option(default=None, ge=1, le=10**7, help="samples walked at once; does not change them")
    seed: int = option(default=0, ge=0, le=LARGEST_SEED, help="of the noise that all walks start from")
    label: str | None = option(default=None, help="class to sample: its name or index")
    reference: int = option(default=1000, ge=2, le=100_000, help="steps of the exact solution")
    threads: int | None = option(default=None, ge=1, le=1024, help="CPU threads; by default what suits the network")

    def __post_init__(self) -> None:
        for name in ("samplers", "spacings", "calls"):
            if getattr(self, name) == ():
                raise ValueError(f"{name}: must name at least one")


def _choose(_ctx: typer.Context, params: dict[str, Any], _args: list[str]) -> Sequence[Group]:
    return [*source_groups(params), Group("compare", (Comparing,), "Comparison")]


def compare(
    ctx: typer.Context,
    model: RunArgument = None,
    timesteps: Timesteps = None,
    weights: Weights = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help=help_text("The figure.", "default: a new compare-<name>-NNN.png here")),
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 or mps.", metavar="NAME")] = "auto",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a figure that exists.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print the numbers as one JSON object.")] = False,
) -> None:
    """Compare samplers and level grids on one model: a table here, a figure in a file."""
    given = given_values(ctx)
    asked = SourceRequest.of(ctx.params, given_names(ctx), given)
    wanted = make_from_flags(Comparing, given["compare"])
    spacings = [make_from_flags(registry().of_kind(Spacing, name), {}) for name in dict.fromkeys(wanted.spacings)]
    named = [make_from_flags(registry().of_kind(Sampler, name), {}) for name in dict.fromkeys(wanted.samplers or ())]
    if out is not None:
        check_out(out, overwrite=overwrite, suffixes=PICTURES)

    from difftool import devices
    from difftool.sampling import comparison

    chosen = devices.choose(device)
    opened = asked.open(chosen)
    source = opened.source
    settings = Sampling(
        num_samples=wanted.num_samples, batch_size=wanted.batch_size, seed=wanted.seed, label=wanted.label
    )
    with devices.threads(wanted.threads, opened.threads):
        reference = comparison.Reference(source, settings, wanted.reference)
        samplers = named or comparison.deterministic(source.schedule, spacings[0])
        calls = sorted(set(wanted.calls))
        entries = comparison.entries(source, samplers, spacings, calls, settings)
        count = reference.plan.num_samples
        note(
            f"comparing {len(samplers)} samplers on {opened.where} ({source.description}): {count:,} samples; "
            f"{devices.describe(chosen)}, seed {wanted.seed}"
        )
        fresh = comparison.fresh_data(source, opened.dataset, reference.plan)
        measured = []
        with bar("comparing", len(entries)) as shown:
            for i, entry in enumerate(entries):
                measured.append(comparison.measure(source, entry, reference, fresh, partial(shown.update, i)))
            shown.update(len(entries), f"{len(entries)} trajectories")
    note(
        f"error: RMS distance in model units to the exact solution from the same x_T, {comparison.SOLVER} in "
        f"{reference.steps} steps; in half as many it ends {reference.error:.1e} away"
    )
    if fresh is None:
        note("sliced W2: the data cannot be had here")
    else:
        note(
            f"sliced W2: against {fresh.count:,} fresh items; two such sets of data are {fresh.data_distance:.4f} apart"
        )
    _print(measured, calls, fresh)
    path = out or numbered(Path(), f"compare-{source.name}", ".png")
    title = f"{source.title}, {count:,} samples, seed {wanted.seed}"
    _draw(measured, fresh, title, path, overwrite=overwrite)
    facts = {**opened.facts, "num_samples": count, "seed": wanted.seed}
    report([path], {**facts, **_facts(measured, reference, fresh)}, as_json=json)


def add_to(app: typer.Typer) -> None:
    app.command(cls=component_command(_choose, command="compare", panels=PANELS))(compare)


def _print(measured: Sequence[Result], calls: Sequence[int], fresh: FreshData | None) -> None:
    """A table for each measure, on stderr: stdout is for the figure's path."""
    from rich.table import Table

    measures = {"error": "error", "sliced_w2": "sliced W2"}
    for measure, heading in measures.items():
        if measure == "sliced_w2" and fresh is None:
            continue
        table = Table(
            title=f"{heading}, by network calls at most",
            title_justify="left",
            title_style="bold",
            box=None,
            pad_edge=False,
        )
        for column in ("sampler", "spacing"):
            table.add_column(column, no_wrap=True)
        for most in calls:
            table.add_column(str(most), justify="right", no_wrap=True)
        for sampler, spacing in dict.fromkeys(m.entry.key[:2] for m in measured):
            own = [m for m in measured if m.entry.key[:2] == (sampler, spacing)]
            cells = [_cell(own, most, measure) for most in calls]
            table.add_row(printable(sampler), printable(spacing), *cells)
        show(table)
        show("")


def _cell(own: Sequence[Result], most: int, measure: str) -> str:
    """Return the value of the most steps that these calls allow."""
    fitting = [m for m in own if m.entry.calls <= most]
    value = getattr(max(fitting, key=lambda m: m.entry.calls), measure) if fitting else None
    if value is None:
        return "-"
    return f"{value:.2g}" if math.isfinite(value) else "diverges"


def _facts(measured: Sequence[Result], reference: Reference, fresh: FreshData | None) -> dict[str, Any]:
    """Plain numbers; None stands for what was not measured, or diverged, for JSON has no infinity."""
    from difftool.sampling.comparison import SOLVER

    def plain(value: float | None) -> float | None:
        return value if value is not None and math.isfinite(value) else None

    walks = [
        {
            "sampler": m.entry.key[0],
            "spacing": m.entry.key[1],
            "steps": m.entry.plan.steps,
            "calls": m.entry.calls,
            "error": plain(m.error),
            "sliced_w2": plain(m.sliced_w2),
            "finite": all(v is None or math.isfinite(v) for v in (m.error, m.sliced_w2)),
            "seconds": round(m.seconds, 4),
        }
        for m in measured
    ]
    return {
        "reference": {"sampler": SOLVER, "steps": reference.steps, "doubt": plain(reference.error)},
        "data": None if fresh is None else {"items": fresh.count, "floor": fresh.data_distance},
        "walks": walks,
    }


def _draw(measured: Sequence[Result], fresh: FreshData | None, title: str, path: Path, *, overwrite: bool) -> None:
    from difftool.figures.comparison import Point, comparison_figure
    from difftool.figures.style import save
    from difftool.files import atomic

    curves: dict[str, dict[str, list[Point]]] = {}
    for m in measured:
        sampler, spacing, _ = m.entry.key
        points = curves.setdefault(spacing, {}).setdefault(sampler, [])
        points.append(Point(m.entry.calls, m.error, m.sliced_w2))
    with atomic(path, overwrite=overwrite) as temporary:
        save(comparison_figure(curves, floor=None if fresh is None else fresh.data_distance, title=title), temporary)
