"""What is logged of a run: loss, loss by quartile of t, and the statistics that tell something."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from difftool.training import Record


class Meter:
    """Losses since the last logged row, summed where they are: nothing waits for the device until a row is due."""

    def __init__(self) -> None:
        self._losses: list[Tensor] = []
        self._items: list[Tensor] = []
        self._t: list[Tensor] = []
        self._skipped, self._since, self._waited = 0, 0.0, 0.0

    def start(self, elapsed: float, skipped: int = 0) -> None:
        """Training goes on `elapsed` seconds into the run, `skipped` steps of which changed nothing."""
        self._since, self._skipped = elapsed, skipped

    def add(self, record: Record) -> None:
        self._losses.append(record.loss)
        self._items.append(record.item_losses)
        self._t.append(record.t)

    def row(
        self, record: Record, elapsed: float, batch_size: int, levels: int, skipped: int = 0, waited: float = 0.0
    ) -> dict[str, Any]:
        """The metrics of the steps since the last row, as plain finite numbers (None where there is none).

        `skipped` steps and `waited` seconds for data are counted from the start.
        """
        weighted = float(torch.stack(self._losses).mean())
        items, t = torch.cat(self._items), torch.cat(self._t)
        quartile = (t * 4).div(levels, rounding_mode="floor")
        sums = torch.zeros(4, device=t.device).index_add_(0, quartile, items)
        counts = torch.bincount(quartile, minlength=4)
        steps, seconds = len(self._losses), elapsed - self._since
        row = {
            "step": record.step,
            "samples": record.step * batch_size,
            "elapsed": round(elapsed, 3),
            "loss": _finite(float(items.mean())),
            "weighted_loss": _finite(weighted),
            "loss_quartiles": [
                _finite(s / c) if c else None for s, c in zip(sums.tolist(), counts.tolist(), strict=True)
            ],
            "lr": record.lr,
            "grad_norm": _finite(float(record.grad_norm)),
            "prediction_mean": _finite(float(record.output.float().mean())),
            "prediction_var": _finite(float(record.output.float().var(correction=0))),
            "input_mean": _finite(float(record.x_t.mean())),
            "input_var": _finite(float(record.x_t.var(correction=0))),
            "skipped_steps": skipped - self._skipped,
            "waiting": round((waited - self._waited) / seconds, 3) if seconds > 0 else None,
            "steps_per_second": round(steps / seconds, 3) if seconds > 0 else None,
        }
        self._losses.clear()
        self._items.clear()
        self._t.clear()
        self._skipped, self._since, self._waited = skipped, elapsed, waited
        return row


def scalars(row: Mapping[str, Any]) -> dict[str, float | None]:
    """The numbers of a row one by one, as loggers take them: the same names in each row."""
    quartiles = {f"loss_quartile_{i}": value for i, value in enumerate(row["loss_quartiles"], start=1)}
    plain = {name: value for name, value in row.items() if name not in ("step", "loss_quartiles")}
    return {**plain, **quartiles, "held_out_loss": row.get("held_out_loss")}


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
