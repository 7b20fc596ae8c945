"""Rows of metrics.jsonl, as untrusted as every file of a run folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from difftool.settings import LARGEST_STEP

LONGEST_ROW = 2**16
"""The limit for the bytes of a row in metrics.jsonl."""
LARGEST = 1e300
"""The limit for numbers in a row."""
QUARTILES = ("loss_quartiles", "held_out_quartiles")
"""The names of the losses by quarters of t, from clean to noisy, each a list of four."""


def is_row(row: Any) -> bool:
    """Return whether a JSON value from metrics.jsonl is a row: step, loss, and numbers or None."""
    if not isinstance(row, dict) or type(row.get("step")) is not int or "loss" not in row:
        return False
    if not 0 <= row["step"] <= LARGEST_STEP:
        return False
    values: list[Any] = [value for name, value in row.items() if name not in QUARTILES]
    for four in (row[name] for name in QUARTILES if row.get(name) is not None):
        if not isinstance(four, list) or len(four) != 4:
            return False
        values += four
    return all(v is None or (type(v) in (int, float) and abs(v) < LARGEST) for v in values)


def quarters(row: Mapping[str, Any], name: str) -> Sequence[float | None]:
    """Return the losses of a row by quarters of t; None for those that were not measured."""
    return row.get(name) or (None,) * 4
