"""The callbacks of a run: their numbers join its rows, and any of them can stop it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from difftool.errors import one_line
from difftool.runs.rows import LARGEST
from difftool.specs import Progress, Row, Stop
from difftool.training.companions import Companions, Function

LONGEST_NAME, MOST_NUMBERS = 100, 100
"""The longest name of a number, and the largest number of numbers of a callback."""
RESERVED = ("step", "loss_quartiles", "run", "started")
"""Names that a row has beside its numbers, in a file of difftool or of a logger."""

TAKEN = "it returned {!r}, which is the name of another number of the row"


class Callbacks(Companions):
    """The open callbacks of a run."""

    def __init__(self, functions: Sequence[tuple[str, Function]] = (), rows: Sequence[Row] = ()) -> None:
        super().__init__(functions)
        self._names = dict.fromkeys(name for row in rows for name in row.metrics)
        self._owners: dict[str, str] = {}

    def __bool__(self) -> bool:
        return bool(self._functions)

    def __call__(self, progress: Progress) -> tuple[dict[str, float | None], str]:
        """Return the numbers that the callbacks add to a row, and the reason to stop, or an empty text.

        A number that a callback returned before and does not return now is None, so that all rows have its name.
        """
        numbers: dict[str, float | None] = {}
        reasons: list[str] = []

        def use(name: str, see: Function) -> None:
            result = see(replace(progress, row={**progress.row, **numbers}))
            if isinstance(result, Stop):
                reasons.append(f"{name} stopped the run: {one_line(Exception(result.reason))}")
            elif result is not None:
                new = checked(result, {**progress.row, **numbers})
                if taken := next((key for key in new if self._owners.setdefault(key, name) != name), None):
                    raise ValueError(TAKEN.format(taken))
                numbers.update(new)

        self.call(progress.step, use)
        self._names.update(dict.fromkeys(numbers))
        missing = {name: None for name in self._names if name not in progress.row}
        return {**missing, **numbers}, reasons[0] if reasons else ""


def checked(result: Any, row: Mapping[str, Any]) -> dict[str, float | None]:
    """Return the numbers that a callback adds to a row as a file holds them. Raises `ValueError`."""
    if not isinstance(result, Mapping):
        raise ValueError(f"it returned a {type(result).__name__}, not numbers by name, a Stop or None")
    if len(result) > MOST_NUMBERS:
        raise ValueError(f"it returned {len(result)} numbers; a row has room for {MOST_NUMBERS}")
    for name in result:
        if not isinstance(name, str) or not name.isprintable() or not 0 < len(name) <= LONGEST_NAME:
            raise ValueError(f"it named a number {name!r:.80}; a name is a printable text")
        if name in row or name in RESERVED:
            raise ValueError(TAKEN.format(name))
    return {name: number(name, value) for name, value in result.items()}


def number(name: str, value: Any) -> float | None:
    """Return a number of Python, NumPy or torch as a plain one; None if it is not finite. Raises `ValueError`."""
    try:
        plain = value if value is None or isinstance(value, (int, float)) else value.item()
    except (AttributeError, ValueError, RuntimeError):
        plain = value
    if plain is not None and (isinstance(plain, bool) or not isinstance(plain, (int, float))):
        raise ValueError(f"its {name!r} is a {type(value).__name__}, not a number")
    return plain if plain is not None and abs(plain) < LARGEST else None
