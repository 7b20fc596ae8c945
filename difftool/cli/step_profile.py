"""The view of `train --profile`: where a step spends its time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from rich.table import Column

from difftool.cli.console import add_row, new_table, note, show
from difftool.errors import counted

if TYPE_CHECKING:
    from difftool.training.experiment import Experiment
    from difftool.training.profile import StepProfile
    from difftool.training.step import StepResult

SHOWN = 10
"""The number of operators in the table."""


def profiled(experiment: Experiment, count: int) -> Iterator[StepResult]:
    """Yield the steps of a run. The main process profiles so many of them, and prints what it finds."""
    steps = experiment.run()
    if not count or not experiment.group.is_main:
        yield from steps
        return
    from difftool.training.profile import StepProfile

    found = StepProfile(experiment.device, count)
    yield from found.follow(steps)
    if found.traced:
        path = experiment.watched.find().trace
        found.write_trace(path)
        show_profile(found)
        note(f"wrote {path}; open it in ui.perfetto.dev or chrome://tracing")
        yield from steps
    else:
        note(f"--profile: the run ended before {counted(count, 'step')} were profiled")


def show_profile(found: StepProfile) -> None:
    """Print the phases of the timed steps, and the operators of the traced ones."""
    right = [Column(name, justify="right") for name in ("ms a step", "share")]
    note(f"where a step goes ({counted(found.timed, 'step')} timed)")  # a title would be as narrow as its table
    phases = new_table("", *right)
    total = sum(found.phases.values())
    for name, seconds in found.phases.items():
        add_row(phases, name, f"{1000 * seconds / found.timed:.3f}", f"{seconds / total:.1%}")
    add_row(phases, "in all", f"{1000 * total / found.timed:.3f}", "")
    show(phases)
    columns = [Column(name, justify="right") for name in ("ms a step", "share", "calls a step")]
    note(f"operators ({counted(found.traced, 'step')} traced)")
    operators = new_table("", *columns)
    measured = found.operators()
    total = sum(operator.seconds for operator in measured)
    for one in measured[:SHOWN]:
        calls = f"{one.calls / found.traced:.3g}"
        add_row(operators, one.name, f"{1000 * one.seconds / found.traced:.3f}", f"{one.seconds / total:.1%}", calls)
    show(operators)
