"""`difftool inspect-schedule`: beta, alpha-bar and signal-to-noise ratio of one or several schedules.

Where variance is not preserved, alpha-bar is the share of signal in the variance, alpha^2/(alpha^2 + sigma^2), and beta
what a step takes from that share.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from difftool.cli.command import component_command, given_values
from difftool.cli.console import encodable, help_text, note, result, result_json, show, stderr
from difftool.cli.flags import Group, make_from_flags, names_of
from difftool.cli.outputs import check_out
from difftool.components import NoiseSchedule
from difftool.errors import UsageError
from difftool.figures.formats import PICTURES
from difftool.files import numbered
from difftool.options import fields, options_of
from difftool.plugins.registry import registry

if TYPE_CHECKING:
    from difftool.diffusion.schedule import Schedule

KIND = NoiseSchedule.kind


def _choose(_ctx: typer.Context, _params: dict[str, Any], args: list[str]) -> Sequence[Group]:
    """Names are positionals, which a lenient pass cannot tell from values: take every argument that is one."""
    known = registry().names(KIND)
    named = [a for a in dict.fromkeys(args) if a in known]
    classes = [registry().of_kind(NoiseSchedule, name) for name in named or known]
    return [Group(KIND, tuple(classes), f"Schedule: {', '.join(c.name for c in classes)}", f"{KIND}.")]


def inspect_schedule(
    ctx: typer.Context,
    names: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[NAME]...",
            autocompletion=names_of(KIND),
            help=help_text("Schedules to compare.", "default: all"),
        ),
    ] = None,
    timesteps: Annotated[int, typer.Option(min=1, max=100_000, help="T, the number of noise levels.")] = 1000,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help=help_text("The figure.", "default: a new schedule-NNN.png here"))
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a figure that exists.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print the numbers as one JSON object; draw nothing.")] = False,
) -> None:
    """Compare noise schedules: a table and a small plot here, a figure in a file."""
    given = given_values(ctx)[KIND]
    wanted = list(dict.fromkeys(names or ()))
    components = _components(wanted, given)
    if out is not None:
        check_out(out, overwrite=overwrite, suffixes=PICTURES)
    tables = _tables(components, timesteps)
    for name, schedule in tables.items():
        if left := schedule.signal_left:
            note(
                f"{name}: the last level is not noise, {100 * math.sqrt(left):.0f} % of the signal is left "
                f"(alpha-bar {left:.3f})"
            )
    if json:
        result_json({"timesteps": timesteps, "schedules": {n: _numbers(s) for n, s in tables.items()}})
        if out is not None:
            _draw(tables, out, overwrite=overwrite)
        return
    _print(tables)
    path = out or numbered(Path(), "schedule", ".png")
    _draw(tables, path, overwrite=overwrite)
    result(str(path))


def add_to(app: typer.Typer) -> None:
    app.command("inspect-schedule", cls=component_command(_choose))(inspect_schedule)


def _components(wanted: list[str], given: Mapping[str, Any]) -> dict[str, NoiseSchedule]:
    """The schedules named, each with those of the given options that it has."""
    classes = {name: registry().of_kind(NoiseSchedule, name) for name in wanted or registry().names(KIND)}
    for option in given:
        if not any(f.name == option for cls in classes.values() for f in fields(cls)):
            raise UsageError(f"--{KIND}.{option.replace('_', '-')}: none of {', '.join(classes)} has it")
    return {name: make_from_flags(cls, options_of(cls, given)) for name, cls in classes.items()}


def _tables(components: Mapping[str, NoiseSchedule], timesteps: int) -> dict[str, Schedule]:
    from difftool.plugins.build import build_schedule

    return {name: build_schedule(component, timesteps) for name, component in components.items()}


def _numbers(schedule: Schedule) -> dict[str, Any]:
    """The table as lists of plain numbers; what is infinite is None, for JSON has no infinity."""

    def finite(values: Any) -> list[float | None]:
        return [v if math.isfinite(v) else None for v in values.tolist()]

    return {
        "alpha": schedule.alpha.tolist(),
        "sigma": schedule.sigma.tolist(),
        "beta": finite(schedule.betas),
        "alpha_bar": finite(schedule.alpha_bars),
        "snr": finite(schedule.snr),
        "snr_db": finite(10.0 * schedule.snr.log10()),
        "log_snr": finite(schedule.log_snr),
    }


def _print(tables: Mapping[str, Schedule]) -> None:
    """A table of a few levels and a plot, on stderr: stdout is for the figure's path."""
    from rich.table import Table
    from rich.text import Text

    from difftool.figures.schedules import decibels
    from difftool.figures.terminal import terminal_plot

    for name, schedule in tables.items():
        T = len(schedule)
        rows = sorted({round(part * (T - 1)) for part in (0.0, 0.25, 0.5, 0.75, 1.0)})
        table = Table(title=f"{name} (T = {T})", title_justify="left", title_style="bold", box=None, pad_edge=False)
        for heading in ("t", "beta", "alpha-bar", "alpha", "sigma", "SNR dB"):
            table.add_column(heading, justify="right")
        betas, bars, snr = schedule.betas, schedule.alpha_bars, 10.0 * schedule.snr.log10()
        for t in rows:
            level = schedule[t]
            cells = (float(betas[t]), float(bars[t]), level.alpha, level.sigma)
            table.add_row(str(t), *(f"{c:.6g}" for c in cells), f"{float(snr[t]):.2f}")
        show(table)
        show("")
    width = max(40, min(stderr().width, 100))
    if all(schedule.variance_preserving for schedule in tables.values()):
        label, curves = "alpha-bar", {name: schedule.alpha_bars.tolist() for name, schedule in tables.items()}
    else:  # what tells these apart lies where alpha-bar is almost 1 or 0
        label, curves = "SNR dB", {name: decibels(schedule).tolist() for name, schedule in tables.items()}
    plain = os.environ.get("TERM") == "dumb" or not encodable("⣿─│")
    show(Text(terminal_plot(curves, width=width, height=14, ascii=plain, y_label=label)))


def _draw(tables: Mapping[str, Schedule], path: Path, *, overwrite: bool) -> None:
    from difftool.figures.schedules import schedule_figure
    from difftool.figures.style import save
    from difftool.files import atomic

    with atomic(path, overwrite=overwrite) as temporary:
        save(schedule_figure(tables), temporary)
