"""The end of metrics.jsonl: what a list of many runs shows, without reading all of their rows.

The smoothed loss forgets exponentially, so the last rows give it to eleven digits.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from difftool.files import open_regular, parse_json
from difftool.runs.losses import smoothed
from difftool.runs.rows import LARGEST, LONGEST_ROW, is_row

ROWS = 256
"""The number of rows read: those before them weigh 0.9^256 = 2e-12 in the smoothed loss."""
BLOCK, LARGEST_TAIL = 2**16, 2**22
"""The sizes in bytes of what is read at once, and up to which the last rows are looked for."""
NUMBER = rb"(null|-?\d[\d.eE+-]*)[,}]"
FAST = {name: re.compile(rb'"' + name.encode() + rb'": ' + NUMBER) for name in ("loss", "eps_loss")}
"""The smoothed losses as difftool writes them, which are found much faster than whole rows are parsed."""
HELD_OUT = b'"held_out_loss": '


@dataclass(frozen=True)
class Tail:
    """What the last rows of a run say."""

    losses: dict[str, float | None] = field(
        default_factory=lambda: {"loss": None, "eps_loss": None, "held_out_loss": None}
    )
    """The losses as `difftool.runs.losses.losses` computes them from all rows."""
    last: dict[str, Any] | None = None
    """The last row, or None without any."""


def read_tail(path: Path, *, held_out: bool = False) -> Tail:
    """Return the losses of a run and its last row.

    With `held_out` the last held-out loss is looked for in the whole file, and otherwise in the last rows alone. A file
    that cannot be read gives nothing.
    """
    with contextlib.suppress(OSError), open_regular(path) as file:
        blocks = _backwards(file)
        text = b""
        for block in blocks:
            text = block + text
            if text.count(b"\n") > ROWS or len(text) > LARGEST_TAIL:
                break
        lines = text.splitlines()[-ROWS:]
        losses = {name: smoothed(_numbers(lines, name)) for name in FAST}
        last = next((row for line in reversed(lines) if (row := _row(line)) is not None), None)
        measured = _last_measured(text)
        for block in blocks if held_out and measured is None else ():
            text = block + text.partition(b"\n")[0][:LONGEST_ROW]  # a row may lie across two blocks
            if (measured := _last_measured(text)) is not None:
                break
        return Tail({**losses, "held_out_loss": measured}, last)
    return Tail()


def _backwards(file: BinaryIO) -> Iterator[bytes]:
    """Yield the blocks of a file, the last one first."""
    end = file.seek(0, os.SEEK_END)
    while end:
        start = max(0, end - BLOCK)
        file.seek(start)
        yield file.read(end - start)
        end = start


def _numbers(lines: list[bytes], name: str) -> list[float | None]:
    """Return the numbers of this name in the rows."""
    found = FAST[name].findall(b"\n".join(lines))
    if len(found) == len(lines) and all(line.startswith(b'{"step": ') for line in lines):
        with contextlib.suppress(ValueError):
            values = [None if text == b"null" else float(text) for text in found]
            if all(value is None or abs(value) < LARGEST for value in values):
                return values
    return [row.get(name) for line in lines if (row := _row(line)) is not None]


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
