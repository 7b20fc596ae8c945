"""The files of samples: the writer of each suffix, and files that appear whole or not at all."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Sequence
from operator import index
from pathlib import Path
from typing import TYPE_CHECKING

from difftool.components import Writer
from difftool.errors import DifftoolError, UsageError, blaming, one_line
from difftool.files import atomic, check_output
from difftool.manifest import atomic_folder
from difftool.plugins.discovery import DENY, winner_of
from difftool.plugins.registry import registry
from difftool.sampling.beside import path_beside, write_beside

if TYPE_CHECKING:
    from difftool.figures.drawing import Drawing
    from difftool.figures.formats import DrawingSpec


def writer_of(path: Path) -> type[Writer]:
    """Return the writer of a path's suffix; a path without one is a folder. Raises `UsageError` if there is none."""
    found, suffix = registry(), path.suffix.lower()
    known = [suffix for writer in found.all_of(Writer) for suffix in writer.suffixes]
    if not suffix and path.name.lower() in known:
        raise UsageError(f"{path} is a suffix without a name; write for example samples{path.name.lower()}")
    claims = [writer for writer in found.all_of(Writer) if suffix in writer.suffixes]
    if not claims:
        what = f"cannot write {suffix} files" if suffix else "has no suffix"
        folder = ", and a name without suffix for a folder of images" if "" in known else ""
        raise UsageError(f"{path}: {what}; known are {' '.join(filter(None, known))}{folder}{found.missing_note()}")
    owners = [owner for writer in claims if (owner := found.owner(writer))]
    pairs = zip(claims, owners, strict=True)
    winner = winner_of([(writer, owner.built_in) for writer, owner in pairs])
    if winner is None:
        names = [found.reference(writer) for writer in claims]
        raise UsageError(
            f"{path}: both {' and '.join(names)} write {suffix}; leave one out by {DENY}={owners[0].distribution}"
        )
    return winner


def suffixes_of_arrays() -> list[str]:
    """Return the suffixes of files that keep the numbers themselves."""
    return [suffix for writer in registry().all_of(Writer) if writer.holds_arrays for suffix in writer.suffixes]


def check(writer: Writer, path: Path, spec: DrawingSpec) -> None:
    """Raise `UsageError` for a file that cannot show samples of this shape."""
    try:
        with blaming(f"writer {writer.name}", ValueError):
            writer.check(spec)
    except ValueError as error:
        raise UsageError(f"{path}: {error}; write {', '.join(suffixes_of_arrays())} instead") from None


def check_paths(writer: Writer, path: Path, *, overwrite: bool) -> None:
    """Refuse a path that cannot be written, also that of the record beside it. Raises `DifftoolError`."""
    check_output(path, overwrite=overwrite, folder=not path.suffix)
    if writer.record_beside:
        check_output(path_beside(path), overwrite=overwrite)


def needed_states(writers: Iterable[Writer], spec: DrawingSpec) -> list[int]:
    """Return the steps, in order, after which one of the writers needs the state of the trajectory."""
    steps: set[int] = set()
    for writer in writers:
        with blaming(f"writer {writer.name}"):
            steps.update(index(step) for step in writer.states(spec))
    return sorted(step for step in steps if 0 <= step <= spec.steps)


def write(writer: Writer, drawing: Drawing, path: Path, *, overwrite: bool) -> None:
    """Write the samples, whole or not at all.

    Raises `DifftoolError` if there are none, if they are not finite, or if the writer fails.
    """
    import torch

    if len(drawing.x) == 0:
        raise DifftoolError(f"there are no samples to write to {path}")
    if not bool(torch.isfinite(drawing.x).all()):
        raise DifftoolError(
            f"the samples hold NaN or infinite numbers, so {path} was not written: the network's estimates diverged; "
            "train longer, or take another --sampler, --spacing or, in training, --prediction"
        )
    check_paths(writer, path, overwrite=overwrite)
    opened = atomic if path.suffix else atomic_folder
    try:
        with opened(path, overwrite=overwrite) as temporary:
            with blaming(f"writer {writer.name}", OSError, ValueError):
                writer.write(drawing, temporary)
            _check_written(writer, [temporary] if path.suffix else [*temporary.iterdir()])
        if writer.record_beside and drawing.record:
            write_beside(path, drawing.record, overwrite=overwrite)
    except ValueError as error:
        raise DifftoolError(f"{path} was not written: {one_line(error)}") from None


def _check_written(writer: Writer, files: Sequence[Path]) -> None:
    """Raise `ValueError` without files, or for a file that is not a regular one: a link would be followed."""
    if not any(os.path.lexists(file) for file in files):
        raise ValueError(f"writer {writer.name} wrote nothing")
    if strange := [file.name for file in files if not stat.S_ISREG(file.lstat().st_mode)]:
        raise ValueError(f"writer {writer.name} made {strange[0]}, which is not a regular file")
