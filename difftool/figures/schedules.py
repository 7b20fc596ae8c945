"""Noise schedules as a figure."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from difftool.diffusion.schedule import Schedule
from difftool.figures import style
from difftool.figures.layout import add_heading

Values = NDArray[np.float64]

COLOURS = (*style.COLOURS, "#882255", "#7a4a12")
"""Two more colours, a wine red and a brown: nine schedules are built in."""
DASHES = (*style.DASHES, (0, (8, 1.4, 1.2, 1.4, 1.2, 1.4)))
DECIBELS = 80.0
"""The largest signal-to-noise ratio, of either sign, that the figure shows."""


@style.look()
def schedule_figure(schedules: Mapping[str, Schedule], *, title: str = "") -> Figure:
    """Draw alpha-bar, beta and SNR (10 log10 snr, in dB) of several schedules, overlaid.

    The axis is t if all schedules have one length, else t / T. Infinite ends are left open.
    """
    figure = style.canvas(1600, 580, dpi=style.CHART_DPI, layout="constrained")
    alpha_bar, beta, snr = figure.subplots(1, 3)
    one_length = len({len(schedule) for schedule in schedules.values()}) == 1
    for i, schedule in enumerate(schedules.values()):
        t = np.arange(len(schedule), dtype=np.float64)
        x = t if one_length else (t + 1) / len(schedule)
        betas = schedule.betas.numpy()
        _curve(alpha_bar, x, schedule.alpha_bars.numpy(), i)
        _curve(beta, x, np.where(betas > 0, betas, math.nan), i)
        _curve(snr, x, decibels(schedule), i)
    beta.set_yscale("log")
    low, high = beta.get_ylim()
    beta.set_ylim(max(low, 1e-8), min(high, 1.6))
    alpha_bar.set_ylim(-0.03, 1.03)
    snr.axhline(0, color="#a8a8a8", lw=0.8, zorder=1)
    names = (r"signal share  $\bar\alpha_t$", r"noise step  $\beta_t$", "signal-to-noise ratio  (dB)")
    for axes, name in zip((alpha_bar, beta, snr), names, strict=True):
        axes.set_title(name, pad=9)
        axes.set_xlabel(r"$t$" if one_length else r"$t\,/\,T$")
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=one_length))
    handles = [Line2D([], [], **_stroke(i)) for i in range(len(schedules))]
    add_heading(figure, title, handles, list(schedules), handlelength=2.6)
    return figure


def decibels(schedule: Schedule) -> Values:
    """Return 10 log10 of the signal-to-noise ratio, NaN where it is infinite or beyond what the figure shows."""
    values: Values = 10 / math.log(10) * schedule.log_snr.numpy()
    return np.where(np.abs(values) <= DECIBELS, values, math.nan)


def _stroke(i: int) -> dict[str, Any]:
    dashes = DASHES[(i + 2 * (i // len(COLOURS))) % len(DASHES)]
    return {"color": COLOURS[i % len(COLOURS)], "ls": dashes, "lw": 1.7}


def _curve(axes: Axes, x: Values, y: Values, i: int) -> None:
    single = int(np.isfinite(y).sum()) == 1
    axes.plot(x, y, marker="o" if single else "", ms=5, **_stroke(i))
