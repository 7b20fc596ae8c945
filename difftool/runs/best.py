"""The best row of a run by one of its numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

HELD_OUT = "held_out_loss"
"""The number by which a run without metrics is judged."""


def best_row(rows: Sequence[Mapping[str, Any]], name: str, better: str = "lower") -> Mapping[str, Any] | None:
    """Return the first row with the best value of a number, or None if no row has it."""
    measured = [row for row in rows if row.get(name) is not None]
    if not measured:
        return None
    return min(measured, key=lambda row: row[name] if better == "lower" else -row[name])
