"""The laws of loggers, checked with a run of three rows that is killed and then resumed after the first."""

from __future__ import annotations

import tempfile
from importlib.util import find_spec
from pathlib import Path

from PIL import Image

from difftool.components import Logger
from difftool.specs import Row, RunContext
from difftool.testing.companions import opened
from difftool.testing.laws import Failed, Skipped

LOSSES = (0.71393, 0.51767, 0.31259)
"""The losses of the three steps, which can be found in a text file."""


def logs_and_resumes_a_run(logger: Logger) -> str:
    """It accepts rows of numbers, of which some may be missing, and of pictures. It keeps its files in `run.logs`.
    After a run was killed and resumed at an earlier step, its text files hold the rows up to `run.step`, and the
    repeated rows only once."""
    if missing := [package for module, package in logger.requires.items() if find_spec(module) is None]:
        raise Skipped(f"{missing[0]} is not installed")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "run"
        folder.mkdir()
        picture = folder / "samples-000002.png"
        Image.new("RGB", (8, 8)).save(picture)
        _log(logger, folder, picture, first=0)
        before = _texts(folder / "logs")
        _log(logger, folder, picture, first=1)
        written = [path for path in folder.rglob("*") if path.is_file() and path != picture]
        if outside := [path for path in written if folder / "logs" not in path.parents]:
            where = outside[0].relative_to(folder)
            raise Failed(f"it wrote {where} into the run folder; its own files belong in run.logs")
        _compare(before, _texts(folder / "logs"))
        return f"{len(written)} files in run.logs, {len(before)} of them text"


LAWS = (logs_and_resumes_a_run,)


def _log(logger: Logger, folder: Path, picture: Path, *, first: int) -> None:
    """Log the rows after step `first`."""
    run = RunContext(
        folder=folder,
        logs=folder / "logs",
        name="law",
        config={"training": {"lr": 0.1}},
        started="2026-01-01T00:00:00.000+00:00",
        step=first,
    )
    with opened(logger, run) as log:
        for step, loss in enumerate(LOSSES, start=1):
            if step > first:
                log(Row(step=step, metrics={"loss": loss, "held_out_loss": None}))
        log(Row(step=3, metrics={}, pictures=(picture,)))


def _compare(before: dict[str, str], after: dict[str, str]) -> None:
    """Compare the text files before and after the run was resumed. Raises `Failed`."""
    for name, old in before.items():
        new = after.get(name, "")
        if str(LOSSES[0]) in old and str(LOSSES[0]) not in new:
            raise Failed(f"{name} lost the row of step 1 when the run was resumed after it; keep rows up to run.step")
        if twice := [step for step, loss in enumerate(LOSSES, 1) if old.count(str(loss)) < new.count(str(loss))]:
            raise Failed(
                f"{name} has the row of step {twice[0]} twice; drop rows after run.step, which are logged again"
            )


def _texts(folder: Path) -> dict[str, str]:
    """Return the content of each text file, by name."""
    texts = {}
    for path in sorted(folder.rglob("*")) if folder.is_dir() else ():
        try:
            texts[str(path.relative_to(folder))] = path.read_text(encoding="utf-8") if path.is_file() else ""
        except UnicodeDecodeError:
            continue
    return texts
