"""The losses of several runs over each other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from difftool.figures import style
from difftool.figures.curves import blocks
from difftool.figures.layout import add_heading
from difftool.figures.loss import known, positive, say_nothing_recorded, scale, smooth

HELD_OUT: Any = (0, (4, 1.6))
"""The dashes of held-out losses."""


@dataclass(frozen=True)
class Curve:
    """The losses of a run."""

    name: str
    """Its place in the legend: what differs from the other runs."""
    steps: Sequence[int]
    loss: Sequence[float | None]
    held_out: Sequence[float | None] = ()
    """One for each step, None where it was not measured, or empty."""


@style.look()
def losses_figure(curves: Sequence[Curve], *, title: str, label: str = "loss") -> Figure:
    """Draw the smoothed loss of each run over its steps, and dashed its held-out loss, on a log scale.

    Values that are missing, not finite or not positive are left out.
    """
    figure = style.canvas(1120, 560, dpi=style.CHART_DPI, layout="constrained")
    axes = figure.subplots()
    axes.set(xlabel="step", ylabel=label)
    handles: dict[str, Line2D] = {}
    for colour, curve in zip(_colours(len(curves)), curves, strict=True):
        steps = np.array(curve.steps, dtype=np.float64)
        smooth(axes, *known(steps, positive(curve.loss)), color=colour, lw=1.5)
        if curve.held_out:
            x, y = blocks(*known(steps, positive(curve.held_out)))
            axes.plot(x, y, color=colour, lw=1.3, ls=HELD_OUT, marker="o" if len(x) == 1 else "", ms=4)
        handles[curve.name] = Line2D([], [], color=colour, lw=2.2)
    if not axes.lines:
        say_nothing_recorded(axes)
    else:
        scale(axes)
        if any(line.get_linestyle() == "--" and len(line.get_xdata()) for line in axes.lines):  # type: ignore[arg-type]
            handles["held out"] = Line2D([], [], color=style.FAINT, lw=1.3, ls=HELD_OUT)
    add_heading(figure, title, [*handles.values()], [*handles])
    return figure


def _colours(count: int) -> list[Any]:
    """Return colours that can be told apart, or for many runs those of a scale, in the order of the runs."""
    if count <= len(style.COLOURS):
        return list(style.COLOURS[:count])
    return list(matplotlib.colormaps["viridis"](np.linspace(0, 0.93, count)))
