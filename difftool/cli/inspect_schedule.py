"""`difftool inspect-schedule`: beta, alpha-bar and signal-to-noise ratio of one or several schedules.

Where variance is not preserved, alpha-bar is the share of signal in the variance, alpha^2/(alpha^2 + sigma^2), and beta
is the part of that share that a step removes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Column

from difftool.cli.command import component_command, given_values
from difftool.cli.console import add_row, help_text, new_table, note, result, result_json, show, stderr
from difftool.cli.flags import Group, make_from_flags, names_of
from difftool.cli.outputs import check_out, save_figure
from difftool.cli.parameters import FigureJson, Overwrite, out_option
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
    """Return the options of the named schedules.

    A lenient pass over the arguments cannot tell names from values, so every argument that is a name counts.
    """
    known = registry().names(KIND)
    classes = _classes([arg for arg in dict.fromkeys(args) if arg in known])
    return [Group(KIND, tuple(classes.values()), f"Schedule: {', '.join(classes)}", f"{KIND}.")]


def _classes(names: Sequence[str]) -> dict[str, type[NoiseSchedule]]:
    """Return the schedules of these names, or all. Raises `UsageError`."""
    return {name: registry().of_kind(NoiseSchedule, name) for name in names or registry().names(KIND)}


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
    out: Annotated[Path | None, out_option("The figure.", "a new schedule-NNN.png here")] = None,
    overwrite: Overwrite = False,
    json: FigureJson = False,
) -> None:
    """Compare noise schedules: a table and a small plot here, a figure in a file."""
    values = given_values(ctx)[KIND]
    classes = _classes(list(dict.fromkeys(names or ())))
    for name in values:
        if not any(f.name == name for cls in classes.values() for f in fields(cls)):
            raise UsageError(f"--{KIND}.{name.replace('_', '-')}: none of {', '.join(classes)} has it")
    components = {name: make_from_flags(cls, options_of(cls, values)) for name, cls in classes.items()}
    if out is not None:
        check_out(out, overwrite=overwrite, suffixes=PICTURES)

    from difftool.plugins.build import build_schedule

    schedules = {name: build_schedule(component, timesteps) for name, component in components.items()}
    for name, schedule in schedules.items():
        if left := schedule.signal_left:
            note(
                f"{name}: the last level is not noise: {100 * math.sqrt(left):.0f} % of the signal is left "
                f"(alpha-bar {left:.3f})"
            )
    if json:
        result_json({"timesteps": timesteps, "schedules": {name: _numbers(s) for name, s in schedules.items()}})
    else:
        for name, schedule in schedules.items():
            _print_levels(name, schedule)
        _print_plot(schedules)
        out = out or numbered(Path(), "schedule", ".png")
    if out is not None:
        from difftool.figures.schedules import schedule_figure

        save_figure(schedule_figure(schedules), out, overwrite=overwrite)
        if not json:
            result(str(out))


def add_to(app: typer.Typer) -> None:
    app.command("inspect-schedule", cls=component_command(_choose))(inspect_schedule)


def _numbers(schedule: Schedule) -> dict[str, Any]:
    """Return the table as lists of numbers. Infinite ones are None, for JSON has no infinity."""
    columns = {
        "alpha": schedule.alpha,
        "sigma": schedule.sigma,
        "beta": schedule.betas,
        "alpha_bar": schedule.alpha_bars,
        "snr": schedule.snr,
        "snr_db": 10.0 * schedule.snr.log10(),
        "log_snr": schedule.log_snr,
    }
    return {name: [v if math.isfinite(v) else None for v in column.tolist()] for name, column in columns.items()}


def _print_levels(name: str, schedule: Schedule) -> None:
    """Print a table of five levels on stderr: stdout is for the figure's path."""
    last = len(schedule) - 1
    headings = ("t", "beta", "alpha-bar", "alpha", "sigma", "SNR dB")
    table = new_table(
        *(Column(h, justify="right", no_wrap=True) for h in headings), title=f"{name} (T = {len(schedule)})"
    )
    for t in sorted({round(share * last) for share in (0.0, 0.25, 0.5, 0.75, 1.0)}):
        rows = (schedule.betas, schedule.alpha_bars, schedule.alpha, schedule.sigma)
        decibels = 10.0 * float(schedule.snr[t].log10())
        add_row(table, str(t), *(f"{float(column[t]):.6g}" for column in rows), f"{decibels:.2f}")
    show(table, "")


def _print_plot(schedules: Mapping[str, Schedule]) -> None:
    """Print a plot of all schedules on stderr."""
    from rich.text import Text

    from difftool.figures.schedules import decibels
    from difftool.figures.terminal import terminal_plot

    if all(schedule.variance_preserving for schedule in schedules.values()):
        label, curves = "alpha-bar", {name: schedule.alpha_bars.tolist() for name, schedule in schedules.items()}
    else:  # these differ where alpha-bar is almost 1 or 0
        label, curves = "SNR dB", {name: decibels(schedule).tolist() for name, schedule in schedules.items()}
    console = stderr()
    width = max(40, min(console.width, 100))
    ascii = console.is_dumb_terminal or console.options.ascii_only
    show(Text(terminal_plot(curves, width=width, height=14, ascii=ascii, y_label=label)))
