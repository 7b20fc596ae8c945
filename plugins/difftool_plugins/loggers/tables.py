"""Loggers that write a file as rows, each whole and at once."""

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
    """Nothing: a resumed run that had loggers goes on without."""

    @contextlib.contextmanager
    def open(self, run: RunContext) -> Iterator[Callable[[Row], None]]:
        yield lambda _: None


class CSV(Logger, name="csv"):
    """logs/metrics.csv in the run folder: a row a logged step, a column a number."""

    @contextlib.contextmanager
    def open(self, run: RunContext) -> Iterator[Callable[[Row], None]]:
        run.logs.mkdir(exist_ok=True)
        path = run.logs / "metrics.csv"
        before = [row for row in read_rows(path) if int(row["step"]) <= run.step]
        header = list(before[0]) if before else []
        replace(path, table(header, before))
        with open(path, "a", encoding="utf-8", newline="") as file:

            def log(row: Row) -> None:
                if not row.metrics:
                    return
                cells = {"step": row.step, **row.metrics}
                if not header:
                    header.extend(cells)
                    file.write(table(header, []))
                csv.DictWriter(file, header, extrasaction="ignore", lineterminator="\n").writerow(cells)
                file.flush()

            yield log


class JSONL(Logger, name="jsonl"):
    """A JSON object a row, with the run's name, appended to a file that many runs may share."""

    # A run that was killed logs its last rows again, and the file is not only its own: of two rows of a step the later
    # one counts.

    path: Path = option(help="the file; made where there is none, never replaced")

    @contextlib.contextmanager
    def open(self, run: RunContext) -> Iterator[Callable[[Row], None]]:
        about = {"run": str(run.folder), "started": run.started}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        # one write of a line, to its end: so runs that share the file do not mix theirs
        descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        try:

            def log(row: Row) -> None:
                if row.metrics:
                    os.write(descriptor, (json.dumps({**about, "step": row.step, **row.metrics}) + "\n").encode())

            yield log
        finally:
            os.close(descriptor)


def read_rows(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a table that is there; half a line, as a killed run leaves it, is passed over."""
    with contextlib.suppress(FileNotFoundError), open(path, encoding="utf-8", newline="") as file:
        for row in csv.DictReader(line for line in file if line.endswith("\n")):
            if None not in row and None not in row.values() and row.get("step", "").isdecimal():
                yield row


def table(header: list[str], rows: list[dict[str, Any]]) -> str:
    """Header and rows as text; nothing where there is no header yet."""
    text = io.StringIO()
    writer = csv.DictWriter(text, header, lineterminator="\n")
    if header:
        writer.writeheader()
        writer.writerows(rows)
    return text.getvalue()


def replace(path: Path, text: str) -> None:
    """Put this text in the file's place, at once."""
    new = path.with_name(f".{path.name}.new")
    new.write_text(text, encoding="utf-8", newline="")
    os.replace(new, path)
