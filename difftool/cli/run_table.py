"""The table of runs: what they have in common, in which options they differ, and how they went."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from itertools import zip_longest
from pathlib import Path
from typing import Any

from rich.cells import cell_len
from rich.console import Console
from rich.segment import Segment, Segments
from rich.style import Style
from rich.text import Text

from difftool.cli.console import duration, note, stdout
from difftool.cli.run_values import COLUMNS, value_of
from difftool.errors import LONGEST_LINE, counted, printable, shortened
from difftool.files import write_text
from difftool.runs.summary import Summary, Value, common, differing, short_names, text_of

HEADINGS = {"eps-loss": "eps loss", "held-out": "held out", "step": "step"}
ALWAYS = ("run", "status", "step")
LEFT_OUT = ("size", "started", "time", "eps-loss", "held-out", "loss")
"""The columns that a narrow terminal leaves out, in this order. Options in which runs differ are joined before."""
NARROWEST = 12
"""The width to which the names of runs, and joined options, may be folded."""
MOST_SCORES = 3
"""The largest number of scores that the table shows: those that most runs have."""
FOLDING = ("run", "started", "differs")
"""The columns whose cells may be folded."""
BOLD, CYAN, PLAIN = Style(bold=True), Style(color="cyan"), Style()
MOST = 12
"""The largest number of differing options that the table shows, since every file and folder may hold more."""
GAP = 2


def print_runs(runs: Sequence[Summary]) -> None:
    """Print the table of runs on stdout, and on stderr what they have in common."""
    options = [run.options for run in runs]
    names = differing(options)
    if same := common(options):
        note(f"all: {' / '.join(same)}")
    if len(names) > MOST:
        note(f"and {counted(len(names) - MOST, 'other option')} in which they differ; --csv and --json have them")
        names = names[:MOST]
    short = short_names(names, [*COLUMNS])
    scores = _scores(runs)[:MOST_SCORES]
    cells = {name: [_cell(run, name) for run in runs] for name in (*_columns(runs, scores), *names)}
    console = stdout()
    headings = {name: short.get(name, HEADINGS.get(name, name)) for name in cells}
    if names and _width(cells, headings) > console.width:
        joined = [
            ", ".join(f"{short[name]} {cells[name][i]}" for name in names if cells[name][i] != "-")
            for i in range(len(runs))
        ]
        cells = {**{name: column for name, column in cells.items() if name not in names}, "differs": joined}
        headings["differs"] = "what differs"
    left_out = []
    for name in (*LEFT_OUT[:-2], *reversed(scores), *LEFT_OUT[-2:]):
        if _width(cells, headings, fold=("run", "differs")) > console.width and name in cells:
            del cells[name]
            left_out.append(headings[name])
    _print_columns(console, {name: [headings[name], *column] for name, column in cells.items()})
    if left_out:
        note(f"no room for {', '.join(left_out)}; a wider terminal, --csv or --json has them")


def _print_columns(console: Console, cells: Mapping[str, Sequence[str]]) -> None:
    """Print columns, each with its heading first, folded where the terminal is narrow.

    A table of rich measures, wraps and styles each cell by itself, which takes seconds for thousands of runs.
    """
    texts = [[shortened(printable(cell), LONGEST_LINE) for cell in column] for column in cells.values()]
    widths = {name: max(map(cell_len, column)) for name, column in zip(cells, texts, strict=True)}
    room = console.width - GAP * (len(widths) - 1)
    while sum(widths.values()) > room and (widest := max(FOLDING, key=lambda name: widths.get(name, 0))) in widths:
        if widths[widest] == 1:
            break
        widths[widest] -= 1
    segments = []
    for number, row in enumerate(zip(*texts, strict=True)):
        for first, rest in _lines(console, row, [*widths.values()]):
            segments.append(Segment(first, CYAN if number else BOLD))
            segments.append(Segment(f"{rest}\n", PLAIN if number else BOLD))
    console.print(Segments(segments), soft_wrap=True, end="")


def _lines(console: Console, row: Sequence[str], widths: Sequence[int]) -> Iterator[tuple[str, str]]:
    """Yield the first cell, and all others, of each line of a row."""
    folded: list[Sequence[str]] = [(cell,) for cell in row]
    for i, (cell, width) in enumerate(zip(row, widths, strict=True)):
        if cell_len(cell) > width:
            folded[i] = [line.plain.rstrip() for line in Text(cell).wrap(console, width, overflow="fold")]
    for cells in zip_longest(*folded, fillvalue=""):
        first, *rest = (cell + " " * (width - cell_len(cell)) for cell, width in zip(cells, widths, strict=True))
        after = "".join(" " * GAP + cell for cell in rest).rstrip()
        yield first if after else first.rstrip(), after


def facts(run: Summary, names: Sequence[str]) -> dict[str, Any]:
    """Return a run as `--json` prints it. `names` are the options in which the runs differ."""
    return {
        "run": str(run.run.path),
        "started": run.started,
        **asdict(run.status),
        **run.tail.losses,
        "seconds": run.seconds,
        "bytes": run.bytes,
        "model": str(run.run.model) if run.run.model.is_file() else None,
        "components": run.components,
        "scores": run.scores,
        "differs": {name: run.options.get(name) for name in names},
    }


def write_csv(runs: Sequence[Summary], path: Path, *, overwrite: bool) -> None:
    """Write all values of the runs, with the options in which they differ, whole or not at all."""
    names = differing([run.options for run in runs])
    columns = [*COLUMNS, *_scores(runs), *names]
    write_text(
        path, csv_text(columns, [{name: value_of(run, name) for name in columns} for run in runs]), overwrite=overwrite
    )


def csv_text(names: Sequence[str], rows: Sequence[Mapping[str, Value | None]]) -> str:
    """Return rows as CSV. A text that a spreadsheet would compute, such as `=1+1`, begins with an apostrophe."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow([_inert(name) for name in names])
    for row in rows:
        values = (row.get(name) for name in names)
        writer.writerow([_inert(value) if isinstance(value, str) else value for value in values])
    return file.getvalue()


def _inert(text: str) -> str:
    return f"'{text}" if text[:1] in ("=", "+", "-", "@", "\t", "\r") else text


def _scores(runs: Sequence[Summary]) -> list[str]:
    """Return the names of the scores that runs have, those of most runs first."""
    count = Counter(name for run in runs for name in run.scores if name not in COLUMNS and name not in run.options)
    return [name for name, _ in count.most_common()]


def _columns(runs: Sequence[Summary], scores: Sequence[str]) -> list[str]:
    """Return the columns that say something: no time of runs that took none, no loss of eps that is the loss itself."""
    found = [name for name in COLUMNS if name != "steps"]
    for name in ("held-out", "time"):
        if all(value_of(run, name) is None for run in runs):
            found.remove(name)
    if all(value_of(run, "eps-loss") in (None, value_of(run, "loss")) for run in runs):
        found.remove("eps-loss")
    place = found.index("held-out" if "held-out" in found else "loss") + 1
    return [*found[:place], *scores, *found[place:]]


def _cell(run: Summary, name: str) -> str:
    value = value_of(run, name)
    if value is None:
        return "-"
    if name == "step":
        return f"{value}/{run.status.steps}" if run.status.steps is not None else str(value)
    if name == "started":
        return str(value)[:16].replace("T", " ")
    if name == "time":
        return duration(float(value))
    if name == "size":
        return size_text(int(value))
    if name in ("loss", "eps-loss", "held-out") or name not in (*COLUMNS, *run.options):
        return f"{value:.4g}"
    return text_of(value)


def size_text(size: int) -> str:
    """Return a size on the disk: `812 KiB`, `1.2 GiB`."""
    number = float(size)
    for unit in ("B", "KiB", "MiB"):
        if number < 1000:
            return f"{number:.3g} {unit}"
        number /= 1024
    return f"{number:.3g} GiB"


def _width(cells: Mapping[str, Sequence[str]], headings: Mapping[str, str], fold: Sequence[str] = ("run",)) -> int:
    """Return the columns of a terminal that the table needs, where those that `fold` names may be folded."""
    widths = {name: max(map(cell_len, (headings[name], *column))) for name, column in cells.items()}
    return sum(min(width, NARROWEST) if name in fold else width for name, width in widths.items()) + GAP * len(cells)
