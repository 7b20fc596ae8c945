"""What a save of a run holds: the best model so far, the state, the model, and the averages beside it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from time import perf_counter

from difftool.distributed import ProcessGroup
from difftool.runs.checkpoint import Contents
from difftool.runs.folder import INSIDE
from difftool.runs.recipe import Recipe
from difftool.sampling.model import Model, contents
from difftool.training import state
from difftool.training.best import Best
from difftool.training.saving import Save, Saver
from difftool.training.snapshots import AverageFiles
from difftool.training.state import StateMetadata, TrainState


@dataclass(frozen=True)
class Saves:
    """The parts of a run that its saves hold, and who writes them."""

    recipe: Recipe
    state: TrainState
    model: Model
    averages: AverageFiles
    best: Best | None
    saver: Saver
    group: ProcessGroup

    def write(self, metadata: StateMetadata, *, wait: bool) -> None:
        """Write a save, before this returns or else by a thread. All processes call this. Raises `DifftoolError`.

        Shards of a state are written by their processes, and so before this returns.
        """
        begun, saver = perf_counter(), self.saver
        contents = partial(state.contents, self.state, self.recipe, metadata)
        if self.group.sharded:
            self.group.on_main(lambda: saver.write(Save([], self._keep, own=self._best())))
            state.save_sharded(saver.watched.find, contents, self.state, self.group)
            self.group.on_main(lambda: self._write(Save([], self._keep, own=[*self._best(), *self._models()]), wait))
            saver.longest = max(saver.longest, perf_counter() - begun)
        else:
            self.group.on_main(lambda: self._write(self._whole(contents()), wait))

    def _write(self, save: Save, wait: bool) -> None:
        write = self.saver.write if wait else self.saver.start
        write(save)

    def _whole(self, contents: Contents) -> Save:
        """Return a save with the state first: where there is a model, there is something to resume from."""
        return Save([(INSIDE.state(self.state.step), contents), *self._models()], self._keep, own=self._best())

    def _models(self) -> Sequence[tuple[Path, Contents]]:
        self.model.step = self.state.step
        return [(INSIDE.model, contents(self.model)), *self.averages.files(self.state.step)]

    def _best(self) -> Sequence[tuple[Path, Contents]]:
        return [] if self.best is None else [*self.best.files(self.model)]

    @property
    def _keep(self) -> int:
        return self.recipe.training.keep
