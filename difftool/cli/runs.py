"""`difftool runs`: runs side by side: what differs between them, how they went, and their losses in one figure."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from difftool.cli.console import help_text, note, result_json
from difftool.cli.outputs import check_out, report, save_figure
from difftool.cli.parameters import AsJson, Overwrite
from difftool.cli.run_table import facts, print_runs, write_csv
from difftool.cli.run_values import Filter, filtered, ordered
from difftool.errors import BadFile, UsageError
from difftool.figures.formats import PICTURES

if TYPE_CHECKING:
    from difftool.runs.folder import RunFolder

NEWEST = "-started"


def runs(
    folders: Annotated[
        list[Path] | None,
        typer.Argument(metavar="[DIR]...", help=help_text("Folders that hold runs, or run folders.", "default: runs")),
    ] = None,
    sort: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help=help_text(
                "Order by a column or an option: loss, held-out, started, steps, time, size, lr, ...; -NAME from the "
                "greatest.",
                "default: -started",
            ),
            show_default=False,
        ),
    ] = NEWEST,
    reverse: Annotated[bool, typer.Option("--reverse", help="Turn the order round.")] = False,
    filters: Annotated[
        list[str] | None,
        typer.Option(
            "--filter",
            metavar="NAME=VALUE",
            help="Only runs with this value, such as backbone=unet, or 'lr<1e-3'; also !=, <=, >, >=. May be given "
            "several times.",
        ),
    ] = None,
    csv: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the table to a CSV file instead.")] = None,
    plot: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Draw the losses over each other, and print no table.")
    ] = None,
    overwrite: Overwrite = False,
    json: AsJson = False,
) -> None:
    """List the runs in a folder, the newest first, with what differs between them."""
    conditions = [Filter.read(text) for text in filters or ()]
    for flag, path, suffixes in (("csv", csv, (".csv",)), ("plot", plot, PICTURES)):
        if path is not None:
            check_out(path, overwrite=overwrite, suffixes=suffixes, flag=flag)

    from difftool.runs.folder import ROOT
    from difftool.runs.summary import Summary, differing

    roots = folders or [ROOT]
    everything = [Summary.of(run) for run in _found(roots, named=bool(folders))]
    if not everything:
        where = " or ".join(str(root.absolute()) for root in roots)
        if plot is not None or csv is not None:
            raise UsageError(f"there are no runs in {where}")
        note(f"there are no runs in {where}; train one with 'difftool train'")
    shown = ordered(filtered(everything, conditions), sort, reverse=reverse) if everything else []
    if everything and not shown:
        note(f"none of {len(everything):,} runs meets {' and '.join(filters or ())}")
    written = []
    if csv is not None:
        write_csv(shown, csv, overwrite=overwrite)
        written.append(csv)
    if plot is not None:
        from difftool.cli.loss_curves import loss_curves

        save_figure(loss_curves(shown), plot, overwrite=overwrite)
        written.append(plot)
    if json:
        names = differing([run.options for run in shown])
        files = {"files": list(map(str, written))} if written else {}
        result_json({**files, "runs": [facts(run, names) for run in shown]})
    elif written:
        report(written, {}, as_json=False)
    elif shown:
        print_runs(shown)


def add_to(app: typer.Typer) -> None:
    app.command()(runs)


def _found(roots: Sequence[Path], *, named: bool) -> list[RunFolder]:
    """Return the runs in folders, in the order of their names, and the run folders themselves. Raises `BadFile`."""
    from difftool.runs.folder import RunFolder, is_run, runs_in

    found: dict[Path, RunFolder] = {}
    for root in roots:
        if named and not root.is_dir():
            raise BadFile(f"{root} is not a folder")
        here = [RunFolder(root)] if is_run(root) else runs_in(root)
        for run in sorted(here, key=lambda run: run.path.name, reverse=True):
            found.setdefault(run.path.absolute(), run)
    return list(found.values())
