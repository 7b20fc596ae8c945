"""The timetable of a run: when it logs, measures, draws and saves.

All of it follows from the step, so a resumed run does the same.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

from difftool.settings import Training, is_due, times_due

PREVIEWS, EVALUATIONS = 4, 10
"""The numbers of previews and of evaluations of a run by default."""


@dataclass(frozen=True)
class Timetable:
    """The things that are due after a step."""

    settings: Training
    items: int
    """The length of an epoch."""
    held_out: bool = False
    """True if the loss of held-out items is measured."""
    evaluated: bool = False
    """True if metrics are measured."""

    @property
    def batch_size(self) -> int:
        """The batch size; a search for one is over."""
        size = self.settings.batch_size
        assert isinstance(size, int)
        return size

    @cached_property
    def steps(self) -> int:
        """The step at which training ends."""
        return self.settings.total_steps(self.items)

    @cached_property
    def steps_per_epoch(self) -> int:
        return math.ceil(self.items / self.batch_size)

    @cached_property
    def log_every(self) -> int:
        return max(1, min(50, self.steps // 200))

    def logs(self, step: int) -> bool:
        """Return whether a row of metrics is due."""
        return step % self.log_every == 0 or step == self.steps or self.measures(step) or self.evaluates(step)

    def measures(self, step: int) -> bool:
        """Return whether the held-out loss is due: after each epoch, but no more often than rows are logged."""
        if not self.held_out:
            return False
        every = "1ep" if self.steps_per_epoch >= self.log_every else str(self.log_every)
        return step == self.steps or self._due(step, every)

    def evaluates(self, step: int) -> bool:
        """Return whether metrics are due."""
        if not self.evaluated:
            return False
        return step == self.steps or self._due(step, self.settings.evaluate_every or self._times(EVALUATIONS))

    def draws(self, step: int) -> bool:
        """Return whether a preview is due. That of the last step is drawn once the run is saved."""
        return step < self.steps and self._due(step, self.settings.preview_every or self._times(PREVIEWS))

    def saves(self, step: int) -> bool:
        """Return whether a state is due. The last one is saved in any case."""
        return step < self.steps and self._due(step, self.settings.checkpoint_every)

    @property
    def states(self) -> int:
        """The number of states that the whole run saves, the last one included."""
        every = self.settings.checkpoint_every
        return 1 + times_due(self.steps - 1, every, items=self.items, batch_size=self.batch_size)

    def _times(self, count: int) -> str:
        """Return the interval of something that is done about so often in a run."""
        return str(max(1, math.ceil(self.steps / count)))

    def _due(self, step: int, every: str) -> bool:
        return is_due(step, every, items=self.items, batch_size=self.batch_size)
