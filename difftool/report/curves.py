"""Curves of a run: its losses and its schedule, with no more points than a screen shows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from difftool.diffusion.visible import spread
from difftool.errors import printable, shortened
from difftool.figures.curves import blocks, smoothed
from difftool.figures.loss import known, positive
from difftool.report.content import Chart, Line
from difftool.training.evaluation import ERROR

if TYPE_CHECKING:
    from difftool.diffusion.schedule import Schedule

Values = NDArray[np.float64]
Rows = Sequence[Mapping[str, Any]]

POINTS = 300
"""The largest number of points of a line."""
MOST_METRICS, LONGEST = 6, 40
"""The largest number of metrics of a run, and of characters of their names."""
QUARTERS = {"cleanest quarter of t": 5, "second quarter": 0, "third quarter": 2, "noisiest quarter": 3}
"""The quarters of the schedule, and the colours of their lines."""


ALIKE = "Losses compare runs of the same data, schedule and prediction."


def loss_charts(rows: Rows, key: str) -> list[Chart]:
    """Return the loss over steps, and the loss by level of noise, for the rows of a run; none without a number."""
    return [chart for chart in (_loss(rows, key), _by_level(rows, key)) if chart is not None]


def _loss(rows: Rows, key: str) -> Chart | None:
    lines = [
        smooth_line(rows, "loss", name="training loss, smoothed", colour=0),
        point_line(rows, "held_out_loss", name="held-out loss", colour=1),
    ]
    note = "The training loss is a moving average over a twenty-fifth of the run."
    return _chart(f"{key}-loss", "Training and held-out loss", lines, note)


def _by_level(rows: Rows, key: str) -> Chart | None:
    named = list(enumerate(QUARTERS.items()))
    lines = [quarter_line(rows, "loss_quartiles", i, name=name, colour=colour) for i, (name, colour) in named]
    lines += [
        quarter_line(rows, "held_out_quartiles", i, marks=True, name=f"held out, {name}", colour=colour)
        for i, (name, colour) in named
    ]
    note = "Items are sorted by their level t into quarters of the schedule, from nearly clean to nearly pure noise."
    return _chart(f"{key}-levels", "Loss by level of noise", lines, note)


def overlay(runs: Mapping[str, Rows]) -> list[Chart]:
    """Return the losses of several runs over each other, and their held-out losses, where there are any."""
    named = list(enumerate(runs.items()))
    smooth = [smooth_line(rows, "loss", name=name, colour=i, dash=i // 8) for i, (name, rows) in named]
    held = [
        point_line(rows, "held_out_loss", name=name, colour=i, marks=False, dash=i // 8) for i, (name, rows) in named
    ]
    charts = (
        _chart(
            "all-loss", "Training loss of all runs", smooth, f"Moving averages over a twenty-fifth of each run. {ALIKE}"
        ),
        _chart("all-held-out", "Held-out loss of all runs", held, ALIKE),
    )
    return [chart for chart in charts if chart is not None]


def metric_charts(rows: Rows, key: str) -> list[Chart]:
    """Return each metric that was measured while the run trained, with its error bars."""
    names = dict.fromkeys(name.removesuffix(ERROR) for row in rows for name in row if name.endswith(ERROR))
    charts = []
    for i, name in enumerate([*names][:MOST_METRICS]):
        points = [(row["step"], row[name], row.get(name + ERROR) or 0.0) for row in rows if row.get(name) is not None]
        chosen = [points[k] for k in spread(range(len(points)), POINTS // 3)]
        if chosen:
            x, y, bars = zip(*chosen, strict=True)
            title = shortened(printable(name), LONGEST)
            charts.append(
                Chart(
                    key=f"{key}-metric-{i}",
                    title=f"{title} during training",
                    x_label="training step",
                    y_label=title,
                    lines=[Line(name=title, x=x, y=y, errors=bars, marks=True)],
                    note="With one standard error.",
                )
            )
    return charts


def _chart(key: str, title: str, lines: Sequence[Line], note: str) -> Chart | None:
    full = [line for line in lines if line.x]
    if not full:
        return None
    return Chart(key=key, title=title, x_label="training step", y_label="loss", lines=full, log=True, note=note)


def smooth_line(rows: Rows, column: str, **look: Any) -> Line:
    """Return the moving average of a number of the rows."""
    steps, values = _known(rows, [row.get(column) for row in rows])
    return _line(*smoothed(steps, values, POINTS), **look)


def point_line(rows: Rows, column: str, **look: Any) -> Line:
    """Return a number of the rows as points: the means of neighbours where there are too many."""
    steps, values = _known(rows, [row.get(column) for row in rows])
    return _line(*blocks(steps, values, most=POINTS), **{"marks": True, **look})


def quarter_line(rows: Rows, column: str, quarter: int, *, marks: bool = False, **look: Any) -> Line:
    """Return one of the four numbers that rows have by level of noise."""
    steps, values = _known(rows, [_entry(row.get(column), quarter) for row in rows])
    reduced = blocks(steps, values, most=POINTS) if marks else smoothed(steps, values, POINTS)
    return _line(*reduced, marks=marks, **look)


def _entry(values: Any, i: int) -> Any:
    return values[i] if isinstance(values, list) and len(values) == 4 else None


def _known(rows: Rows, values: Sequence[Any]) -> tuple[Values, Values]:
    """Return the steps and values that have a place on a logarithmic axis, by step."""
    steps, numbers = known(np.array([row["step"] for row in rows], dtype=np.float64), positive(values))
    order = np.argsort(steps, kind="stable")
    return steps[order], numbers[order]


def _line(steps: Values, values: Values, **look: Any) -> Line:
    rounded = [float(f"{value:.5g}") for value in values.tolist()]
    return Line(x=[float(f"{step:.9g}") for step in steps.tolist()], y=rounded, **look)


def schedule_charts(schedule: Schedule, key: str) -> list[Chart]:
    """Return alpha and sigma, and the logarithm of the signal-to-noise ratio, over the levels t."""
    at = np.unique(np.linspace(0, len(schedule) - 1, min(len(schedule), POINTS)).round().astype(np.int64))
    t = at.astype(np.float64)

    def line(name: str, column: Any, colour: int, dash: int = 0) -> Line:
        values = column.numpy()[at]
        return _line(*known(t, values), name=name, colour=colour, dash=dash)

    levels = [line("alpha (signal)", schedule.alpha, 0), line("sigma (noise)", schedule.sigma, 1, 1)]
    snr = [line("ln(alpha² / sigma²)", schedule.log_snr, 0)]
    text = "x_t = alpha x_0 + sigma eps: the clean item is at t = 0, and noise at the last t."
    return [
        Chart(key=f"{key}-schedule", title="Signal and noise", x_label="t", y_label="factor", lines=levels, note=text),
        Chart(key=f"{key}-snr", title="Log signal-to-noise ratio", x_label="t", y_label="log-SNR", lines=snr),
    ]
