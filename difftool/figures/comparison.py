"""Samplers against each other: error and distance to the data by network calls."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from difftool.figures import style
from difftool.figures.layout import add_heading

MARKERS = "os^Dv<>PX*"
DECADES = 8
"""The largest number of orders of magnitude of a panel."""
MEASURES = {"error": "distance to the exact solution (RMS)", "sliced_w2": "sliced W2 to fresh data"}
FLOOR = "data against data"
FLOOR_STROKE = {"color": style.FAINT, "lw": 1.0, "ls": ":"}
NARROWEST, WIDEST, TOTAL = 490, 690, 1530
"""The least and the largest width of a panel, and the width that panels share."""
HEIGHT = 520
"""The height of a panel."""


@dataclass(frozen=True)
class Point:
    """The measures of one trajectory. Those that are None, not finite or not positive are left out."""

    calls: int
    error: float | None
    sliced_w2: float | None


Curves = Mapping[str, Mapping[str, Sequence[Point]]]
"""The points by spacing and sampler."""


@style.look()
def comparison_figure(curves: Curves, *, floor: float | None, title: str) -> Figure:
    """Draw a column for each spacing and a row for each measure, both axes logarithmic.

    `floor` is the distance between two sets of data.
    """
    everything = [point for by_sampler in curves.values() for points in by_sampler.values() for point in points]
    measures = [measure for measure in MEASURES if _pairs(everything, measure)]
    strokes = {name: _stroke(i) for i, name in enumerate(dict.fromkeys(n for by in curves.values() for n in by))}
    across = max(NARROWEST, min(WIDEST, TOTAL // max(1, len(curves))))
    rows = max(1, len(measures))
    figure = style.canvas(100 + len(curves) * across, 60 + rows * HEIGHT, dpi=style.CHART_DPI, layout="constrained")
    if measures:
        panels = figure.subplots(rows, len(curves), sharex=True, sharey="row", squeeze=False)
        for measure, row in zip(measures, panels, strict=True):
            for axes, by_sampler in zip(row, curves.values(), strict=True):
                for name, points in by_sampler.items():
                    if pairs := _pairs(points, measure):
                        axes.plot(*zip(*pairs, strict=True), **strokes[name])
                if measure == "sliced_w2" and floor:
                    axes.axhline(floor, **FLOOR_STROKE, zorder=1)
            row[0].set_ylabel(MEASURES[measure])
            _scale(row[0], {point.calls for point in everything})
        for spacing, top, bottom in zip(curves, panels[0], panels[-1], strict=True):
            top.set_title(spacing, parse_math=False)
            bottom.set_xlabel("network calls")
    if floor and "sliced_w2" in measures:
        strokes[FLOOR] = FLOOR_STROKE
    handles = [Line2D([], [], **stroke) for stroke in strokes.values()]
    add_heading(figure, title, handles, list(strokes), handlelength=3)
    return figure


def _pairs(points: Sequence[Point], measure: str) -> list[tuple[int, float]]:
    """Return (calls, value) of the points that have a place on logarithmic axes."""
    pairs = ((p.calls, getattr(p, measure)) for p in points)
    return [(calls, value) for calls, value in pairs if value is not None and math.isfinite(value) and value > 0]


def _scale(axes: Axes, calls: Collection[int]) -> None:
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    axes.set_ylim(max(low, high / 10**DECADES), high)
    scale_calls(axes, calls)


def scale_calls(axes: Axes, calls: Collection[int]) -> None:
    """Set a logarithmic axis of network calls, with ticks at those that lie far enough apart to be written."""
    axes.set_xscale("log")
    axes.set_xlim(min(calls) / 1.15, max(calls) * 1.15)  # the same for all rows, whatever is drawn in them
    ticks: list[float] = []
    for value in sorted(calls, reverse=True):
        if not ticks or ticks[-1] >= 1.6 * value:
            ticks.append(value)
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_locator(NullLocator())


def _stroke(i: int) -> dict[str, Any]:
    colours = len(style.COLOURS)
    dashes = style.DASHES[i // colours % len(style.DASHES)]
    return {
        "color": style.COLOURS[i % colours],
        "ls": dashes,
        "marker": MARKERS[i % len(MARKERS)],
        "ms": 4.5,
        "lw": 1.4,
    }
