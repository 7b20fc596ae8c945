"""The end of metrics.jsonl: what a list of many runs shows, without reading all of their rows.

The smoothed loss forgets exponentially, so the last rows give it to six digits.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

from difftool.files import open_regular, parse_json
from difftool.runs.losses import smoothed
from difftool.runs.rows import LONGEST_ROW, is_row

ROWS = 128
"""The number of rows read: those before them weigh 0.9^128 = 1e-6 in the smoothed loss."""
BLOCK, LARGEST_TAIL = 3 * 2**15, 2**22
"""The sizes in bytes of what is read at once, and up to which the last rows are looked for."""
SMOOTHED = ("loss", "eps_loss")
AS_WRITTEN = re.compile(rb'"loss": ([^,]*), "eps_loss": ([^,}]*)')
"""The losses of a row as difftool writes them, which are found much faster than whole rows are parsed."""
LARGEST_AS_WRITTEN = 1e200
"""The smoothed loss from which rows are parsed, since one may hold a number that is refused."""
HELD_OUT = b'"held_out_loss": '


@dataclass(frozen=True)
class Tail:
    """The numbers in the last rows of a run."""

    losses: dict[str, float | None] = field(
        default_factory=lambda: {"loss": None, "eps_loss": None, "held_out_loss": None}
    )
    """The losses as `difftool.runs.losses.losses` computes them from all rows."""
    last: dict[str, Any] | None = None
    """The last row, or None without any."""


def read_tail(path: Path, *, held_out: bool = False) -> Tail:
    """Return the losses of a run and its last row.

    With `held_out` the last held-out loss is looked for, in the whole file. A file that cannot be read gives nothing.
    """
    with contextlib.suppress(OSError), open_regular(path) as file:
        blocks = _backwards(file)
        text = b""
        for block in blocks:
            text = block + text
            start, lines = _last_lines(text)
            if lines == ROWS or len(text) > LARGEST_TAIL:
                break
        losses = _losses_as_written(text, start, lines) or _losses(text)
        last = next(filter(None, map(_row, _lines_backwards(text))), None)
        measured = _last_measured(text) if held_out else None
        for block in blocks if held_out and measured is None else ():
            text = block + text.partition(b"\n")[0][:LONGEST_ROW]  # a row may lie across two blocks
            if (measured := _last_measured(text)) is not None:
                break
        return Tail({**losses, "held_out_loss": measured}, last)
    return Tail()


def _backwards(file: BinaryIO) -> Iterator[bytes]:
    """Yield the blocks of a file, the last one first, and in the end a line break, so that one is before each line."""
    end = file.seek(0, os.SEEK_END)
    while end:
        start = max(0, end - BLOCK)
        file.seek(start)
        yield file.read(end - start)
        end = start
    yield b"\n"


def _lines_backwards(text: bytes) -> Iterator[bytes]:
    """Yield the lines of a text, the last one first."""
    end = len(text)
    while end >= 0:
        start = text.rfind(b"\n", 0, end)
        yield text[start + 1 : end]
        end = start


def _last_lines(text: bytes) -> tuple[int, int]:
    """Return where the last lines of a text begin, at the line break before them, and how many they are."""
    start, lines = text.rfind(b"\n"), 0
    while lines < ROWS and (before := text.rfind(b"\n", 0, start)) >= 0:
        start, lines = before, lines + 1
    return start, lines


def _losses_as_written(text: bytes, start: int, lines: int) -> dict[str, float | None]:
    """Return the smoothed losses of so many lines at the end of a text; nothing unless all are as written."""
    found = AS_WRITTEN.findall(text, start)
    if len(found) != lines or not found or not text.endswith(b"\n"):
        return {}
    columns = [*zip(*found, strict=True)]
    try:  # eps_loss is the loss itself for many runs
        values = {column: smoothed([None if v == b"null" else float(v) for v in column]) for column in {*columns}}
    except ValueError:
        return {}
    if any(value is not None and not abs(value) < LARGEST_AS_WRITTEN for value in values.values()):
        return {}
    return {name: values[column] for name, column in zip(SMOOTHED, columns, strict=True)}


def _losses(text: bytes) -> dict[str, float | None]:
    """Return the smoothed losses of the rows among the last lines of a text."""
    rows = [row for line in islice(_lines_backwards(text), ROWS + 1) if (row := _row(line)) is not None]
    return {name: smoothed(row.get(name) for row in reversed(rows)) for name in SMOOTHED}


def _last_measured(text: bytes) -> float | None:
    """Return the held-out loss of the last row that has one."""
    end = len(text)
    while (at := text.rfind(HELD_OUT, 0, end)) >= 0:
        start, stop = text.rfind(b"\n", 0, at) + 1, text.find(b"\n", at)
        row = _row(text[start : stop if stop >= 0 else len(text)])
        if row is not None and row.get("held_out_loss") is not None:
            value: float = row["held_out_loss"]
            return value
        end = at
    return None


def _row(line: bytes) -> dict[str, Any] | None:
    """Return a row, or None for a line that is none, such as half of one."""
    with contextlib.suppress(ValueError):
        row = parse_json(line) if len(line) < LONGEST_ROW else None
        return row if is_row(row) else None
    return None
