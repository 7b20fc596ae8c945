"""The model at the best value of a number so far: the held-out loss, or a metric."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from difftool.errors import BadFile, InvalidOption
from difftool.options import suggestion
from difftool.runs import checkpoint
from difftool.runs.best import HELD_OUT, best_row
from difftool.runs.folder import INSIDE, RunFolder
from difftool.sampling.model import Model, contents

if TYPE_CHECKING:
    from torch import nn

    from difftool.runs.checkpoint import Contents
    from difftool.settings import Training
    from difftool.training.evaluation import Evaluation

NOTHING = "none"
"""The value of --keep-best that keeps none."""


@dataclass
class Best:
    """The best model so far. Which one it is follows from the rows, so a resumed run finds the same.

    It is copied to the CPU when it is found, and written just before the next state: a state never has a row of a best
    model that is not on the disk.
    """

    name: str
    """The number of the rows by which it is judged."""
    better: Mapping[str, str]
    """The better direction, `lower` or `higher`, by name of the number, as far as it is known."""
    row: Mapping[str, Any] | None = None
    """The best row so far."""
    network: nn.Module | None = None
    """The best model, until it is written."""

    def restore(self, rows: Sequence[Mapping[str, Any]], folder: RunFolder) -> None:
        """Go on from rows. A file of another step, which a damaged or later state may leave, starts anew."""
        row = best_row(rows, self.name, self.better.get(self.name, "lower"))
        if row is not None and _step_in(folder) == row["step"]:
            self.row = row

    def see(self, row: Mapping[str, Any], model: Model) -> None:
        """Copy the model if its row is the best so far."""
        rows = [row] if self.row is None else [self.row, row]
        if best_row(rows, self.name, self.better.get(self.name, "lower")) is not row:
            return
        self.row = row
        if self.network is None:
            self.network = copy.deepcopy(model.network).cpu()
        else:
            self.network.load_state_dict(model.network.state_dict())

    def files(self, model: Model) -> Iterator[tuple[Path, Contents]]:
        """Yield the file of the best model in a run folder, unless it was taken. `model` tells all but its weights.

        The next best model is another copy, so nothing changes these tensors any more.
        """
        if self.network is not None and self.row is not None:
            about = {"best": {"name": self.name, "value": self.row[self.name]}}
            network, self.network = self.network, None
            best = replace(model, network=network, step=self.row["step"])
            yield INSIDE.best, contents(best, about=about)


def best_of(settings: Training, evaluation: Evaluation | None = None) -> Best | None:
    """Return what keeps the best model, or None. Raises `InvalidOption` for a number that no row will have.

    By default the first number of the metrics counts, or else the held-out loss. Metrics of the model itself have no
    numbers before they are measured.
    """
    better = {} if evaluation is None else evaluation.better
    known = {**better, **({HELD_OUT: "lower"} if settings.held_out else {})}
    if settings.keep_best is None:
        return Best(next(iter(known)), known) if known else None
    name = settings.keep_best.replace("-", "_")
    if name == NOTHING:
        return None
    if name not in known and evaluation is not None and not evaluation.complete:
        return Best(name, better)
    if name not in known:
        choices = [one.replace("_", "-") for one in known]
        there = f"the run measures {', '.join(choices)}" if choices else "add --held-out N or --evaluate METRIC"
        reason = f"nothing measures {settings.keep_best!r:.80}{suggestion(settings.keep_best, choices)}; {there}"
        raise InvalidOption("keep_best", reason, where="--keep-best")
    return Best(name, known)


def _step_in(folder: RunFolder) -> int | None:
    """Return the step of the best model on the disk, or None if there is none."""
    try:
        step = checkpoint.load(folder.best)[1].get("step")
    except BadFile:
        return None
    return step if isinstance(step, int) else None
