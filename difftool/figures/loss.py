"""The loss over a training run."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator
from numpy.typing import NDArray

from difftool.errors import shortened
from difftool.figures import style
from difftool.figures.curves import POINTS, blocks, smoothed
from difftool.figures.layout import add_heading

Values = NDArray[np.float64]

MARKERS = 60
"""About the largest number of markers of a measurement."""
SMOOTHED = 100_000
"""The largest number of records that the lines of the quarters are made from."""
OWN = ("loss", "eps_loss", "weighted_loss", "held_out_loss")
"""The losses of every row."""
MOST_SCORES, SCORE_HEIGHT = 4, 200
"""The largest number of metrics that are drawn, and the height of each in pixels."""
MOST_LOSSES, LONGEST_LABEL = 2, 24
"""The largest number of losses of callbacks that are drawn, and of characters of their names."""
QUARTILES = {"cleanest quarter of t": "#56b4e9", "second": "#0072b2", "third": "#009e73", "noisiest": "#cc79a7"}


@style.look()
def loss_figure(records: Sequence[Mapping[str, Any]], *, title: str) -> Figure:
    """Draw the loss over steps from a run's metrics, on a log scale.

    A record has `step`, and possibly `loss`, `held_out_loss`, `loss_quartiles` and `held_out_quartiles` (four floats
    or None, by quarters of t from clean to noisy), and losses of callbacks, numbers of other names that end in `loss`.
    Losses that are missing, not finite or not positive are left out. A metric `kid` with its standard error `kid_error`
    is drawn below, up to `MOST_SCORES` of them.
    """
    records = sorted(records, key=lambda record: int(record["step"]))
    scores = _scores(records)
    figure = style.canvas(1120, 560 + SCORE_HEIGHT * len(scores), dpi=style.CHART_DPI, layout="constrained")
    ratios = [560, *[SCORE_HEIGHT] * len(scores)]
    axes, *below = np.atleast_1d(figure.subplots(len(ratios), sharex=True, height_ratios=ratios))
    axes.set(ylabel="loss")
    (below[-1] if below else axes).set(xlabel="step")
    for own, (name, found) in zip(below, scores.items(), strict=True):
        _draw_score(own, name, found)
    figure.align_ylabels()
    steps = np.array([record["step"] for record in records], dtype=np.float64)
    loss = positive([record.get("loss") for record in records])
    stride = max(1, len(records) // SMOOTHED)
    quartiles, apart = (
        positive([record.get(name) or (None,) * 4 for record in records[::stride]]).reshape(-1, 4)
        for name in ("loss_quartiles", "held_out_quartiles")
    )
    held_out = "held out (dashed)" if np.isfinite(apart).any() else "held out"
    measured = {held_out: positive([record.get("held_out_loss") for record in records])}
    for name in dict.fromkeys(name for record in records for name in record if name.endswith("loss")):
        if name not in OWN and len(measured) <= MOST_LOSSES:
            measured[name] = positive([record.get(name) for record in records])
    if not np.isfinite(np.concatenate([loss, *measured.values(), quartiles.ravel(), apart.ravel()])).any():
        say_nothing_recorded(axes)
        add_heading(figure, title, [], [], columns=1)
        return figure

    _raw(axes, *known(steps, loss))
    for values, (name, colour) in zip(quartiles.T, QUARTILES.items(), strict=True):
        smooth(axes, *known(steps[::stride], values), color=colour, lw=1.1, label=name)
    for values, colour in zip(apart.T, QUARTILES.values(), strict=True):
        if np.isfinite(values).any():
            axes.plot(*blocks(*known(steps[::stride], values)), color=colour, lw=1.1, ls=(0, (4, 2)), zorder=4)
    smooth(axes, *known(steps, loss), color=style.INK, lw=1.8, label="loss")
    for i, (name, values) in enumerate(measured.items()):
        if np.isfinite(values).any():
            x, y = blocks(*known(steps, values))
            colour, marker = style.COLOURS[(1, 4, 4)[i]], "os^"[i]
            label = shortened(name.lstrip("_"), LONGEST_LABEL)
            look: dict[str, Any] = {"mfc": "white", "mew": 1.3, "color": colour, "label": label, "zorder": 5}
            axes.plot(x, y, ls="", marker=marker, ms=4, markevery=max(1, len(x) // MARKERS), **look)
    scale(axes)
    if len(np.unique(steps)) == 1:
        axes.set_xlim(steps[0] - 1, steps[0] + 1)
    entries = axes.get_legend_handles_labels()
    columns = len(QUARTILES) + (2 if len(entries[0]) <= len(QUARTILES) + 2 else 0)
    add_heading(figure, title, *entries, columns=columns, columnspacing=1.0)
    return figure


def _scores(records: Sequence[Mapping[str, Any]]) -> dict[str, Values]:
    """Return the metrics of a run by name, each as rows (step, value, error)."""
    names = dict.fromkeys(key.removesuffix("_error") for record in records for key in record if key.endswith("_error"))
    found = {
        name: [(r["step"], r[name], r.get(f"{name}_error") or 0.0) for r in records if r.get(name) is not None]
        for name in names
    }
    return {name: np.array(rows, dtype=np.float64) for name, rows in [*found.items()][:MOST_SCORES] if rows}


def _draw_score(axes: Axes, name: str, rows: Values) -> None:
    steps, values, errors = rows.T
    look: dict[str, Any] = {"color": style.COLOURS[0], "lw": 1.1, "elinewidth": 0.9, "marker": "o", "ms": 4}
    axes.errorbar(steps, values, errors, **look, mfc="white", mew=1.3)
    axes.set_ylabel(shortened(name, LONGEST_LABEL))
    axes.yaxis.set_major_locator(MaxNLocator(4))


def say_nothing_recorded(axes: Axes) -> None:
    """Write that there is no loss, in place of the axes."""
    axes.set(xticks=[], yticks=[])
    place: dict[str, Any] = {"ha": "center", "va": "center", "transform": axes.transAxes}
    axes.text(0.5, 0.5, "no step has been recorded yet", color=style.FAINT, **place)


def positive(entries: Sequence[Any]) -> Values:
    """Return an array of numbers, NaN for those that are missing or have no place on a log scale."""
    values = np.array(entries, dtype=np.float64)  # None becomes NaN
    values[~(np.isfinite(values) & (values > 0))] = math.nan
    return values


def known(steps: Values, values: Values) -> tuple[Values, Values]:
    finite = np.isfinite(values)
    return steps[finite], values[finite]


def _raw(axes: Axes, steps: Values, loss: Values) -> None:
    """Draw the loss of every step, or a band from the least to the greatest if there are too many."""
    if len(loss) <= 2 * POINTS:
        axes.plot(steps, loss, color=style.DATA, lw=0.7, alpha=0.8, marker="o" if len(loss) == 1 else "", zorder=1)
    else:
        x, low = blocks(steps, loss, np.min)
        _, high = blocks(steps, loss, np.max)
        axes.fill_between(x, low, high, color=style.DATA, alpha=0.45, lw=0, zorder=1)


def smooth(axes: Axes, steps: Values, values: Values, **look: Any) -> None:
    """Draw the mean over a window of a twenty-fifth of the records."""
    if len(values):
        x, y = smoothed(steps, values)
        axes.plot(x, y, marker="o" if len(x) == 1 else "", ms=4, **look)


def scale(axes: Axes) -> None:
    """Set a log scale of the loss, and steps as whole numbers."""
    log_scale(axes)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))


def log_scale(axes: Axes) -> None:
    """Set a log scale with plain numbers, also where values stay within one decade."""
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    decades = math.log10(high / low)
    subs: Sequence[float] = (1.0, 1.5, *range(2, 10))
    if decades > 0.8:
        subs = (1.0,) if decades > 3 else (1.0, 2.0, 5.0)
    axes.yaxis.set_major_locator(MaxNLocator(5) if decades < 0.3 else LogLocator(subs=subs))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_locator(LogLocator(subs=()))
