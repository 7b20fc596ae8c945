"""The components of training: what is minimised, how the weights move, and what watches a run."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, ClassVar

from difftool.components.component import Component
from difftool.options import dashed, plain

if TYPE_CHECKING:
    from torch import Tensor

    from difftool.specs import ObjectiveSpec, Progress, Row, RunContext, Stop


class Weighting(Component):
    """The weight of each noise level in the loss."""

    kind = "weighting"
    hook = "difftool_weightings"
    flag = "--weighting"
    commands = ("train",)
    default = "none"
    needed_to_sample = False

    @abstractmethod
    def weight(self, native: Tensor, spec: ObjectiveSpec) -> Tensor:
        """Return the weight (T,) of the squared error in x_0 space, float64.

        `native` (T,) is the weight that the plain loss of the prediction type has there: snr for eps, 1 for x_0. Most
        weightings start from `spec.schedule.snr`.
        """


class TimestepSampling(Component):
    """The distribution from which training draws its noise levels."""

    kind = "timestep-sampling"
    hook = "difftool_timestep_samplings"
    flag = "--timestep-sampling"
    commands = ("train",)
    default = "uniform"
    needed_to_sample = False

    @abstractmethod
    def density(self, spec: ObjectiveSpec) -> Tensor:
        """Return the weights (T,) of the levels, float64, not negative. They need not sum to 1."""


class Companion(Component):
    """A component that watches a run. The steps of the run do not depend on it."""

    several = True
    commands = ("train",)
    needed_to_sample = False
    path_use = "write"

    requires: ClassVar[Mapping[str, str]] = {}
    """The modules that it needs, looked for before a run begins, each with what to pip install for it."""
    files: ClassVar[tuple[str, ...]] = ()
    """Patterns of its files below `run.logs`, such as `metrics.csv`, which `train --overwrite` deletes with the run."""

    @abstractmethod
    def open(self, run: RunContext) -> AbstractContextManager[Callable[[Any], Any]]:
        """Return a context that stays open during training, and that gives a function to call at each row."""


class Logger(Companion):
    """A place to log the metrics of a training run, besides its own `metrics.jsonl`."""

    kind = "logger"
    hook = "difftool_loggers"
    flag = "--logger"

    @abstractmethod
    def open(self, run: RunContext) -> AbstractContextManager[Callable[[Row], None]]:
        """Return a context that stays open during training, and that gives the function to call with each row.

        Rows up to `run.step` were logged before. Rows beyond it must be discarded, since a resumed run logs them again.
        An exception that the function raises is reported, and the run continues without this logger.
        """

    def destination(self, run: RunContext) -> str:
        """Return where the rows go, for the first lines of `difftool train`: the options, or `run.logs`."""
        return ", ".join(f"{dashed(name)} {v}" for name, v in plain(self).items() if v != []) or str(run.logs)


class Callback(Companion):
    """A watcher of training, which measures what it likes and may stop the run."""

    kind = "callback"
    hook = "difftool_callbacks"
    flag = "--callback"

    last: ClassVar[bool] = False
    """True if it judges the numbers of other callbacks, so that it is called after them at each row."""

    @abstractmethod
    def open(
        self, run: RunContext
    ) -> AbstractContextManager[Callable[[Progress], Mapping[str, float | None] | Stop | None]]:
        """Return a context that stays open during training, and that gives the function to call at each logged row.

        The function returns numbers, which join the row under their names, or `Stop(reason)`, or None. It is called on
        the first process alone. What it remembers must follow from `run.rows` and the rows that it saw since, so that a
        resumed run goes on as if it had not been interrupted.

        An exception that the function raises is reported, and the run continues without this callback.
        """
