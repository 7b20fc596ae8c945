"""Samplers against each other: error and distance to the data over network calls."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from difftool.figures import style

MARKERS = "os^Dv<>PX*"
DECADES = 8
"""Orders of magnitude a panel shows at most."""


@dataclass(frozen=True)
class Point:
    """One walk of a sampler: network calls, and what was measured; what is None or not positive is left out."""

    calls: int
    error: float | None
    sliced_w2: float | None


Curves = Mapping[str, Mapping[str, Sequence[Point]]]
"""Grid -> sampler -> walks."""
MEASURES = {"error": "distance to the exact solution (RMS)", "sliced_w2": "sliced W2 to fresh data"}


@style.look()
def comparison_figure(curves: Curves, *, floor: float | None, title: str) -> Figure:
    """A column for each grid, a row for each measure there is; both axes logarithmic."""
    measures = [m for m in MEASURES if any(_drawn(points, m) for by in curves.values() for points in by.values())]
    names = list(dict.fromkeys(name for by in curves.values() for name in by))
    dpi, left, gap, panel, between, below = style.CHART_DPI, 130, 50, 440, 60, 86
    across = max(440, min(640, 1480 // max(1, len(curves))))
    width = left + len(curves) * (across + gap)
    lines, size = style.fit([title], (width - 60) * style.PICTURE_DPI / dpi)
    title_height = (lines[0].count("\n") + 1) * size * style.LINE * dpi / 72
    columns = _columns([*names, "data against data"], width - 60)
    legend_height = 36 * math.ceil((len(names) + 1) / columns)
    top = round(30 + title_height + legend_height + 46)
    rows = max(1, len(measures))
    figure = style.canvas(width, top + rows * panel + (rows - 1) * between + below, dpi=dpi)
    style.write(figure, width / 2, 16, lines[0], size=size, ha="center", va="top")
    strokes = {name: _stroke(i) for i, name in enumerate(names)}
    for row, measure in enumerate(measures):
        first: Axes | None = None
        for column, (grid, by) in enumerate(curves.items()):
            box = style.rectangle(figure, left + column * (across + gap), top + row * (panel + between), across, panel)
            axes = figure.add_axes(box, sharex=first, sharey=first)
            first = first or axes
            for name, points in by.items():
                if drawn := _drawn(points, measure):
                    axes.plot(*zip(*drawn, strict=True), **strokes[name])
            if measure == "sliced_w2" and floor:
                axes.axhline(floor, color=style.FAINT, lw=1.0, ls=":", zorder=1)
            axes.tick_params(which="both", labelleft=column == 0, labelbottom=row == rows - 1)
            if row == 0:
                axes.set_title(grid, parse_math=False)
            if row == rows - 1:
                axes.set_xlabel("network calls")
            if column == 0:
                axes.set_ylabel(MEASURES[measure])
        if first is not None:
            _scale(first, {p.calls for by in curves.values() for points in by.values() for p in points})
    handles = [Line2D([], [], **strokes[name]) for name in names]
    if floor and "sliced_w2" in measures:
        handles.append(Line2D([], [], color=style.FAINT, lw=1.0, ls=":"))
        names = [*names, "data against data"]
    anchor = (0.5, 1 - (24 + title_height) / style.size_of(figure)[1])
    style.plain_legend(
        figure, handles, names, loc="upper center", bbox_to_anchor=anchor, ncols=columns, handlelength=3, borderpad=0
    )
    return figure


def _drawn(points: Sequence[Point], measure: str) -> list[tuple[int, float]]:
    """(calls, value) of what has a place on logarithmic axes."""
    pairs = ((p.calls, getattr(p, measure)) for p in points)
    return [(calls, value) for calls, value in pairs if value is not None and math.isfinite(value) and value > 0]


def _scale(axes: Axes, calls: set[int]) -> None:
    axes.set_xscale("log")
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    axes.set_ylim(max(low, high / 10**DECADES), high)
    axes.set_xlim(min(calls) / 1.15, max(calls) * 1.15)  # of all rows alike, whatever is drawn in them
    axes.xaxis.set_major_locator(FixedLocator(_ticks(calls)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_locator(NullLocator())


def _ticks(calls: set[int]) -> list[float]:
    """Numbers of calls that lie far enough apart to be written."""
    ticks: list[float] = []
    for value in sorted(calls, reverse=True):
        if not ticks or ticks[-1] >= 1.6 * value:
            ticks.append(value)
    return ticks


def _stroke(i: int) -> dict[str, Any]:
    return {
        "color": style.COLOURS[i % len(style.COLOURS)],
        "ls": style.DASHES[i // len(style.COLOURS) % len(style.DASHES)],
        "marker": MARKERS[i % len(MARKERS)],
        "ms": 4.5,
        "lw": 1.4,
    }


def _columns(names: Sequence[str], width: float) -> int:
    """Entries in a row of the legend, its rows about equally long."""
    widest = max(style.text_width(name, style.SMALL + 0.5) for name in names) * style.CHART_DPI / style.PICTURE_DPI
    rows = math.ceil(len(names) / max(1, int(width // (widest + 120))))
    return math.ceil(len(names) / rows)
