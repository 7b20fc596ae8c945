"""The files of the averages that a run's model file does not hold, and snapshots of its power-function averages."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from difftool.distributed import SINGLE, ProcessGroup
from difftool.runs.averages import file_of, files_in
from difftool.runs.folder import INSIDE, RunFolder, step_of
from difftool.sampling.model import Model, contents
from difftool.settings import is_due, is_never

if TYPE_CHECKING:
    from difftool.runs.checkpoint import Contents
    from difftool.training.ema import Averages

SNAPSHOTS = 64
"""The number of snapshots over a run by default: from lengths 0.05 and 0.10 they give 0.07 within 2.5e-4."""


def models_of(raw: Model, averages: Averages, group: ProcessGroup = SINGLE) -> list[Model]:
    """Return a model for each average. The model file holds the first; it is the raw one if no decay is set."""
    models = [replace(raw, network=group.whole(average.network), weights=average.name) for average in averages]
    return [raw, *models] if raw.recipe.training.ema == (0.0,) else models


@dataclass
class AverageFiles:
    """The averages beside the model of a run, of which those of power functions also leave snapshots.

    Their names and contents are functions of the step, so a run that is resumed writes the same files again.
    """

    models: Sequence[Model]
    items: int
    """The number of training items, which gives epochs their steps."""
    snapshot_step: int = -1
    """The step of the last snapshots."""

    def __post_init__(self) -> None:
        self.powers = [model for model in self.models if model.weights.startswith("power-")]
        """The power-function averages."""
        self.every = "0"
        """The steps, or epochs (2ep), from one snapshot to the next; 0 for none."""
        if self.powers:
            settings = self.powers[0].recipe.training
            self.every = settings.snapshot_every or str(max(1, math.ceil(settings.total_steps(self.items) / SNAPSHOTS)))

    def is_due(self, step: int) -> bool:
        """Return whether snapshots are due after this step, and not written."""
        if not self.powers or step in (0, self.snapshot_step):
            return False
        return is_due(step, self.every, items=self.items, batch_size=self._batch_size)

    def bytes_to_come(self, folder: RunFolder, steps: int) -> int:
        """Return the size of the files that a run still has to write, at most."""
        if not self.models:
            return 0
        count, left = len(self.models), steps - next(map(step_of, folder.saved_states()), 0)
        if not is_never(self.every):
            each = int(self.every.removesuffix("ep"))
            per_step = self._batch_size / (each * self.items) if self.every.endswith("ep") else 1.0 / each
            count += len(self.powers) * math.ceil(max(0, left) * min(1.0, per_step))
        return count * sum(p.numel() * p.element_size() for p in self.models[0].network.parameters())

    def write_snapshots(self, folder: RunFolder, step: int) -> None:
        """Write a snapshot of each power-function average."""
        for model in self.powers:
            model.step = step
            model.save(file_of(folder.averages, model.weights, step), codec=False)

    def files(self, step: int) -> Iterator[tuple[Path, Contents]]:
        """Yield the file of each average in a run folder, which takes the place of an earlier one, and its contents."""
        for model in self.models:
            model.step = step
            yield file_of(INSIDE.averages, model.weights), contents(model)

    @property
    def _batch_size(self) -> int:
        size = self.models[0].recipe.training.batch_size
        assert isinstance(size, int)
        return size


def remove_later(folder: RunFolder, step: int) -> None:
    """Remove the snapshots of later steps, which a run that goes on from this one writes anew."""
    for file in files_in(folder.averages):
        if file.step is not None and file.step > step:
            file.path.unlink(missing_ok=True)
