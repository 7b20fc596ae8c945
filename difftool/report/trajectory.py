"""The way of a few samples from noise to data, as the frames of a film."""

from __future__ import annotations

from typing import TYPE_CHECKING

from difftool.diffusion.visible import hidden, thinned
from difftool.errors import DifftoolError, counted, spending
from difftool.figures.formats import DrawingSpec
from difftool.report.pictures import Encoded, from_pixels

if TYPE_CHECKING:
    from collections.abc import Callable

    from difftool.diffusion.estimate import Step
    from difftool.sampling.model import Model

STEPS, FRAMES = 25, 24
"""The DDIM steps of the samples, and the largest number of frames."""


def film(model: Model, watch: Callable[[Step], object] | None = None) -> list[Encoded]:
    """Draw a few samples, and return their states from noise to the result as pictures. Raises `DifftoolError`.

    The list is empty where no picture can show the samples, or the model needs more than a class to draw them.
    """
    from difftool import devices
    from difftool.figures.drawing import Drawing
    from difftool.sampling.glimpse import glimpse
    from difftool.sampling.loop import collect
    from difftool.sampling.source import reference_points_of

    if model.data.form == "film":
        raise DifftoolError("a film from noise to samples cannot be made of films")
    plan, data = glimpse(model, STEPS), model.data
    if plan is None:
        return []
    places = hidden(plan.levels, is_image=data.has_pixels)
    spec = DrawingSpec(shape=data.shape, steps=plan.steps, hidden=places, form=data.form, rate=data.rate)
    steps = spec.evenly(FRAMES)
    with devices.threads(None, model.recipe.training.threads), spending(plan.batch_size):
        drawn = collect(model, plan, steps, watch=watch)
    labels = [f"t = {level.t:.0f}" if level.sigma > 0 else "x_0, the samples" for level in drawn.levels]
    states_hidden = hidden(drawn.levels, is_image=data.has_pixels)
    drawing = Drawing(
        x=drawn.x,
        scaling=data.scaling,
        form=data.form,
        rate=data.rate,
        title=model.title,
        states=drawn.states,
        state_labels=labels,
        state_steps=steps,
        state_hidden=states_hidden,
        labels=plan.rows.get("label"),
        class_names=data.class_names,
        column_names=data.column_names,
        reference=reference_points_of(model) if data.is_points else None,
    )
    chosen = thinned(states_hidden, FRAMES)
    count = counted(plan.num_samples, "sample")
    return [
        from_pixels(frame, label=labels[k], alt=f"{count} at {labels[k]}, on the way from noise to data")
        for k, frame in zip(chosen, drawing.frames(FRAMES), strict=True)
    ]
