"""The course of a training run."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator
from numpy.typing import NDArray

from difftool.figures import style

Values = NDArray[np.float64]

POINTS = 1500
"""Points of a drawn line, whatever the number of records."""
QUARTILES = ("cleanest quarter of t", "second", "third", "noisiest")


@style.look()
def loss_figure(records: Sequence[Mapping[str, Any]], *, title: str) -> Figure:
    """Loss over steps from a run's metrics, on a log scale.

    A record has `step`, and where measured `loss`, `loss_quartiles` (four floats or None, by quarters of t from clean
    to noisy) and `held_out_loss`. What is missing, not finite or not positive is left out.
    """
    width, height, dpi = 1120, 640, style.CHART_DPI
    figure = style.canvas(width, height, dpi=dpi)
    lines, size = style.fit([title], (width - 60) * style.PICTURE_DPI / dpi)
    title_height = (lines[0].count("\n") + 1) * size * style.LINE * dpi / 72 if lines[0] else 0
    style.write(figure, width / 2, 18, lines[0], size=size, ha="center", va="top")
    top = 74 + title_height
    axes = figure.add_axes(style.rectangle(figure, 120, top, width - 150, height - top - 90))
    axes.set(xlabel="step", ylabel="loss")

    records = sorted(records, key=lambda record: int(record["step"]))
    steps = np.array([record["step"] for record in records], dtype=np.float64)
    loss = _column(records, "loss")
    drawn = _raw(axes, steps, loss)
    # A smoothed line needs no more than this many records.
    stride = max(1, len(records) // 100_000)
    quartiles = _quartiles(records[::stride])
    for values, colour, name in zip(quartiles.T, _shades(), QUARTILES, strict=True):
        drawn |= _smoothed(axes, steps[::stride], values, color=colour, lw=1.1, label=name)
    drawn |= _smoothed(axes, steps, loss, color=style.INK, lw=1.8, label="loss")
    held_out = _column(records, "held_out_loss")
    if (seen := np.isfinite(held_out)).any():
        x, y = _blocks(steps[seen], held_out[seen], np.nanmean)
        axes.plot(
            x, y, ls="", marker="o", ms=4, mfc="white", mew=1.3, color=style.COLOURS[1], label="held out", zorder=5
        )
        drawn = True

    if not drawn:
        axes.set(xticks=[], yticks=[])
        axes.text(
            0.5,
            0.5,
            "no step has been recorded yet",
            ha="center",
            va="center",
            color=style.FAINT,
            transform=axes.transAxes,
        )
        return figure
    _scale(axes)
    if len(np.unique(steps)) == 1:
        axes.set_xlim(steps[0] - 1, steps[0] + 1)
    handles, names = axes.get_legend_handles_labels()
    anchor = (0.5, 1 - (30 + title_height) / height)
    style.plain_legend(
        figure, handles, names, loc="upper center", bbox_to_anchor=anchor, ncols=6, borderpad=0, columnspacing=1.4
    )
    return figure


def _column(records: Sequence[Mapping[str, Any]], key: str) -> Values:
    """One value a record, NaN where it is missing or has no place on a log scale."""
    values = np.fromiter((math.nan if (v := record.get(key)) is None else v for record in records), dtype=np.float64)
    values[~(np.isfinite(values) & (values > 0))] = math.nan
    return values


def _quartiles(records: Sequence[Mapping[str, Any]]) -> Values:
    """(records, 4), NaN where missing."""
    table = np.full((len(records), 4), math.nan)
    for i, record in enumerate(records):
        if (values := record.get("loss_quartiles")) is not None:
            table[i] = [math.nan if v is None else v for v in values]
    table[~(np.isfinite(table) & (table > 0))] = math.nan
    return table


def _raw(axes: Axes, steps: Values, loss: Values) -> bool:
    """The loss of every step, faint; as a band from least to greatest where there are too many steps to draw."""
    seen = np.isfinite(loss)
    steps, loss = steps[seen], loss[seen]
    if not len(loss):
        return False
    if len(loss) <= 2 * POINTS:
        axes.plot(steps, loss, color=style.DATA, lw=0.7, alpha=0.8, marker="o" if len(loss) == 1 else "", zorder=1)
    else:
        x, low = _blocks(steps, loss, np.min)
        _, high = _blocks(steps, loss, np.max)
        axes.fill_between(x, low, high, color=style.DATA, alpha=0.45, lw=0, zorder=1)
    return True


def _smoothed(axes: Axes, steps: Values, values: Values, **look: Any) -> bool:
    """The mean over a window of a twenty-fifth of the records."""
    seen = np.isfinite(values)
    steps, values = steps[seen], values[seen]
    if not len(values):
        return False
    half = len(values) // 50
    total = np.concatenate([[0.0], np.cumsum(values)])
    at = np.unique(np.linspace(0, len(values) - 1, min(len(values), POINTS)).round().astype(np.int64))
    low, high = np.maximum(at - half, 0), np.minimum(at + half + 1, len(values))
    smooth = (total[high] - total[low]) / (high - low)
    axes.plot(steps[at], smooth, marker="o" if len(at) == 1 else "", ms=4, **look)
    return True


def _blocks(steps: Values, values: Values, of: Any) -> tuple[Values, Values]:
    """(steps, values) of at most `POINTS` neighbouring blocks."""
    if len(values) <= POINTS:
        return steps, values
    blocks = np.array_split(np.arange(len(values)), POINTS)
    return np.array([steps[b].mean() for b in blocks]), np.array([of(values[b]) for b in blocks])


def _scale(axes: Axes) -> None:
    """A log scale with plain numbers, also where the loss stays within one decade."""
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    decades = math.log10(high / low)
    subs = (
        (1.0,)
        if decades > 3
        else (1.0, 2.0, 5.0)
        if decades > 0.8
        else (1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0)
    )
    if decades < 0.3:
        axes.yaxis.set_major_locator(MaxNLocator(5))
    else:
        axes.yaxis.set_major_locator(LogLocator(subs=subs))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_locator(LogLocator(subs=()))
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))


def _shades() -> tuple[str, ...]:
    """From clean to noisy, light to dark."""
    return ("#56b4e9", "#0072b2", "#009e73", "#cc79a7")
