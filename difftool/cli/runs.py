"""`difftool runs`: the runs there are, newest first."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from difftool.cli.console import help_text, note, result_json, stdout
from difftool.errors import BadFile, printable

if TYPE_CHECKING:
    from difftool.runs.folder import RunFolder

COLUMNS = ("run", "started", "status", "step", "loss", "what")


def runs(
    folder: Annotated[
        Path | None,
        typer.Argument(metavar="DIR", help=help_text("The folder that holds the runs.", "default: runs")),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """List the runs in a folder, the newest first."""
    from difftool.runs.folder import ROOT, all_runs

    root = folder or ROOT
    if folder is not None and not folder.is_dir():
        raise BadFile(f"{folder} is no folder")
    rows = [_facts(run) for run in all_runs(root)]
    if json:
        result_json({"runs": rows})
        return
    if not rows:
        note(f"there are no runs in {root.absolute()}; train one with 'difftool train'")
        return
    table = Table(box=None, pad_edge=False)
    for column in COLUMNS:
        last = column == COLUMNS[-1]
        table.add_column(column, style="cyan" if column == "run" else None, overflow="fold", no_wrap=not last)
    for row in rows:
        table.add_row(*(escape(printable(cell)) for cell in _cells(row)))
    stdout().print(table)


def add_to(app: typer.Typer) -> None:
    app.command()(runs)


def _facts(run: RunFolder) -> dict[str, Any]:
    from difftool.runs.recipe import recipe_kinds

    rows = run.read_metrics()
    config = run.readable_config()
    names = {kind: table.get("name") for kind in recipe_kinds() if isinstance(table := config.get(kind), dict)}
    return {
        "run": str(run.path),
        "started": run.started,
        **asdict(run.status()),
        "loss": rows[-1]["loss"] if rows else None,
        "model": str(run.model) if run.model.is_file() else None,
        **names,
    }


def _cells(row: dict[str, Any]) -> list[str]:
    steps = f"{row['step']}/{row['steps']}" if row["steps"] is not None else str(row["step"])
    what = " / ".join(str(row[kind]) for kind in ("dataset", "schedule", "backbone", "prediction") if row.get(kind))
    loss = "-" if row["loss"] is None else f"{row['loss']:.4g}"
    return [row["run"], row["started"][:16].replace("T", " "), row["status"], steps, loss, what]
