"""Pictures of a run while it trains: samples, and a panel of what the network predicts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from difftool.diffusion.visible import visible_levels
from difftool.errors import counted
from difftool.figures.formats import undrawable
from difftool.files import atomic
from difftool.rng import sample_noise
from difftool.sampling.source import reference_points
from difftool.settings import Sampling
from difftool.training.frozen import evaluating

if TYPE_CHECKING:
    from difftool.data.condition import Condition
    from difftool.data.facts import DataFacts
    from difftool.training.experiment import Experiment

STEPS = 25
"""The DDIM steps of a preview, enough to see progress."""
POINTS, PANELS, CLASSES = 1_000, 16, 16
"""The numbers of points and of other samples of a preview, and the most classes that it shows, as many of each."""
PANEL_LEVELS = 4
"""The levels of the panel, from clean to noisy; the noisiest, which shows no item, is left out."""


def draw(experiment: Experiment) -> list[Path]:
    """Draw `previews/samples-<step>.png` and `previews/panel-<step>.png`, for all forms but arrays."""
    if undrawable(experiment.data.form, experiment.data.shape):
        return []
    step, folder = experiment.state.step, experiment.folder.previews
    samples, panel = folder / f"samples-{step:06d}.png", folder / f"panel-{step:06d}.png"
    with evaluating(experiment.model.network):
        draw_samples(experiment, samples)
        draw_panel(experiment, panel)
    return [samples, panel]


def draw_samples(experiment: Experiment, path: Path) -> None:
    """Draw a few samples of the model that would be saved now, always from the same noise."""
    from difftool.figures.drawing import Drawing
    from difftool.sampling.loop import collect
    from difftool.sampling.plan import Plan

    model = experiment.model
    steps = min(STEPS, len(model.schedule))
    count = POINTS if model.data.is_points else PANELS
    originals, conditions = shown_conditions(experiment, count)
    labels = conditions.get("label")
    n = count if labels is None else len(labels)
    plan = Plan.of(model, Sampling(steps=steps, num_samples=n), conditions=conditions)
    x = collect(model, plan).x
    title = ", ".join(
        [
            f"{model.recipe.name}, step {experiment.state.step}, ddim {counted(steps, 'step')}",
            *_words(model.data, dict(zip(plan.rows, plan.conditions_in_words(model), strict=True))),
        ]
    )
    reference = reference_points(experiment.train)
    with atomic(path) as temporary:
        drawing = Drawing(
            x=x,
            scaling=model.data.scaling,
            title=title,
            reference=reference,
            form=model.data.form,
            rate=model.data.rate,
            labels=labels,
            class_names=model.data.class_names,
            condition_images=conditions.get("image"),
            originals=originals,
        )
        drawing.save_figure(temporary)


def draw_panel(experiment: Experiment, path: Path) -> None:
    """Draw original, noisy items, true noise, predicted noise and reconstruction at several levels."""
    from difftool.figures.style import save
    from difftool.sampling.reconstruction import panel, reconstruct

    model, schedule = experiment.model, experiment.model.schedule
    count = POINTS if model.data.is_points else 1
    x_0, condition = some_items(experiment, count * PANEL_LEVELS)
    made = []
    levels = visible_levels(schedule, PANEL_LEVELS + 1, is_image=model.data.has_pixels)
    for row, t in enumerate(levels[:PANEL_LEVELS]):
        own = slice(row * count, (row + 1) * count)
        eps = sample_noise(row * count, len(x_0[own]), model.space.shape, 0, "panel", device=experiment.device)
        made.append(reconstruct(model, x_0[own], schedule[t], eps, None if condition is None else condition[own]))
    rows = [f"t = {one.level.t:.0f}" for one in made]
    figure = panel(made, model, rows=rows, title=f"{model.recipe.name}, step {experiment.state.step}")
    with atomic(path) as temporary:
        save(figure, temporary)


def _words(data: DataFacts, conditions: Mapping[str, str]) -> Iterator[str]:
    """Yield words for samples of classes or under the conditions of items, and for the parts of an image of them."""
    fields = [*data.condition.shapes]
    if "label" in conditions:
        yield conditions["label"]
    if data.condition.image:
        yield "condition | sample | original"
    elif fields != ["label"] and fields:
        yield "under the conditions of items"


def shown_conditions(experiment: Experiment, count: int) -> tuple[Tensor | None, dict[str, Tensor]]:
    """Return raw conditions of about `count` samples by field, and the items that they belong to if those are drawn.

    Each of the first classes has as many samples, one after the other in turn. Conditions beside the class are those of
    held-out items, or of training items if none are held out. The items are in model units on the CPU. Nothing is read
    if there are no such conditions.
    """
    data = experiment.data
    fields = [*data.condition.shapes]
    if fields == ["label"]:
        classes = min(CLASSES, len(data.class_names))
        return None, {"label": torch.arange(classes).repeat(max(1, count // classes))}
    if not fields:
        return None, {}
    samples = experiment.held_out or experiment.train
    chosen = spread(len(samples), count) if samples.labels is None else spread_by_class(samples.labels, count)
    items, condition = samples.take(chosen)
    conditions = {} if condition is None else condition.fields()
    return data.scaling.to_model(items).cpu() if data.condition.image else None, conditions


def spread_by_class(labels: Tensor, count: int) -> list[int]:
    """Return the indices of about `count` items, as many of each of the first classes, in turn."""
    classes = sorted({*labels.tolist()})[:CLASSES]
    each = max(1, count // len(classes))
    members = [(labels == label).nonzero().flatten() for label in classes]
    rows = [rows[spread(len(rows), each)] for rows in members]
    chosen: list[int] = torch.stack(rows, dim=1).flatten().tolist()
    return chosen


def some_items(experiment: Experiment, count: int) -> tuple[Tensor, Condition | None]:
    """Return training items as the network sees them, spread over the data, and their conditions. Few are repeated."""
    items, condition = experiment.train.take(spread(len(experiment.train), count))
    model = experiment.model
    x_0 = model.data.scaling.to_model(items.to(experiment.device))
    return model.encode(x_0), model.model_condition(condition)


def spread(n: int, count: int) -> list[int]:
    """Return the indices of `count` items spread over n; where there are fewer items, they are repeated."""
    return [i * max(1, n // count) % n for i in range(count)]
