"""Loggers that write one row of a text file at a time."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from difftool import Logger, option

if TYPE_CHECKING:
    from difftool import Row, RunContext


class Nothing(Logger, name="none"):
    """No logging. It replaces the loggers of a run that is resumed."""

    @contextlib.contextmanager
    def open(self, run: RunContext) -> Iterator[Callable[[Row], None]]:
        yield lambda _: None

    def destination(self, run: RunContext) -> str:
        return ""


class CSV(Logger, name="csv"):
    """The file logs/metrics.csv in the run folder, with one row per logged step and one column per number."""

    files = ("metrics.csv",)

    @contextlib.contextmanager
    def open(self, run: RunContext) -> Iterator[Callable[[Row], None]]:
        run.logs.mkdir(exist_ok=True)
        path = run.logs / "metrics.csv"
        rows = [row for row in read_rows(path) if int(row["step"]) <= run.step]
        header = list(rows[0]) if rows else []
        replace(path, table(header, rows))
        with open(path, "r+", encoding="utf-8", newline="") as file:  # it stays open, as the run folder may be moved
            file.seek(0, os.SEEK_END)

            def log(row: Row) -> None:
                if not row.metrics:
                    return
                cells = {"step": row.step, **row.metrics}
                if new := [name for name in cells if name not in header]:  # in the first row, or from a callback
                    file.seek(0)
                    rows = list(csv.DictReader(file))
                    header.extend(new)
                    os.pwrite(file.fileno(), table(header, rows).encode(), 0)  # at once, and longer than before
                    file.seek(0, os.SEEK_END)
                csv.DictWriter(file, header, lineterminator="\n").writerow(cells)
                file.flush()

            yield log


class JSONL(Logger, name="jsonl"):
    """A file of one JSON object per row, with the run's name. Several runs may append to the same file.

    Without a path it is logs/metrics.jsonl in the run folder. A path in a config file is relative to the run folder.
    One on the command line may be anywhere.
    """

    # A resumed run appends some rows a second time, since a shared file cannot be rewritten. Of two rows of a step, the
    # later one counts.

    path: Path = option(
        default=Path("logs/metrics.jsonl"),
        help="the file; rows are appended if it exists; the default lies in the run folder",
    )

    @contextlib.contextmanager
    def open(self, run: RunContext) -> Iterator[Callable[[Row], None]]:
        run_columns = {"run": str(run.folder), "started": run.started}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        # each line is appended by one write, so lines of several runs do not mix
        descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        try:

            def log(row: Row) -> None:
                if row.metrics:
                    os.write(descriptor, (json.dumps({**run_columns, "step": row.step, **row.metrics}) + "\n").encode())

            yield log
        finally:
            os.close(descriptor)


def read_rows(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the rows of a table, if it exists. Incomplete lines, which a killed run may leave, are skipped."""
    with contextlib.suppress(FileNotFoundError), open(path, encoding="utf-8", newline="") as file:
        for row in csv.DictReader(line for line in file if line.endswith("\n")):
            if None not in row and None not in row.values() and row.get("step", "").isdecimal():
                yield row


def table(header: list[str], rows: list[dict[str, Any]]) -> str:
    """Return header and rows as text, or an empty text without a header."""
    text = io.StringIO()
    writer = csv.DictWriter(text, header, lineterminator="\n")
    if header:
        writer.writeheader()
        writer.writerows(rows)
    return text.getvalue()


def replace(path: Path, text: str) -> None:
    """Replace the content of a file in one step."""
    new = path.with_name(f".{path.name}.new")
    new.write_text(text, encoding="utf-8", newline="")
    os.replace(new, path)
