"""A small model of points, with random weights."""

from __future__ import annotations

import torch

from difftool.components import NoiseSchedule, Prediction
from difftool.data.facts import DataFacts
from difftool.plugins.build import build_network, build_schedule
from difftool.runs.recipe import build_recipe
from difftool.sampling.model import Model


def small_model() -> Model:
    """Return a small model of points in the plane, with random weights."""
    settings = {"timesteps": 100, "held_out": 50}
    recipe = build_recipe({"dataset": {"name": "swiss-roll"}, "training": settings})
    data = DataFacts(shape=(2,))
    torch.manual_seed(0)
    network = build_network(recipe.parts["backbone"], data, recipe.training)  # type: ignore[arg-type]
    schedule = build_schedule(recipe[NoiseSchedule], 100, recipe[Prediction])
    return Model(recipe, data, schedule, network).to("cpu")
