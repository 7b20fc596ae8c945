"""The split of data into training and held-out items."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import Any

from difftool.data.columns import COLUMNS, some_rows
from difftool.data.samples import Samples


def split(samples: Samples, held_out: int) -> tuple[Samples, Samples | None]:
    """Split samples into (training, held out). The items with the smallest SHA-256 of their names are held out.

    Raises `ValueError` if no item would be left.
    """
    if held_out == 0:
        return samples, None
    n = len(samples)
    if held_out >= n:
        raise ValueError(f"cannot hold out {held_out} of {n} items")
    ids = samples.item_ids or [str(i) for i in range(n)]
    ranked = sorted(range(n), key=lambda i: hashlib.sha256(ids[i].encode("utf-8", "surrogateescape")).digest())

    return subset(samples, sorted(ranked[held_out:])), subset(samples, sorted(ranked[:held_out]))


def subset(samples: Samples, indices: list[int]) -> Samples:
    """Return the samples at these indices."""
    columns: dict[str, Any] = {COLUMNS[name]: some_rows(c, indices) for name, c in samples.columns.items()}
    return replace(
        samples,
        items=some_rows(samples.items, indices),
        repeats=None if samples.repeats is None else samples.repeats[indices],
        item_ids=None if samples.item_ids is None else [samples.item_ids[i] for i in indices],
        **columns,
    )
