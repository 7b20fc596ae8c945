"""The pictures that notebooks show of a schedule, a run and a model."""

from __future__ import annotations

import io
from functools import singledispatch

from matplotlib.figure import Figure
from PIL import Image

from difftool.diffusion.schedule import Schedule
from difftool.errors import DifftoolError, counted
from difftool.figures import style
from difftool.figures.drawing import Drawing
from difftool.figures.loss import loss_figure
from difftool.figures.schedules import schedule_figure
from difftool.runs.folder import RunFolder
from difftool.sampling.glimpse import glimpse
from difftool.sampling.loop import collect
from difftool.sampling.model import Model

POINT_STEPS, PANEL_STEPS = 25, 10
"""The DDIM steps of the samples of a model, few since a reader waits for them."""


def png_of(shown: object) -> bytes | None:
    """Return the picture of an object as a PNG file, or None where there is none, so that its `repr` is shown."""
    try:
        figure = figure_of(shown)
    except DifftoolError:
        return None
    if figure is None:
        return None
    file = io.BytesIO()
    Image.fromarray(style.render(figure)).save(file, "PNG", optimize=True)
    return file.getvalue()


@singledispatch
def figure_of(_shown: object) -> Figure | None:
    """Return the figure of an object, or None."""
    return None


@figure_of.register
def figure_of_schedule(schedule: Schedule) -> Figure:
    """Draw the share of signal, the noise of each step, and the signal-to-noise ratio."""
    return schedule_figure({repr(schedule): schedule})


@figure_of.register
def figure_of_run(run: RunFolder) -> Figure:
    """Draw the loss."""
    return loss_figure(run.read_metrics(), title=str(run.path))


@figure_of.register
def figure_of_model(model: Model) -> Figure | None:
    """Draw a few samples, and of each class as many, or return None where samples need other conditions."""
    data = model.data
    plan = glimpse(model, POINT_STEPS if data.is_points else PANEL_STEPS)
    if plan is None:
        return None
    title = f"{model.description}, ddim {counted(plan.steps, 'step')}"
    drawing = Drawing(
        x=collect(model, plan).x,
        scaling=data.scaling,
        title=title,
        form=data.form,
        rate=data.rate,
        labels=plan.rows.get("label"),
        class_names=data.class_names,
        column_names=data.column_names,
    )
    return drawing.figure()
