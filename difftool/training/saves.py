"""What a save of a run holds: the best model so far, the state, the model, and the averages beside it."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING

from difftool.runs.checkpoint import Contents
from difftool.runs.folder import INSIDE
from difftool.training import state
from difftool.training.saving import Save

if TYPE_CHECKING:
    from difftool.training.experiment import Experiment


def save(run: Experiment, *, wait: bool) -> None:
    """Write a save, before this returns or else by a thread. All processes call this. Raises `DifftoolError`.

    Shards of a state are written by their processes, and so before this returns.
    """
    begun = perf_counter()
    run.state.window = run.meter.window() if run.group.size == 1 else {}
    if run.group.sharded:
        run.group.on_main(lambda: run.saver.write(Save([], run.recipe.training.keep, own=_best(run))))
        state.save_sharded(run.place.find, partial(_state, run), run.state, run.group)
    write = run.saver.write if wait else run.saver.start
    run.group.on_main(lambda: write(_all(run)))
    if run.group.sharded:
        run.saver.longest = max(run.saver.longest, perf_counter() - begun)


def _all(run: Experiment) -> Save:
    """Return the files of a save, the state first: where there is a model, there is something to resume from."""
    step, best, keep = run.state.step, _best(run), run.recipe.training.keep
    run.model.step = step
    models = [(INSIDE.model, run.model.contents()), *run.averages.files(step)]
    if run.group.sharded:  # the state is written, and the tensors were gathered for these files alone
        return Save([], keep, own=[*best, *models])
    return Save([(INSIDE.state(step), _state(run)), *models], keep, own=best)


def _best(run: Experiment) -> list[tuple[Path, Contents]]:
    return [] if run.best is None else [*run.best.files(run.model)]


def _state(run: Experiment) -> Contents:
    return state.contents(run.state, run.recipe, run.metadata())
