"""Curves as plain text, for a terminal."""

from __future__ import annotations

import math
import string
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]

MARKS, ASCII_MARKS = "●▲■◆○△□◇▼", "*o+x#@%&~"
DOTS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))
"""The bits of a braille character, 4 rows of 2 dots."""


def terminal_plot(
    curves: Mapping[str, Sequence[float]], *, width: int, height: int, ascii: bool = False, y_label: str = ""
) -> str:
    """Return curves over t as `height` rows of plot between axis and label, no line longer than `width`.

    If all values are within 0..1, so is the axis. Values that are not finite are left out.
    """
    values = [np.asarray(curve, dtype=np.float64) for curve in curves.values()]
    low, high = limits = _range(values)
    ticks = {0: _number(high), height - 1: _number(low)}
    if height % 2 and height > 1:
        ticks[height // 2] = _number((low + high) / 2)
    pad = max(map(len, ticks.values()))
    across = max(2, width - pad - 2)
    symbols = (ASCII_MARKS if ascii else MARKS) + string.ascii_letters
    marks = [symbols[i % len(symbols)] for i in range(len(values))]
    plot = (_ascii_rows if ascii else _braille_rows)(values, marks, across, height, limits)

    wall, tick, corner, floor = ("|", "+", "+", "-") if ascii else ("│", "┤", "└", "─")
    lines = [y_label] if y_label else []
    lines += [f"{ticks.get(row, ''):>{pad}} {tick if row in ticks else wall}{text}" for row, text in enumerate(plot)]
    lines.append(f"{'':>{pad}} {corner}{floor * across}")
    lengths = {len(curve) for curve in values}
    start, end = ("t = 0", str(lengths.pop() - 1)) if len(lengths) == 1 else ("t/T = 0", "1")
    lines.append(f"{'':>{pad}}  {start}{end:>{max(1, across - len(start))}}")
    legend = ""
    for name, mark in zip(curves, marks, strict=True):
        entry = f"{mark} {name}"
        if legend and len(legend) + 3 + len(entry) > width - pad - 2:
            lines.append(" " * (pad + 2) + legend)
            legend = ""
        legend += f"   {entry}" if legend else entry
    lines.append(" " * (pad + 2) + legend)
    return "\n".join(line[:width].rstrip() for line in lines).rstrip()


def _range(curves: Sequence[Values]) -> tuple[float, float]:
    finite = np.concatenate([np.zeros(0), *(curve[np.isfinite(curve)] for curve in curves)])
    if not len(finite) or (finite.min() >= 0 and finite.max() <= 1):
        return 0.0, 1.0
    low, high = float(finite.min()), float(finite.max())
    return (low, high) if high > low else (low - 1, high + 1)


def _number(value: float) -> str:
    return f"{value:.1f}" if abs(value) < 10 and round(value, 1) == value else f"{value:.3g}"


def _heights(curve: Values, across: int, rows: int, limits: tuple[float, float]) -> list[int | None]:
    """Return the row (0 is the top) of a curve in each of `across` columns."""
    if not len(curve):
        return [None] * across
    # the nearest value, not an interpolated one: a curve may end in an infinity
    nearest = np.linspace(0, len(curve) - 1, across).round().astype(np.int64)
    shares = (curve[nearest] - limits[0]) / (limits[1] - limits[0])
    return [round((1 - float(share)) * (rows - 1)) if math.isfinite(share) else None for share in shares]


def _line(heights: Sequence[int | None]) -> list[tuple[int, int]]:
    """Return the points (column, row) of a line without holes through these heights."""
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
    """Draw thin lines, each with some of its marks on it."""
    bits = np.zeros((height, across), dtype=np.int64)
    symbols: dict[tuple[int, int], str] = {}
    spacing = max(len(curves) * 3, across // 5)
    for i, (curve, mark) in enumerate(zip(curves, marks, strict=True)):
        heights = _heights(curve, 2 * across, 4 * height, limits)
        for x, y in _line(heights):
            bits[y // 4, x // 2] |= DOTS[y % 4][x % 2]
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
    """Draw lines of marks. Where several curves meet, their marks take turns."""
    cells = [[""] * across for _ in range(height)]
    for curve, mark in zip(curves, marks, strict=True):
        for x, y in _line(_heights(curve, across, height, limits)):
            cells[y][x] += mark
    return ["".join(marks[x % len(marks)] if marks else " " for x, marks in enumerate(row)) for row in cells]
