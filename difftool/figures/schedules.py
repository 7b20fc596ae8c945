"""Noise schedules as a figure for a paper, and as a plot of plain text for a terminal."""

from __future__ import annotations

import math
import string
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from difftool.diffusion.schedule import Schedule
from difftool.figures import style

Values = NDArray[np.float64]

COLOURS = (*style.COLOURS, "#882255", "#7a4a12")
"""Two more, a wine red and a brown: nine schedules are built in."""
DASHES = (*style.DASHES, (0, (8, 1.4, 1.2, 1.4, 1.2, 1.4)))
DECIBELS = 80.0
"""Signal-to-noise ratios beyond this, towards either infinity, are off the figure."""


@style.look()
def schedule_figure(schedules: Mapping[str, Schedule], *, title: str | None = None) -> Figure:
    """alpha-bar, beta and SNR (10 log10 snr, in dB) of several schedules, overlaid.

    Over t where all have one length, else over t / T. Infinite ends are left open.
    """
    if not schedules:
        raise ValueError("there is no schedule to draw")
    width, dpi, below, left, gap, panel = 1600, style.CHART_DPI, 88, 96, 116, 390
    names = list(schedules)
    entries = _legend_columns(names, width - 80)
    figure_title, size = style.fit([title or ""], (width - 60) * style.PICTURE_DPI / dpi)
    title_height = (figure_title[0].count("\n") + 1) * size * style.LINE * dpi / 72 + 8 if figure_title[0] else 0
    legend_height = 34 * math.ceil(len(names) / entries) + 8
    top = round(14 + title_height + legend_height + 42)
    figure = style.canvas(width, top + panel + below, dpi=dpi)
    total = style.size_of(figure)
    style.write(figure, width / 2, 16, figure_title[0], size=size, ha="center", va="top")

    lengths = {len(schedule) for schedule in schedules.values()}
    across = (width - left - 30 - 2 * gap) // 3
    boxes = [style.rectangle(figure, left + i * (across + gap), top, across, panel) for i in range(3)]
    alpha_bar, beta, snr = (figure.add_axes(box) for box in boxes)
    for i, schedule in enumerate(schedules.values()):
        t = np.arange(len(schedule), dtype=np.float64)
        x = t if len(lengths) == 1 else (t + 1) / len(schedule)
        _curve(alpha_bar, x, schedule.alpha_bars.numpy(), i)
        betas = schedule.betas.numpy()
        _curve(beta, x, np.where(betas > 0, betas, math.nan), i)
        _curve(snr, x, decibels(schedule), i)
    beta.set_yscale("log")
    low, high = beta.get_ylim()
    beta.set_ylim(max(low, 1e-8), min(high, 1.6))
    alpha_bar.set_ylim(-0.03, 1.03)
    snr.axhline(0, color="#a8a8a8", lw=0.8, zorder=1)
    for axes, name in (
        (alpha_bar, r"signal share  $\bar\alpha_t$"),
        (beta, r"noise step  $\beta_t$"),
        (snr, "signal-to-noise ratio  (dB)"),
    ):
        axes.set_title(name, pad=9)
        axes.set_xlabel(r"$t$" if len(lengths) == 1 else r"$t\,/\,T$")
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=len(lengths) == 1))
    handles = [Line2D([], [], **_stroke(i)) for i in range(len(names))]
    anchor = (0.5, 1 - (10 + title_height) / total[1])
    style.plain_legend(
        figure, handles, names, loc="upper center", bbox_to_anchor=anchor, ncols=entries, handlelength=2.6, borderpad=0
    )
    return figure


def decibels(schedule: Schedule) -> Values:
    """10 log10 of the signal-to-noise ratio, NaN where it is infinite or beyond what a figure shows."""
    values: Values = 10 / math.log(10) * schedule.log_snr.numpy()
    return np.where(np.abs(values) <= DECIBELS, values, math.nan)


def _stroke(i: int) -> dict[str, Any]:
    return {
        "color": COLOURS[i % len(COLOURS)],
        "ls": DASHES[(i + 2 * (i // len(COLOURS))) % len(DASHES)],
        "lw": 1.7,
    }


def _curve(axes: Axes, x: Values, y: Values, i: int) -> None:
    lone = int(np.isfinite(y).sum()) == 1
    axes.plot(x, y, marker="o" if lone else "", ms=5, **_stroke(i))


def _legend_columns(names: Sequence[str], width: float) -> int:
    """Entries in a row of the legend, its rows about equally long."""
    widest = max(style.text_width(name, style.SMALL + 0.5) for name in names) * style.CHART_DPI / style.PICTURE_DPI
    rows = math.ceil(len(names) / max(1, int(width // (widest + 130))))
    return math.ceil(len(names) / rows)


_MARKS, _ASCII_MARKS = "●▲■◆○△□◇▼", "*o+x#@%&~"
_DOTS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))
"""Bits of a braille character, 4 rows of 2 dots."""


def terminal_plot(
    curves: Mapping[str, Sequence[float]], *, width: int, height: int, ascii: bool = False, y_label: str = ""
) -> str:
    """Curves over t as plain text: `height` rows of plot between axis and label, no line longer than `width`.

    Shares (all values within 0..1) get the axis 0..1. Values that are not finite are left out.
    """
    values = {name: np.asarray(curve, dtype=np.float64) for name, curve in curves.items()}
    low, high = _range(list(values.values()))
    ticks = {0: _number(high), height - 1: _number(low)}
    if height % 2 and height > 1:
        ticks[height // 2] = _number((low + high) / 2)
    pad = max(map(len, ticks.values()))
    across = max(2, width - pad - 2)
    known = _ASCII_MARKS if ascii else _MARKS
    marks = {name: (known + string.ascii_letters)[i % (len(known) + 52)] for i, name in enumerate(values)}
    draw = _ascii_rows if ascii else _braille_rows
    plot = draw(list(values.values()), list(marks.values()), across, height, (low, high))

    wall, tick, corner, floor = ("|", "+", "+", "-") if ascii else ("│", "┤", "└", "─")
    lines = [y_label] if y_label else []
    for row, text in enumerate(plot):
        lines.append(f"{ticks.get(row, ''):>{pad}} {tick if ticks.get(row) else wall}{text}")
    lines.append(f"{'':>{pad}} {corner}{floor * across}")
    lengths = {len(curve) for curve in values.values()}
    start, end = ("t = 0", str(lengths.pop() - 1)) if len(lengths) == 1 else ("t/T = 0", "1")
    lines.append(f"{'':>{pad}}  {start}{end:>{max(1, across - len(start))}}")
    lines += _legend(marks, width - pad - 2, " " * (pad + 2))
    return "\n".join(line[:width].rstrip() for line in lines)


def _range(curves: Sequence[Values]) -> tuple[float, float]:
    finite = np.concatenate([curve[np.isfinite(curve)] for curve in curves] or [np.zeros(0)])
    if not len(finite) or (finite.min() >= 0 and finite.max() <= 1):
        return 0.0, 1.0
    low, high = float(finite.min()), float(finite.max())
    return (low, high) if high > low else (low - 1, high + 1)


def _number(value: float) -> str:
    return f"{value:.1f}" if abs(value) < 10 and round(value, 1) == value else f"{value:.3g}"


def _heights(curve: Values, across: int, tall: int, limits: tuple[float, float]) -> list[int | None]:
    """The row (0 is the top) of a curve in each of `across` columns."""
    if not len(curve):
        return [None] * across
    # The nearest value, not an interpolated one: a curve may end in an infinity.
    nearest = np.linspace(0, len(curve) - 1, across).round().astype(np.int64)
    part = (curve[nearest] - limits[0]) / (limits[1] - limits[0])
    return [round((1 - float(p)) * (tall - 1)) if math.isfinite(p) else None for p in part]


def _runs(heights: Sequence[int | None]) -> list[tuple[int, int]]:
    """The points (column, row) of a line without holes through these heights."""
    points, before = [], None
    for column, row in enumerate(heights):
        if row is not None:
            start = row if before is None or before == row else before + (1 if row > before else -1)
            points += [(column, y) for y in range(min(start, row), max(start, row) + 1)]
        before = row
    return points


def _braille_rows(
    curves: Sequence[Values], marks: Sequence[str], across: int, height: int, limits: tuple[float, float]
) -> list[str]:
    """Thin lines, each with a few of its marks on it."""
    bits = [[0] * across for _ in range(height)]
    symbols: dict[tuple[int, int], str] = {}
    spacing = max(len(curves) * 3, across // 5)
    for i, (curve, mark) in enumerate(zip(curves, marks, strict=True)):
        heights = _heights(curve, 2 * across, 4 * height, limits)
        for x, y in _runs(heights):
            bits[y // 4][x // 2] |= _DOTS[y % 4][x % 2]
        for column in range(round((i + 0.5) * spacing / len(curves)), across, spacing):
            row = heights[2 * column]
            if row is not None:
                symbols.setdefault((row // 4, column), mark)
    return [
        "".join(symbols.get((r, c), chr(0x2800 + cell) if cell else " ") for c, cell in enumerate(row))
        for r, row in enumerate(bits)
    ]


def _ascii_rows(
    curves: Sequence[Values], marks: Sequence[str], across: int, height: int, limits: tuple[float, float]
) -> list[str]:
    """Lines of marks; where several curves meet, their marks take turns."""
    there: dict[tuple[int, int], list[str]] = {}
    for curve, mark in zip(curves, marks, strict=True):
        for x, y in _runs(_heights(curve, across, height, limits)):
            there.setdefault((y, x), []).append(mark)
    return [
        "".join(found[x % len(found)] if (found := there.get((y, x))) else " " for x in range(across))
        for y in range(height)
    ]


def _legend(marks: Mapping[str, str], width: int, indent: str) -> list[str]:
    lines = [""]
    for name, mark in marks.items():
        entry = f"{mark} {name}"
        longer = f"{lines[-1]}   {entry}" if lines[-1] else entry
        if len(longer) <= width:
            lines[-1] = longer
        else:
            lines.append(entry)
    return [indent + line for line in lines if line]
