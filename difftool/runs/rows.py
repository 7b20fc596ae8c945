"""Rows of metrics.jsonl, as untrusted as every file of a run folder."""

from __future__ import annotations

from typing import Any

from difftool.settings import LARGEST_STEP

LONGEST_ROW = 2**16
"""The limit for the bytes of a row in metrics.jsonl."""
LARGEST = 1e300
"""The limit for numbers in a row."""


def is_row(row: Any) -> bool:
    """Return whether a JSON value from metrics.jsonl is a row: step, loss, and numbers or None."""
    if not isinstance(row, dict) or type(row.get("step")) is not int or "loss" not in row:
        return False
    if not 0 <= row["step"] <= LARGEST_STEP:
        return False
    quartiles = row.get("loss_quartiles", [None] * 4)
    if not isinstance(quartiles, list) or len(quartiles) != 4:
        return False
    numbers = (value for key, value in row.items() if key != "loss_quartiles")
    return all(v is None or (type(v) in (int, float) and abs(v) < LARGEST) for v in (*numbers, *quartiles))
