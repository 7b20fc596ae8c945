"""The Python interface to what the command line does: `train` and `load`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from difftool.children import safe_path
from difftool.cli.request import Request
from difftool.components import Component, Dataset, Metric
from difftool.data.memory import Memory, samples_of
from difftool.data.samples import Samples
from difftool.errors import DifftoolError, UsageError, check_main_guard
from difftool.options import plain
from difftool.paths import absolute
from difftool.plugins.registry import given, registry, replaced_by
from difftool.runs.recipe import Recipe, build_recipe, companion_kinds, differences, recipe_kinds
from difftool.sampling.model import Model
from difftool.scripts import check_not_loading

ARRAYS = (Samples, torch.Tensor, np.ndarray, list)
"""The data that `train` takes as a dataset."""


def load(path: str | Path, *, weights: str = "ema", ema_length: float | None = None, device: str = "auto") -> Model:
    """Return the model of a run folder or a model file: `load("runs/x").sample(64, sampler="ddim", steps=50)`.

    `weights="raw"` takes the weights that were being trained, from the state of the run, instead of their first
    average, and `weights="ema-0.9999"` another average. `ema_length=0.07` reconstructs a power-function average of
    this length from the snapshots of a run that was trained with `ema_lengths`. Raises `DifftoolError`.
    """
    from difftool import devices
    from difftool.sampling.model import load_model

    return load_model(_path("path", path), weights, ema_length=ema_length, device=devices.choose(device))


def train(
    *,
    out: str | Path | None = None,
    overwrite: bool = False,
    resume: str | Path | None = None,
    device: str = "auto",
    progress: bool = True,
    **choices: Any,
) -> Model:
    """Train as `difftool train` does, without its pictures, and return the model. Its run folder is `model.run`.

    `choices` are components by their kind, and settings by the names that `difftool train` gives them:

        train(dataset="swiss-roll", backbone=component("backbone", "mlp", width=64), loggers=["csv"], steps=2000)
        train(dataset=torch.randn(1000, 2), steps=2000)

    `progress` shows a bar with the time left on stderr, or a line now and then where stderr is no terminal.

    A component is given by its name or as an instance with options. The dataset may also be `Samples`, or a tensor, a
    NumPy array or a list of items (N, D) or (N, C, ...), which are scaled in each channel; images are
    `Samples(items=..., shape=..., **PIXELS)`. A run on such data is recorded with their fingerprint as the dataset
    `memory`, and `resume` continues it, or any other run, to more steps. Data in memory, and components that no plugin
    registers, are passed again. A script that torchrun starts trains with all its processes, and each of them gets the
    model, with `shard` on the CPU.

    Ctrl-C saves the run before it raises `KeyboardInterrupt`, and other signals, such as SIGTERM or SIGUSR1, raise
    `SystemExit` then, unless the program handles or ignores them itself. Raises `DifftoolError`, and `TypeError`, which
    says what is taken, for a value that is not understood.
    """
    from difftool import devices
    from difftool.cli.console import note
    from difftool.cli.training import encoding_bar, first_note, fit_in_python
    from difftool.distributed import connect
    from difftool.runs.creation import check_run_output, create
    from difftool.runs.folder import RunFolder, open_run
    from difftool.training.companions import check_requirements
    from difftool.training.prepare import prepare
    from difftool.training.processes import kind_of_group

    check_main_guard()
    check_not_loading("difftool.train()")
    chosen = devices.choose(device)
    path = None if out is None else _path("out", out)
    for name, flag in (("overwrite", overwrite), ("progress", progress)):
        if not isinstance(flag, bool):
            raise TypeError(f"{name} is True or False, not {flag!r:.80}")
    if resume is None:
        recipe, companions = _recipe(choices), _companions(choices)
        check_run_output(path, overwrite=overwrite)
    else:
        run = _path("resume", resume)
        if choices.get("init_from") is not None:
            raise UsageError("init_from: a resumed run goes on from its own weights; leave it out")
        if path is not None or overwrite:
            raise UsageError("resume: a resumed run stays in its folder; leave out and overwrite away")
        with _known(choices):
            recipe, companions = _resumed(run, choices)
        open_run(run).check_free()

    if choices.get("features") and not any(isinstance(one, Metric) for one in companions):
        raise UsageError("features: nothing is measured; name metrics")

    def folder() -> RunFolder:
        return create(recipe, path, overwrite=overwrite) if resume is None else RunFolder(run)

    check_requirements(companions)
    kind = kind_of_group(recipe.training)
    with _known(choices), safe_path(), devices.threads(recipe.training.threads), connect(chosen, kind) as group:
        with encoding_bar() if progress else nullcontext() as watch:
            experiment = prepare(recipe, chosen, None if resume is None else RunFolder(run), watch=watch, group=group)
        if progress and group.is_main and experiment.transfer is not None:
            note(str(experiment.transfer))
        with experiment.open(folder, resume=resume is not None, companions=companions, group=group):
            if progress and group.is_main:
                note(first_note(experiment, resumed=resume is not None, more="steps=N"))
            fit_in_python(experiment, progress=progress)
    if experiment.group.sharded:
        return load(experiment.folder.path, device="cpu")
    model = experiment.model
    model.source, model.run = experiment.folder.model, experiment.folder
    return model.to(chosen)


def _known(choices: Mapping[str, Any]) -> AbstractContextManager[None]:
    """Let files name the chosen components in a block, also those that the program itself defines."""
    return replaced_by(registry().with_components(type(c) for c in choices.values() if isinstance(c, Component)))


def _resumed(run: Path, choices: Mapping[str, Any]) -> tuple[Recipe, list[Component]]:
    """Return the recipe and the companions of a run, with the choices laid over them. Raises `DifftoolError`."""
    read = Request.read({}, config=None, resume=run)
    replaced = {plural for plural in companion_kinds() if plural.replace("-", "_") in choices}
    request = replace(read, tables={key: table for key, table in read.tables.items() if key not in replaced})
    before = request.recipe()
    recipe = _recipe(choices, before)
    if rows := differences(before, recipe):
        raise DifftoolError(f"{run}: {'; '.join(rows)}; leave these out, or start a new run")
    return recipe, [*_companions(choices), *request.companions()]


def _recipe(choices: Mapping[str, Any], before: Recipe | None = None) -> Recipe:
    """Return the recipe of the components and settings among the choices, laid over an earlier one if there is one."""
    kinds = {base.kind.replace("-", "_"): base for base in recipe_kinds().values()}
    plurals = {plural.replace("-", "_") for plural in companion_kinds()}
    training = {name: value for name, value in choices.items() if name not in kinds and name not in plurals}
    parts = {} if before is None else dict(before.parts)
    for name, base in kinds.items():
        if name in choices:
            parts[base.kind] = _component(base, choices[name])
    settings = {} if before is None else plain(before.training)
    if "steps" in training or "epochs" in training:  # the newer one wins
        settings = {name: value for name, value in settings.items() if name not in ("steps", "epochs")}
    return build_recipe({"training": {**settings, **training}}, parts=parts)


def _component(base: type[Component], choice: object) -> Component:
    """Return the component of a choice. Raises `UsageError`, and `TypeError` for what is none."""
    if base is not Dataset:
        return given(base, choice)
    if not isinstance(choice, ARRAYS):
        return given(base, choice, ", as Samples, as an array of items (N, ...)")
    try:
        return Memory.of(samples_of(choice))
    except ValueError as error:
        raise UsageError(f"dataset: {error}") from None


def _companions(choices: Mapping[str, Any]) -> list[Component]:
    """Make the components that accompany a run: loggers, callbacks, metrics and features."""
    made: list[Component] = []
    for plural, base in companion_kinds().items():
        chosen = choices.get(plural.replace("-", "_"), ())
        if not base.several and not isinstance(chosen, (list, tuple)):
            chosen = (chosen,)
        if not isinstance(chosen, (list, tuple)):
            raise TypeError(f"{plural} are a list of names or of {base.__name__}s, not {type(chosen).__name__}")
        made += [absolute(given(base, choice)) for choice in chosen]
    return made


def _path(name: str, value: object) -> Path:
    if not isinstance(value, (str, os.PathLike)):
        raise TypeError(f"{name} is a path, given as text or Path, not as {type(value).__name__}")
    return Path(value)
