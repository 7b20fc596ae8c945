"""The table of runs: what they have in common, in which options they differ, and how they went."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.cells import cell_len
from rich.table import Column

from difftool.cli.console import add_row, duration, new_table, note, stdout
from difftool.cli.run_values import COLUMNS, value_of
from difftool.errors import counted
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
    folding = {"run", "started", "differs"}
    table = new_table(
        *(
            Column(headings[name], style="cyan" if name == "run" else "", overflow="fold", no_wrap=name not in folding)
            for name in cells
        )
    )
    for row in zip(*cells.values(), strict=True):
        add_row(table, *row)
    console.print(table)
    if left_out:
        note(f"no room for {', '.join(left_out)}; a wider terminal, --csv or --json has them")


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
