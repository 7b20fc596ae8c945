"""The losses of several runs over each other, from their metrics: what `difftool runs --plot` draws."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from difftool.cli.console import note
from difftool.errors import UsageError, counted
from difftool.runs.summary import Summary, common, differing, in_words

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST = 24
"""The largest number of runs whose curves can be told apart."""
UNITS = ("prediction", "loss", "weighting")
"""The components that decide in which units the loss is."""


def loss_curves(runs: Sequence[Summary]) -> Figure:
    """Return the figure of the losses of runs.

    Where their losses cannot be compared, the error of eps stands in their place. Raises `UsageError` for no runs and
    for too many.
    """
    if not 0 < len(runs) <= MOST:
        raise UsageError(f"--plot: draws from 1 to {MOST} runs, not {len(runs):,}; name runs, or choose with --filter")
    from difftool.figures.losses import Curve, losses_figure

    options = [run.options for run in runs]
    names = differing(options)
    kinds = [kind for kind in UNITS if kind in names]
    key, label = ("eps_loss", "error of eps") if kinds else ("loss", "loss")
    if kinds:
        note(f"the runs differ in {' and '.join(kinds)}, so their losses cannot be compared: drawing the error of eps")
    curves = []
    for run, name in zip(runs, legend(runs, names), strict=True):
        rows = sorted(run.run.read_metrics(), key=lambda row: int(row["step"]))
        held_out = [] if kinds else [row.get("held_out_loss") for row in rows]
        curves.append(Curve(name, [row["step"] for row in rows], [row.get(key) for row in rows], held_out))
    title = " / ".join(common(options)) or counted(len(runs), "run")
    return losses_figure(curves, title=title, label=label)


def legend(runs: Sequence[Summary], names: Sequence[str]) -> list[str]:
    """Return a name for each run: its options of these names, and where that is not enough, its folder."""
    found = [in_words(run.options, names) for run in runs]
    return [
        name if name and found.count(name) == 1 else ", ".join(filter(None, (name, run.run.path.name)))
        for name, run in zip(found, runs, strict=True)
    ]
