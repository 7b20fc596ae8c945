"""`difftool runs`: the runs in a folder, the newest first."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Column

from difftool.cli.console import add_row, help_text, new_table, note, result_json, stdout
from difftool.cli.parameters import AsJson
from difftool.errors import BadFile, shortened

if TYPE_CHECKING:
    from difftool.runs.folder import RunFolder

LONGEST_NAME = 60
"""Characters of a component's name that are shown, since a run's config file may hold any."""


def runs(
    folder: Annotated[
        Path | None,
        typer.Argument(metavar="DIR", help=help_text("The folder that holds the runs.", "default: runs")),
    ] = None,
    json: AsJson = False,
) -> None:
    """List the runs in a folder, the newest first."""
    from difftool.runs.folder import ROOT, all_runs

    root = folder or ROOT
    if folder is not None and not folder.is_dir():
        raise BadFile(f"{folder} is not a folder")
    rows = [_facts(run) for run in all_runs(root)]
    if json:
        result_json({"runs": rows})
    elif not rows:
        note(f"there are no runs in {root.absolute()}; train one with 'difftool train'")
    else:
        shown = {"loss": "loss", "eps_loss": "eps loss"}
        if any(row["held_out_loss"] is not None for row in rows):
            shown["held_out_loss"] = "held out"
        table = new_table(
            Column("run", style="cyan", overflow="fold"),
            Column("started", overflow="fold"),
            *(Column(name, no_wrap=True) for name in ("status", "step", *shown.values())),
            Column("what", overflow="fold"),
        )
        for row in rows:
            steps = f"{row['step']}/{row['steps']}" if row["steps"] is not None else str(row["step"])
            values = ["-" if row[name] is None else f"{row[name]:.4g}" for name in shown]
            kinds = ("dataset", "schedule", "backbone", "prediction")
            names = row["components"]
            what = " / ".join(shortened(str(names[kind]), LONGEST_NAME) for kind in kinds if names.get(kind))
            started = row["started"][:16].replace("T", " ")
            add_row(table, row["run"], started, row["status"], steps, *values, what)
        stdout().print(table)


def add_to(app: typer.Typer) -> None:
    app.command()(runs)


def _facts(run: RunFolder) -> dict[str, Any]:
    from difftool.runs.recipe import recipe_kinds

    config = run.readable_config()
    names = {kind: table.get("name") for kind in recipe_kinds() if isinstance(table := config.get(kind), dict)}
    return {
        "run": str(run.path),
        "started": run.started,
        **asdict(run.status()),
        **run.losses(),
        "model": str(run.model) if run.model.is_file() else None,
        "components": names,
    }
