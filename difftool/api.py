"""The Python door to what the command line does: `train` and `load`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from difftool.components import Component, Logger
from difftool.options import make
from difftool.plugins.registry import registry
from difftool.runs.recipe import compose
from difftool.sampling.model import Model


def load(path: str | Path, *, weights: str = "ema", device: str = "auto") -> Model:
    """The model of a run folder, or of a model file: `load("runs/x").sample(64, sampler="ddim", steps=50)`.

    `weights="raw"` takes those that were being trained, from the run's state.
    """
    from difftool import devices
    from difftool.sampling.model import load_model

    return load_model(Path(path), weights, device=devices.choose(device))


def train(
    *,
    dataset: str | Component | None = None,
    backbone: str | Component | None = None,
    schedule: str | Component | None = None,
    prediction: str | Component | None = None,
    weighting: str | Component | None = None,
    time: str | Component | None = None,
    loggers: Sequence[str | Logger] = (),
    out: str | Path | None = None,
    overwrite: bool = False,
    device: str = "auto",
    **training: Any,
) -> Model:
    """Train as `difftool train` does, without its pictures, and return the model; `model.source` lies in its folder.

    A script that torchrun starts trains with all its processes, and each gets the model.

    Components are names, or instances with options; `training` takes the settings of `difftool train`:
    `train(dataset="swiss-roll", backbone=component("backbone", "mlp", width=64), steps=2000, seed=1)`.
    """
    from difftool import devices
    from difftool.distributed import joined
    from difftool.runs.folder import check_run_output, create
    from difftool.training.experiment import prepare
    from difftool.training.loggers import check_requirements

    given = {
        "dataset": dataset,
        "backbone": backbone,
        "schedule": schedule,
        "prediction": prediction,
        "weighting": weighting,
        "time": time,
    }
    names = {kind: {"name": part} for kind, part in given.items() if isinstance(part, str)}
    parts = {kind: part for kind, part in given.items() if isinstance(part, Component)}
    recipe = compose({**names, "training": training}, parts=parts)
    logs = [make(registry().of_kind(Logger, one), {}) if isinstance(one, str) else one for one in loggers]
    check_requirements(logs)
    check_run_output(None if out is None else Path(out), overwrite=overwrite)
    where = devices.choose(device)
    with devices.threads(recipe.training.threads):
        experiment = prepare(recipe, where)
        with joined(where) as team:
            folder = team.by_first(lambda: create(recipe, None if out is None else Path(out), overwrite=overwrite))
            with experiment.held(folder, loggers=logs, team=team):
                for _ in experiment.run():
                    pass
                experiment.save()
    model = experiment.model
    model.source = folder.model
    return model.to(where)
