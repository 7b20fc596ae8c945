"""Several runs compared: means with error bars, by network calls or side by side."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from difftool.figures import style
from difftool.figures.comparison import FLOOR, FLOOR_STROKE, MARKERS, scale_calls
from difftool.figures.layout import add_heading
from difftool.figures.loss import log_scale

NARROWEST, WIDEST, TOTAL, HEIGHT = 520, 900, 1530, 520
"""The least and the largest width of a panel, the width that panels share, and the height of one."""
RATIO = 8.0
"""The ratio of the largest to the least value from which on an axis is logarithmic."""


@dataclass(frozen=True)
class Mean:
    """A mean with its deviation, None where there is none."""

    calls: int
    value: float
    deviation: float | None


Series = Mapping[tuple[str, str], Sequence[Mean]]
"""The means of a panel by the names of runs and sampler."""


@style.look()
def study_figure(
    panels: Mapping[tuple[str, str], Series],
    *,
    labels: Mapping[str, str],
    floors: Mapping[str, float | None],
    title: str,
) -> Figure:
    """Draw a row for each score and a column for each spacing and guidance.

    `panels` holds series by (score, column), `labels` words for the scores, `floors` the scores of data against data.
    Runs have colours and samplers markers and dashes. With one number of calls, samplers stand side by side.
    """
    scores, columns = ([*dict.fromkeys(key[i] for key in panels)] for i in (0, 1))
    means = [(names, mean) for series in panels.values() for names, found in series.items() for mean in found]
    calls = sorted({mean.calls for _, mean in means})
    groups, samplers = ([*dict.fromkeys(names[i] for names, _ in means)] for i in (0, 1))
    across = max(NARROWEST, min(WIDEST, TOTAL // max(1, len(columns))))
    size = (100 + len(columns) * across, 60 + len(scores) * HEIGHT)
    figure = style.canvas(*size, dpi=style.CHART_DPI, layout="constrained")
    grid = figure.subplots(len(scores), len(columns), sharex=True, sharey="row", squeeze=False)
    side_by_side = all(len(found) == 1 for series in panels.values() for found in series.values())
    for score, row in zip(scores, grid, strict=True):
        for column, axes in zip(columns, row, strict=True):
            series = panels.get((score, column), {})
            for names, found in series.items():
                look = _look(groups.index(names[0]), samplers.index(names[1]))
                shift = _shift(groups.index(names[0]), len(groups))
                x = (
                    [samplers.index(names[1]) + shift]
                    if side_by_side
                    else [m.calls * 1.02 ** (5 * shift) for m in found]
                )
                bars = [mean.deviation or 0.0 for mean in found]
                axes.errorbar(x, [mean.value for mean in found], yerr=bars, capsize=2.5, elinewidth=1.1, **look)
            if (floor := floors.get(score)) is not None:
                axes.axhline(floor, **FLOOR_STROKE, zorder=1)
            axes.set_title(column, parse_math=False)
        row[0].set_ylabel(labels.get(score, score), parse_math=False)
        _scale(
            row[0],
            [mean for key, series in panels.items() if key[0] == score for found in series.values() for mean in found],
        )
    for axes in grid[-1]:
        if side_by_side:
            axes.set_xticks(range(len(samplers)), samplers)
            axes.set_xlim(-0.6, len(samplers) - 0.4)
            axes.set_xlabel(f"sampler, at most {calls[-1]} network calls" if calls else "sampler")
        else:
            axes.set_xlabel("network calls")
    if not side_by_side and calls:
        scale_calls(grid[0][0], calls)
    handles: dict[str, Line2D] = {}
    floor_stroke: dict[str, Any] = {**FLOOR_STROKE}
    for g, s in sorted({(groups.index(n[0]), samplers.index(n[1])) for n, _ in means}):
        name = ", ".join(filter(None, (groups[g], samplers[s] if not side_by_side else "")))
        handles.setdefault(name, Line2D([], [], **_look(g, s if not side_by_side else 0)))
    if any(floors.get(score) is not None for score in scores):
        handles[FLOOR] = Line2D([], [], **floor_stroke)
    add_heading(figure, title, [*handles.values()], [*handles], handlelength=3)
    return figure


def _look(group: int, sampler: int) -> dict[str, Any]:
    return {
        "color": style.COLOURS[group % len(style.COLOURS)],
        "ls": style.DASHES[sampler % len(style.DASHES)],
        "marker": MARKERS[sampler % len(MARKERS)],
        "ms": 5,
        "lw": 1.4,
    }


def _shift(group: int, groups: int) -> float:
    """Return the place of a group beside the middle, so that error bars do not hide each other."""
    return 0.0 if groups == 1 else 0.3 * (2 * group / (groups - 1) - 1)


def _scale(axes: Axes, means: Sequence[Mean]) -> None:
    """Set a logarithmic axis where values span much, and no bar reaches to zero."""
    lows = [mean.value - (mean.deviation or 0.0) for mean in means]
    highs = [mean.value + (mean.deviation or 0.0) for mean in means]
    if lows and min(lows) > 0 and math.isfinite(max(highs)) and max(highs) / min(lows) > RATIO:
        log_scale(axes)
