"""Early stopping."""

from __future__ import annotations

import contextlib
import math
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from difftool import Callback, Stop, option

if TYPE_CHECKING:
    from difftool import Progress, RunContext

HELD_OUT, LOSS = "held_out_loss", "loss"


class EarlyStop(Callback, name="early-stop"):
    """Stop when a metric has not fallen for a while.

    A value counts as better if it lies below the best one by more than `min-delta`. After a stop the wait begins anew,
    so a run that is resumed trains for at least as long again.
    """

    last = True

    metric: str | None = option(
        default=None,
        help="metric to watch, as metrics.jsonl names it; smaller is better",
        otherwise="held_out_loss with --held-out, or else loss",
    )
    patience: int = option(default=10, ge=1, le=10**9, help="measurements to wait for a better one")
    min_delta: float = option(default=0.0, ge=0, help="difference by which a better value is lower")

    @contextlib.contextmanager
    def open(self, run: RunContext) -> Iterator[Callable[[Progress], Stop | None]]:
        held_out = bool(run.config["training"].get("held_out"))
        metric = self.metric or (HELD_OUT if held_out else LOSS)
        if metric == HELD_OUT and not held_out:
            raise ValueError(f"no items are held out, so {HELD_OUT} is never measured; add --held-out N")
        others = len(run.config.get("callbacks", {})) > 1  # whose numbers may come later
        if metric not in run.metrics and not others:
            raise ValueError(f"there is no metric {metric!r}; there are {', '.join(run.metrics)}")
        wait = Wait(self.patience, self.min_delta)
        for row in run.rows:
            wait.see(row.metrics.get(metric), row.step)
        row_has_it = True

        def see(progress: Progress) -> Stop | None:
            nonlocal row_has_it
            row_has_it = metric in progress.row
            if not wait.see(progress.row.get(metric), progress.step):
                return None
            count = f"{self.patience} measurement{'s' if self.patience > 1 else ''}"
            return Stop(f"{metric} has not fallen in {count} (best {wait.best:.4g} at step {wait.step})")

        yield see
        if not row_has_it:  # a number stays in the rows once it is there
            warnings.warn(f"callback early-stop: no row had a metric {metric!r}, so it stopped nothing", stacklevel=2)


@dataclass
class Wait:
    """The best value so far, and the measurements since then or since the last stop."""

    patience: int
    min_delta: float
    best: float = math.inf
    step: int = 0
    """The step of the best value."""
    count: int = 0

    def see(self, value: float | None, step: int) -> bool:
        """Take a value, if there is one, and return whether to stop."""
        if value is None:
            return False
        if value < self.best - self.min_delta:
            self.best, self.step, self.count = value, step, 0
            return False
        self.count += 1
        if self.count < self.patience:
            return False
        self.count = 0
        return True
