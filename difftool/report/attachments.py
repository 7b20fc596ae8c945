"""Further results on a page: pictures and tables that other commands have written, such as `difftool compare`."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from difftool.errors import BadFile, printable, shortened
from difftool.files import read_bounded
from difftool.report.content import Table
from difftool.report.pictures import Encoded, read_picture

SUFFIXES = (".png", ".csv")
LARGEST_TABLE = 4 * 2**20
"""The limit for the bytes of a table."""
MOST_ROWS, MOST_COLUMNS, LONGEST = 200, 30, 200
"""The largest numbers of rows and columns that are shown of a table, and of characters of a cell."""


@dataclass(frozen=True)
class Attachment:
    """A file that the user adds to a page: a picture, or a table."""

    name: str
    picture: Encoded | None = None
    table: Table | None = None


def read_attachment(path: Path) -> Attachment:
    """Return a PNG file or a CSV file. Raises `BadFile`."""
    name = shortened(printable(path.name), LONGEST)
    if path.suffix.lower() == ".png":
        return Attachment(name, picture=read_picture(path, path.parent, label=name, alt=f"The picture {name}"))
    return Attachment(name, table=_table(path, name))


def _table(path: Path, name: str) -> Table:
    try:
        text = read_bounded(path, LARGEST_TABLE).decode("utf-8-sig")
        rows = [row for row in csv.reader(io.StringIO(text), strict=True) if row]
    except (OSError, ValueError, csv.Error) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no table of UTF-8 text"
        raise BadFile(f"{printable(str(path))} cannot be read: {reason}") from None
    if len(rows) < 2:
        raise BadFile(f"{printable(str(path))} holds no table: a line of names and at least one row are needed")
    width = min(len(rows[0]), MOST_COLUMNS)
    headings, *cells = ([_cell(cell) for cell in row[:width]] for row in rows[: MOST_ROWS + 1])
    few = f", the first {MOST_ROWS} of {len(rows) - 1:,} rows" if len(rows) > MOST_ROWS + 1 else ""
    narrow = f", the first {width} of {len(rows[0]):,} columns" if width < len(rows[0]) else ""
    filled: Sequence[Sequence[str]] = [row + [""] * (width - len(row)) for row in cells]
    return Table(caption=f"{name}{few}{narrow}", headings=headings, rows=filled)


def _cell(text: str) -> str:
    """Return a cell; numbers are shortened to what people read."""
    try:
        return f"{float(text):.6g}" if "." in text or "e" in text.lower() else _text(text)
    except ValueError:
        return _text(text)


def _text(text: str) -> str:
    return shortened(printable(text), LONGEST)
