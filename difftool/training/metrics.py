"""What is logged of a run: loss, loss by quartile of t, and the statistics that tell something."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from difftool.distributed import SINGLE, ProcessGroup
from difftool.training.loop import Record
from difftool.training.loss import Objective

KEPT_ELEMENTS = 2**20
"""Numbers that answers may have together before the losses of their items are taken: few large calls, little memory."""


@dataclass(frozen=True)
class Statistics:
    """Mean and variance of some numbers."""

    count: int
    mean: float
    variance: float

    @classmethod
    def of(cls, x: Tensor) -> Statistics:
        return cls(x.numel(), float(x.mean()), float(x.var(correction=0)))

    @classmethod
    def pooled(cls, parts: Sequence[Statistics]) -> Statistics:
        """Those of all the numbers together."""
        total = sum(part.count for part in parts)
        mean = sum(part.count * part.mean for part in parts) / total
        variance = sum(part.count * (part.variance + (part.mean - mean) ** 2) for part in parts) / total
        return cls(total, mean, variance)


@dataclass(frozen=True)
class Gathered:
    """What a row is made of: the steps since the last one, and the last of them more closely."""

    losses: Tensor
    """Weighted, of each step."""
    items: Tensor
    """Unweighted, of each item of each step, in any order."""
    t: Tensor
    """The level of each item."""
    prediction: Statistics
    input: Statistics

    def of_all(self, group: ProcessGroup) -> Gathered:
        """That of the whole batches, where this process sees a part of them."""
        if group.size == 1:
            return self
        own = Gathered(self.losses.cpu(), self.items.cpu(), self.t.cpu(), self.prediction, self.input)
        parts = group.all_gather(own)
        return Gathered(
            torch.stack([part.losses for part in parts]).mean(0),
            torch.cat([part.items for part in parts]),
            torch.cat([part.t for part in parts]),
            Statistics.pooled([part.prediction for part in parts]),
            Statistics.pooled([part.input for part in parts]),
        )


class Meter:
    """Losses since the last logged row, summed where they are: nothing waits for the device until a row is due."""

    def __init__(self, objective: Objective, batch_size: int) -> None:
        self.objective, self.batch_size = objective, batch_size
        self._losses: list[Tensor] = []
        self._answers: list[tuple[Tensor, Tensor]] = []
        self._kept = 0
        self._items: list[Tensor] = []
        self._t: list[Tensor] = []
        self._skipped, self._since, self._waited = 0, 0.0, 0.0

    def start(self, elapsed: float, skipped: int = 0) -> None:
        """Training goes on `elapsed` seconds into the run, `skipped` steps of which changed nothing."""
        self._since, self._skipped = elapsed, skipped

    def add(self, record: Record) -> None:
        self._losses.append(record.loss)
        self._t.append(record.inputs.t)
        self._answers.append((record.answer, record.inputs.target))
        self._kept += record.answer.numel()
        if self._kept > KEPT_ELEMENTS:
            self._take_losses()

    def _take_losses(self) -> None:
        """Turn the answers kept into losses of items."""
        if self._answers:
            answers, targets = (torch.cat(column) for column in zip(*self._answers, strict=True))
            self._items.append(self.objective.item_losses(answers.float(), targets))
        self._answers, self._kept = [], 0

    def row(
        self, record: Record, elapsed: float, *, skipped: int = 0, waited: float = 0.0, group: ProcessGroup = SINGLE
    ) -> dict[str, Any]:
        """The metrics of the steps since the last row, as plain finite numbers (None where there is none).

        `skipped` steps and `waited` seconds for data are counted from the start.
        """
        self._take_losses()
        seen = Gathered(
            losses=torch.stack(self._losses),
            items=torch.cat(self._items),
            t=torch.cat(self._t),
            prediction=Statistics.of(record.answer.float()),
            input=Statistics.of(record.inputs.x_t),
        ).of_all(group)
        items, t = seen.items, seen.t
        quartile = (t * 4).div(len(self.objective), rounding_mode="floor")
        sums = torch.zeros(4, device=t.device).index_add_(0, quartile, items)
        counts = torch.bincount(quartile, minlength=4)
        steps, seconds = len(self._losses), elapsed - self._since
        row = {
            "step": record.step,
            "samples": record.step * self.batch_size,
            "elapsed": round(elapsed, 3),
            "loss": _finite(float(items.mean())),
            "weighted_loss": _finite(float(seen.losses.mean())),
            "loss_quartiles": [
                _finite(s / c) if c else None for s, c in zip(sums.tolist(), counts.tolist(), strict=True)
            ],
            "lr": record.lr,
            "grad_norm": _finite(float(record.grad_norm)),
            "prediction_mean": _finite(seen.prediction.mean),
            "prediction_var": _finite(seen.prediction.variance),
            "input_mean": _finite(seen.input.mean),
            "input_var": _finite(seen.input.variance),
            "skipped_steps": skipped - self._skipped,
            "waiting": round((waited - self._waited) / seconds, 3) if seconds > 0 else None,
            "steps_per_second": round(steps / seconds, 3) if seconds > 0 else None,
        }
        self._losses, self._items, self._t = [], [], []
        self._skipped, self._since, self._waited = skipped, elapsed, waited
        return row


def scalars(row: Mapping[str, Any]) -> dict[str, float | None]:
    """The numbers of a row one by one, as loggers take them: the same names in each row."""
    quartiles = {f"loss_quartile_{i}": value for i, value in enumerate(row["loss_quartiles"], start=1)}
    plain = {name: value for name, value in row.items() if name not in ("step", "loss_quartiles")}
    return {**plain, **quartiles, "held_out_loss": row.get("held_out_loss")}


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
