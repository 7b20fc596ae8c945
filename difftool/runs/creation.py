"""New run folders, and old ones that are replaced.

The first line of the lock marks the folder as difftool's. `--overwrite` replaces no other folder, and in this one only
what difftool wrote.
"""

from __future__ import annotations

import contextlib
import os
import re
from pathlib import Path

from difftool import manifest
from difftool.components import Companion
from difftool.errors import DifftoolError
from difftool.files import TEMPORARY, check_output, make_folder
from difftool.locks import is_marked
from difftool.plugins.registry import registry
from difftool.runs import states
from difftool.runs.averages import files_in
from difftool.runs.folder import FOLDERS, LOCK, ROOT, RunFolder
from difftool.runs.recipe import Recipe, companion_kinds

OURS = {
    *("config.toml", "model.safetensors", "best.safetensors", "metrics.jsonl", "evaluations.jsonl"),
    *("loss.png", "report.html", "trace.json.gz", "logs"),
    *FOLDERS,
}
"""The files and folders of a run."""
PREVIEW = re.compile(r"(samples|panel)-\d{6,}\.png", re.ASCII)
"""The names of previews."""


def create(recipe: Recipe, out: Path | None, *, overwrite: bool) -> RunFolder:
    """Create a run folder: `out`, or `runs/<dataset>-<backbone>-NNN` with a new number. Raises `DifftoolError`."""
    if out is not None:
        check_run_output(out, overwrite=overwrite)
        make_folder(out)
        folder = RunFolder(out)
        with folder.lock():  # refuses a run that is still training
            _clear(folder)
        return folder
    make_folder(ROOT)
    taken = [int(m[1]) for p in ROOT.iterdir() if (m := re.fullmatch(rf"{re.escape(recipe.name)}-(\d{{3,}})", p.name))]
    number = max(taken, default=0) + 1
    while True:
        path = ROOT / f"{recipe.name}-{number:03d}"
        try:
            path.mkdir()
        except FileExistsError:  # another run was faster
            number += 1
        else:
            return RunFolder(path)


def check_run_output(out: Path | None, *, overwrite: bool) -> None:
    """Check, before any work, that `out` can become a run folder, or that one can be created under runs/.

    Raises `DifftoolError`.
    """
    if out is None:
        check_output(ROOT / "x", overwrite=False)
        return
    if out.exists() and not out.is_dir():
        raise DifftoolError(f"--out: {out} is a file; name a folder")
    check_output(out, overwrite=True, folder=True)
    if out.is_dir():
        if not os.access(out, os.W_OK):
            raise DifftoolError(f"--out: {out} is not writable")
        content = _content(out)
        if content and not overwrite:
            raise DifftoolError(f"--out: {out} is not empty; name a new folder, or --overwrite a run")
        if content and not is_marked(out / LOCK):
            raise DifftoolError(
                f"--out: {out} is not a run folder, so --overwrite does not touch it (its lock file is not "
                "difftool's); name another"
            )
        if link := next((name for name in sorted(content & OURS) if (out / name).is_symlink()), None):
            raise DifftoolError(f"--out: {out / link} is a link, so --overwrite does not touch it; remove it first")


def _content(folder: Path) -> set[str]:
    """Return the names in a folder, without those that a run leaves if it is killed before its first state.

    Empty folders of a run are among these, since `_clear` removes them last.
    """
    names = {p.name for p in folder.iterdir() if not p.name.startswith(TEMPORARY)}
    names -= {name for name in FOLDERS if (folder / name).is_dir() and not any((folder / name).iterdir())}
    lock = folder / LOCK
    return names - {LOCK} if lock.is_symlink() or is_marked(lock, or_empty=True) else names  # `hold` refuses a link


def _clear(run: RunFolder) -> None:
    """Remove what difftool wrote into a run folder, and nothing else: states first, lest half a run be resumed."""
    previews = [p for p in run.previews.glob("*.png") if PREVIEW.fullmatch(p.name)]
    watching = (cls for base in companion_kinds().values() for cls in registry().all_of(base))
    patterns = {pattern for cls in watching if issubclass(cls, Companion) for pattern in cls.files}
    logs = [p for pattern in sorted(patterns) for p in run.logs.glob(pattern) if not _below_link(p, run.path)]
    tables, pictures = [run.metrics, run.evaluations], [*previews, run.loss, run.report, run.trace]
    averages = [file.path for file in files_in(run.averages)]
    for state in (*run.saved_states(), *run.damaged_states()):
        states.remove(state)
    for file in (run.model, run.best, *averages, *tables, *pictures, *logs):
        if file.is_file():
            file.unlink()
    for folder in (run.samples, run.evaluation_pictures, run.results):
        manifest.remove(folder)
    run.config.unlink(missing_ok=True)
    for folder in (*(run.path / name for name in FOLDERS), *{log.parent for log in logs}, run.logs):
        with contextlib.suppress(OSError):  # the user's own files are in it, or it is a link
            folder.rmdir()


def _below_link(path: Path, folder: Path) -> bool:
    """Return whether a link leads to a path from a folder above it."""
    return any(
        place.is_symlink() for place in (path, *path.parents) if place != folder and place.is_relative_to(folder)
    )
