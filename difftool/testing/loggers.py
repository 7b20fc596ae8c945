"""Laws of loggers, asked with a run of three rows that is resumed after the second."""

from __future__ import annotations

import tempfile
from importlib.util import find_spec
from pathlib import Path

from difftool.components import Logger
from difftool.contracts import Row, RunContext
from difftool.testing.laws import Broken, NotAsked


def logs_a_run_and_goes_on(logger: Logger) -> str:
    """It takes rows of numbers, some not measured, and of pictures; closed and opened again it goes on, also where the
    run was taken up before the last row it saw."""
    if missing := [what for module, what in logger.requires.items() if find_spec(module) is None]:
        raise NotAsked(f"needs {missing[0]}")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "run"
        folder.mkdir()
        picture = folder / "samples-000002.png"
        _draw(picture)
        for first in (0, 1):
            run = RunContext(
                folder=folder,
                logs=folder / "logs",
                name="law",
                config={"training": {"lr": 0.1}},
                started="2026-01-01T00:00:00.000+00:00",
                step=first,
            )
            with logger.open(run) as log:
                for step in range(first + 1, 4):
                    log(Row(step=step, metrics={"loss": 1.0 / step, "held_out_loss": None}))
                log(Row(step=3, metrics={}, pictures=(picture,)))
        written = [path for path in folder.rglob("*") if path.is_file() and path != picture]
        if outside := [path for path in written if folder / "logs" not in path.parents]:
            where = outside[0].relative_to(folder)
            raise Broken(f"it wrote {where} into the run folder; its own files go to run.logs")
        return f"{len(written)} files in run.logs"


LAWS = (logs_a_run_and_goes_on,)


def _draw(path: Path) -> None:
    from PIL import Image

    Image.new("RGB", (8, 8)).save(path)
