"""Laws of loggers, asked with a run of three rows that is killed, and resumed after the first."""

from __future__ import annotations

import tempfile
from contextlib import AbstractContextManager
from importlib.util import find_spec
from pathlib import Path

from difftool.components import Logger
from difftool.specs import Row, RunContext
from difftool.testing.laws import Broken, NotAsked

LOSSES = (0.71393, 0.51767, 0.31259)
"""Of the three steps: numbers that are found again in a file of text."""


def logs_a_run_and_goes_on(logger: Logger) -> str:
    """It takes rows of numbers, some not measured, and of pictures. Where a killed run is taken up before the last row
    it saw, rows up to `run.step` are still there, and those beyond it, which come again, are there once; seen in files
    of text in `run.logs`, the place for a logger's own files."""
    if missing := [what for module, what in logger.requires.items() if find_spec(module) is None]:
        raise NotAsked(f"needs {missing[0]}")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "run"
        folder.mkdir()
        picture = folder / "samples-000002.png"
        _draw(picture)
        _log(logger, folder, picture, first=0)
        before = _texts(folder / "logs")
        _log(logger, folder, picture, first=1)
        written = [path for path in folder.rglob("*") if path.is_file() and path != picture]
        if outside := [path for path in written if folder / "logs" not in path.parents]:
            where = outside[0].relative_to(folder)
            raise Broken(f"it wrote {where} into the run folder; its own files go to run.logs")
        _compare(before, _texts(folder / "logs"))
        return f"{len(written)} files in run.logs, {len(before)} of text"


LAWS = (logs_a_run_and_goes_on,)


def _log(logger: Logger, folder: Path, picture: Path, *, first: int) -> None:
    """The rows after `first`."""
    run = RunContext(
        folder=folder,
        logs=folder / "logs",
        name="law",
        config={"training": {"lr": 0.1}},
        started="2026-01-01T00:00:00.000+00:00",
        step=first,
    )
    opened = logger.open(run)
    if not isinstance(opened, AbstractContextManager):
        raise Broken(f"open() gave a {type(opened).__name__}, no context; put @contextlib.contextmanager above it")
    with opened as log:
        if not callable(log):
            raise Broken(f"its context gave a {type(log).__name__}, not the function that is called with each row")
        for step, loss in enumerate(LOSSES, start=1):
            if step > first:
                log(Row(step=step, metrics={"loss": loss, "held_out_loss": None}))
        log(Row(step=3, metrics={}, pictures=(picture,)))


def _compare(before: dict[str, str], after: dict[str, str]) -> None:
    """What a resumed run did to what was logged before."""
    for name, text in before.items():
        now = after.get(name, "")
        if str(LOSSES[0]) in text and str(LOSSES[0]) not in now:
            raise Broken(f"{name} lost the row of step 1 when the run was resumed after it; keep rows up to run.step")
        if twice := [step for step, loss in enumerate(LOSSES, 1) if text.count(str(loss)) < now.count(str(loss))]:
            raise Broken(f"{name} has the row of step {twice[0]} twice; a resumed run logs those after run.step again")


def _texts(folder: Path) -> dict[str, str]:
    """The files of text, by name."""
    found = {}
    for path in sorted(folder.rglob("*")) if folder.is_dir() else ():
        try:
            found[str(path.relative_to(folder))] = path.read_text(encoding="utf-8") if path.is_file() else ""
        except UnicodeDecodeError:
            continue
    return found


def _draw(path: Path) -> None:
    from PIL import Image

    Image.new("RGB", (8, 8)).save(path)
