"""`difftool report`: one HTML page about one run or several."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from difftool.cli.console import help_text, note, progress
from difftool.cli.outputs import check_out, naming_out
from difftool.cli.outputs import report as print_files
from difftool.cli.parameters import AsJson, Device, Overwrite, out_option
from difftool.errors import UsageError, counted
from difftool.figures.formats import check_suffix

if TYPE_CHECKING:
    import torch

    from difftool.report.attachments import Attachment
    from difftool.report.gather import Gathered
    from difftool.runs.folder import RunFolder

MOST_RUNS = 16
"""The largest number of runs of a page."""


def report(
    runs: Annotated[
        list[Path] | None,
        typer.Argument(metavar="[RUN]...", help=help_text("Run folders.", "default: the newest run")),
    ] = None,
    out: Annotated[Path | None, out_option("The page.", "report.html in the run, or here for several runs")] = None,
    add: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE",
            help="A picture (.png) or table (.csv) to show too, such as compare writes. May be given several times.",
        ),
    ] = None,
    samples: Annotated[
        bool, typer.Option("--samples/--no-samples", help="Draw a few samples of each model for the page.")
    ] = True,
    device: Device = "auto",
    overwrite: Overwrite = False,
    json: AsJson = False,
) -> None:
    """Write one HTML page about runs: losses, samples, metrics, schedule, and how to repeat them."""
    from difftool import devices
    from difftool.files import write_text
    from difftool.report.page import command_of, write_page

    folders = _folders(runs or [])
    out = out or (folders[0].report if len(folders) == 1 else Path("report.html"))
    check_out(out, overwrite=overwrite, suffixes=(".html", ".htm"))
    with naming_out("add"):
        attachments = [_attachment(path) for path in add or ()]
    start = time.perf_counter()
    chosen = devices.choose(device)
    gathered = [_gather(run, chosen, samples=samples) for run in folders]
    options = [("--add", str(path)) for path in add or ()]
    options += [("--out", str(out)), *(() if samples else [("--no-samples", "")])]
    page = write_page(gathered, command_of([run.path for run in folders], options), attachments)
    write_text(out, page.html, overwrite=overwrite)
    size = len(page.html.encode())
    left_out = f", {counted(page.left_out, 'picture')} left out" if page.left_out else ""
    for run in gathered:
        for line in run.notes:
            note(f"{run.run.path}: {line}")
    if not page.zoom:
        note("the charts do not zoom, since Bokeh is not installed: pip install 'difftool[report]'")
    pictures, seconds = counted(page.pictures, "picture"), time.perf_counter() - start
    note(f"{counted(len(folders), 'run')}, {pictures}{left_out}, {size / 1e6:.1f} MB, {seconds:.1f} s")
    facts = {
        "bytes": size,
        "pictures": page.pictures,
        "left_out": page.left_out,
        "zoom": page.zoom,
        "runs": [{"run": str(run.run.path), "step": run.status.step, "notes": run.notes} for run in gathered],
    }
    print_files([out], facts, as_json=json)


def add_to(app: typer.Typer) -> None:
    app.command()(report)


def _folders(paths: list[Path]) -> list[RunFolder]:
    """Return the runs that are named, or the newest. Raises `DifftoolError`."""
    from difftool.runs.folder import all_runs, find_model, open_run

    if not paths:
        newest = next(iter(all_runs()), None)
        paths = [newest.path if newest is not None else find_model(None)[0]]
    if len(paths) > MOST_RUNS:
        raise UsageError(f"{len(paths)} runs are too many for a page; name at most {MOST_RUNS}")
    places = [path.resolve() for path in paths]
    for path, place in zip(paths, places, strict=True):
        if places.count(place) > 1:
            raise UsageError(f"{path} is given twice")
    return [open_run(path) for path in paths]


def _attachment(path: Path) -> Attachment:
    """Return a file to show on the page. Raises `DifftoolError`."""
    from difftool.report.attachments import SUFFIXES, read_attachment

    check_suffix(path, SUFFIXES)
    return read_attachment(path)


def _gather(run: RunFolder, device: torch.device, *, samples: bool) -> Gathered:
    """Read a run, and draw its samples under a progress bar."""
    from difftool.report.gather import gather
    from difftool.report.trajectory import STEPS

    if not samples or not run.model.is_file():
        return gather(run, device, with_samples=False)
    with progress("sampling", STEPS) as bar:
        return gather(run, device, watch=lambda step: bar.update(min(step.number, STEPS), run.path.name))
