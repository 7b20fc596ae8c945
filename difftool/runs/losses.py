"""The losses of a run, as every command shows them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

NEW = 0.1
"""The weight of a new row in the smoothed loss."""


def smoothed(values: Iterable[float | None]) -> float | None:
    """Return the exponential average of the numbers in order, or None if there are none."""
    average = None
    for value in values:
        if value is not None:
            average = value if average is None else (1 - NEW) * average + NEW * value
    return average


def losses(rows: Sequence[Mapping[str, Any]]) -> dict[str, float | None]:
    """Return the losses after some rows of metrics: `loss` and `eps_loss` smoothed, and the last `held_out_loss`."""
    held_out = [row["held_out_loss"] for row in rows if row.get("held_out_loss") is not None]
    return {
        **{name: smoothed(row.get(name) for row in rows) for name in ("loss", "eps_loss")},
        "held_out_loss": held_out[-1] if held_out else None,
    }
