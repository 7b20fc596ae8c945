"""The Python interface to what the command line does: `train` and `load`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from difftool.children import safe_path
from difftool.components import Component
from difftool.errors import check_main_guard
from difftool.options import make
from difftool.paths import absolute
from difftool.plugins.registry import registry
from difftool.runs.recipe import Recipe, build_recipe, companion_kinds, recipe_kinds
from difftool.sampling.model import Model


def load(path: str | Path, *, weights: str = "ema", device: str = "auto") -> Model:
    """Return the model of a run folder or a model file: `load("runs/x").sample(64, sampler="ddim", steps=50)`.

    `weights="raw"` takes the weights that were being trained, from the state of the run, instead of their average.
    Raises `DifftoolError`.
    """
    from difftool import devices
    from difftool.sampling.model import load_model

    return load_model(Path(path), weights, device=devices.choose(device))


def train(*, out: str | Path | None = None, overwrite: bool = False, device: str = "auto", **choices: Any) -> Model:
    """Train as `difftool train` does, without its pictures, and return the model. Its run folder is `model.run`.

    `choices` are components by their kind, and settings by the names that `difftool train` gives them:

        train(dataset="swiss-roll", backbone=component("backbone", "mlp", width=64), loggers=["csv"], steps=2000)

    A component is given by its name or as an instance with options. A script that torchrun starts trains with all its
    processes, and each of them gets the model.

    Ctrl-C saves the run before it raises `KeyboardInterrupt`, and other signals, such as SIGTERM or SIGUSR1, raise
    `SystemExit` then, unless the program handles or ignores them itself. Raises `DifftoolError`, and `TypeError` for a
    component of another kind.
    """
    from difftool import devices
    from difftool.cli.training import fit_quietly
    from difftool.distributed import connect
    from difftool.runs.folder import check_run_output, create
    from difftool.training.experiment import prepare
    from difftool.training.loggers import check_requirements

    check_main_guard()
    recipe, loggers = _recipe(choices), _companions(choices)
    path = None if out is None else Path(out)
    check_requirements(loggers)
    check_run_output(path, overwrite=overwrite)
    chosen = devices.choose(device)
    with safe_path(), devices.threads(recipe.training.threads), connect(chosen) as group:
        experiment = prepare(recipe, chosen)
        with experiment.open(lambda: create(recipe, path, overwrite=overwrite), loggers=loggers, group=group):
            fit_quietly(experiment)
    model = experiment.model
    model.source, model.run = experiment.folder.model, experiment.folder
    return model.to(chosen)


def _recipe(choices: Mapping[str, Any]) -> Recipe:
    """Return the recipe of the components and settings among the choices."""
    kinds = {base.kind.replace("-", "_"): base for base in recipe_kinds().values()}
    plurals = {plural.replace("-", "_") for plural in companion_kinds()}
    training = {name: value for name, value in choices.items() if name not in kinds and name not in plurals}
    names, parts = {}, {}
    for name, base in kinds.items():
        choice = choices.get(name)
        if isinstance(choice, str):
            names[base.kind] = {"name": choice}
        elif choice is not None:
            parts[base.kind] = _checked(choice, base)
    return build_recipe({**names, "training": training}, parts=parts)


def _companions(choices: Mapping[str, Any]) -> list[Any]:
    """Make the components that a run can have several of, such as loggers."""
    return [
        make(registry().of_kind(base, choice), {}) if isinstance(choice, str) else absolute(_checked(choice, base))
        for plural, base in companion_kinds().items()
        for choice in choices.get(plural.replace("-", "_"), ())
    ]


def _checked(choice: object, base: type[Component]) -> Component:
    if not isinstance(choice, base):
        raise TypeError(f"a {base.kind} is given by its name or as a {base.__name__}, not as {type(choice).__name__}")
    return choice
