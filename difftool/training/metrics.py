"""The metrics of a run: loss, loss by quartile of t, and statistics of predictions and inputs."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from difftool.distributed import SINGLE, ProcessGroup
from difftool.runs.rows import QUARTILES, quarters
from difftool.training.loss import Objective
from difftool.training.minimise import recorded_losses
from difftool.training.step import StepResult
from difftool.training.window import WINDOW

NAMES = (
    *("samples", "elapsed", "loss", "eps_loss", "weighted_loss", "lr", "grad_norm", "prediction_mean"),
    *("prediction_var", "input_mean", "input_var", "skipped_steps", "waiting", "steps_per_second"),
    *("loss_quartile_1", "loss_quartile_2", "loss_quartile_3", "loss_quartile_4"),
    *("held_out_quartile_1", "held_out_quartile_2", "held_out_quartile_3", "held_out_quartile_4", "held_out_loss"),
)
"""The names of the numbers of every row, as `scalars` returns them."""
KEPT_ELEMENTS = 2**17
"""The number of predicted values to keep before the losses of their items are computed in one call: 512 KiB, which stay
in the cache."""


class Stopwatch:
    """Seconds of training over all resumes, without pauses."""

    def __init__(self) -> None:
        self.total = 0.0
        """Seconds up to the last stop."""
        self._start: float | None = None

    @property
    def elapsed(self) -> float:
        """Seconds up to now."""
        return self.total if self._start is None else self.total + time.perf_counter() - self._start

    def start(self) -> None:
        self._start = time.perf_counter()

    def stop(self) -> None:
        """Stop, unless it has stopped already."""
        self.total, self._start = self.elapsed, None


@dataclass(frozen=True)
class Statistics:
    """The mean and variance of some numbers."""

    count: int
    mean: float
    variance: float

    @classmethod
    def of(cls, x: Tensor) -> Statistics:
        return cls(x.numel(), float(x.mean()), float(x.var(correction=0)))

    @classmethod
    def pooled(cls, parts: Sequence[Statistics]) -> Statistics:
        """Return the statistics of all the numbers together."""
        total = sum(part.count for part in parts)
        mean = sum(part.count * part.mean for part in parts) / total
        variance = sum(part.count * (part.variance + (part.mean - mean) ** 2) for part in parts) / total
        return cls(total, mean, variance)


@dataclass(frozen=True)
class Gathered:
    """The data of a row: the losses since the last row, and statistics of the last step."""

    losses: Tensor
    """The weighted loss of each step."""
    items: Tensor
    """The unweighted loss of each item of each step, in any order."""
    t: Tensor
    """The level of each item, in the same order."""
    eps: Tensor
    """The squared error of eps of each item, if its step made a prediction."""
    prediction: Statistics | None
    """None if the last step made no prediction."""
    input: Statistics

    def all_gather(self, group: ProcessGroup) -> Gathered:
        """Return the data of whole batches, of which each process sees a share."""
        if group.size == 1:
            return self
        own = Gathered(self.losses.cpu(), self.items.cpu(), self.t.cpu(), self.eps.cpu(), self.prediction, self.input)
        parts = group.all_gather(own)
        predictions = [part.prediction for part in parts if part.prediction is not None]
        return Gathered(
            torch.stack([part.losses for part in parts]).mean(0),
            torch.cat([part.items for part in parts]),
            torch.cat([part.t for part in parts]),
            torch.cat([part.eps for part in parts]),
            Statistics.pooled(predictions) if predictions else None,
            Statistics.pooled([part.input for part in parts]),
        )


class Meter:
    """Losses since the last logged row, on the device: nothing waits for it until a row is due."""

    def __init__(self, objective: Objective, batch_size: int) -> None:
        self.objective, self.batch_size = objective, batch_size
        self._losses: list[Tensor] = []
        self._predictions: list[tuple[Tensor, Tensor, Tensor]] = []
        self._kept = 0
        self._items: list[Tensor] = []
        self._eps: list[Tensor] = []
        self._t: list[Tensor] = []
        self._skipped, self._since, self._waited = 0, 0.0, 0.0

    def start(self, elapsed: float, skipped: int = 0, window: Mapping[str, Tensor] | None = None) -> None:
        """Begin at `elapsed` seconds of training, with `skipped` steps of fp16 overflow, or go on with a window."""
        self._since, self._skipped = elapsed, skipped
        if window:
            losses, items, t, eps = (window[name].to(self.objective.device) for name in WINDOW)
            self._losses, self._items, self._t, self._eps = [*losses], [items], [t], [eps] if len(eps) else []
            self._since, self._skipped = float(window["since"]), int(window["skipped"])

    def window(self) -> dict[str, Tensor]:
        """Return the numbers of the steps since the last row, with which `start` goes on; none right after a row."""
        if not self._losses:
            return {}
        self._measure()
        columns = (torch.stack(self._losses), torch.cat(self._items), torch.cat(self._t))
        eps = torch.cat(self._eps) if self._eps else columns[0].new_empty(0)
        since = {"since": torch.tensor(self._since, dtype=torch.float64), "skipped": torch.tensor(self._skipped)}
        return {**dict(zip(WINDOW, (*columns, eps), strict=True)), **since}

    def add(self, result: StepResult) -> None:
        self._losses.append(result.loss)
        self._t.append(result.inputs.t)
        if result.losses is not None:
            self._items.append(result.losses)
        if result.prediction is not None:
            self._predictions.append((result.prediction, result.inputs.target, result.inputs.t))
            self._kept += result.prediction.numel()
            if self._kept > KEPT_ELEMENTS:
                self._measure()

    def _measure(self) -> None:
        """Compute the errors of the predictions that were kept, and the losses of their items unless these came too."""
        if self._predictions:
            predictions, targets, t = (torch.cat(column) for column in zip(*self._predictions, strict=True))
            predictions = predictions.float()
            self._eps.append(self.objective.eps_errors(predictions, targets, t))
            if self.objective.in_one_call:
                self._items.append(recorded_losses(self.objective, predictions, targets, t))
        self._predictions, self._kept = [], 0

    def row(
        self, result: StepResult, elapsed: float, *, skipped: int = 0, waited: float = 0.0, group: ProcessGroup = SINGLE
    ) -> dict[str, Any]:
        """Return the metrics of the steps since the last row, as finite numbers or None.

        `skipped` and `waited` are the skipped steps, and the seconds spent waiting for data, since the run began.
        """
        self._measure()
        seen = Gathered(
            losses=torch.stack(self._losses),
            items=torch.cat(self._items),
            t=torch.cat(self._t),
            eps=torch.cat(self._eps) if self._eps else result.loss.new_empty(0),
            prediction=None if result.prediction is None else Statistics.of(result.prediction.float()),
            input=Statistics.of(result.inputs.x_t),
        ).all_gather(group)
        items, t = seen.items, seen.t
        steps, seconds = len(self._losses), elapsed - self._since
        row = {
            "step": result.step,
            "samples": result.step * self.batch_size,
            "elapsed": round(elapsed, 3),
            "loss": finite(float(items.mean())),
            "eps_loss": finite(float(seen.eps.mean())),
            "weighted_loss": finite(float(seen.losses.mean())),
            "loss_quartiles": means(*by_quartile(items, t, len(self.objective))),
            "lr": result.lr,
            "grad_norm": finite(float(result.grad_norm)),
            "prediction_mean": None if seen.prediction is None else finite(seen.prediction.mean),
            "prediction_var": None if seen.prediction is None else finite(seen.prediction.variance),
            "input_mean": finite(seen.input.mean),
            "input_var": finite(seen.input.variance),
            "skipped_steps": skipped - self._skipped,
            "waiting": round((waited - self._waited) / seconds, 3) if seconds > 0 else None,
            "steps_per_second": round(steps / seconds, 3) if seconds > 0 else None,
        }
        self._losses, self._items, self._eps, self._t = [], [], [], []
        self._skipped, self._since, self._waited = skipped, elapsed, waited
        return row


def scalars(row: Mapping[str, Any]) -> dict[str, float | None]:
    """Return the numbers of a row by name, for loggers: every row has the same names."""
    quartiles = {
        f"{name.removesuffix('s')}_{i}": value
        for name in QUARTILES
        for i, value in enumerate(quarters(row, name), start=1)
    }
    plain = {name: value for name, value in row.items() if name not in ("step", *QUARTILES)}
    return {**plain, **quartiles, "held_out_loss": row.get("held_out_loss")}


def by_quartile(losses: Tensor, t: Tensor, levels: int) -> tuple[list[float], list[float]]:
    """Return the sum and the number of the losses (B,) in each quarter of the levels, from clean to noisy."""
    quartile = (t * 4).div(levels, rounding_mode="floor")
    sums = torch.zeros(4, device=t.device).index_add_(0, quartile, losses)
    return sums.tolist(), torch.bincount(quartile, minlength=4).tolist()


def means(sums: Sequence[float], counts: Sequence[float]) -> list[float | None]:
    """Return the mean of each quarter as a finite number, or None."""
    return [finite(total / count) if count else None for total, count in zip(sums, counts, strict=True)]


def finite(value: float) -> float | None:
    """Return a number, or None for one that is infinite or NaN."""
    return value if math.isfinite(value) else None
