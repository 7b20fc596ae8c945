"""The files that commands write: the check of --out before any work, the writing, and the report at the end."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from difftool.cli.console import result, result_json
from difftool.errors import DifftoolError, UsageError
from difftool.figures.formats import check_suffix
from difftool.files import atomic, check_output

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@contextlib.contextmanager
def naming_out() -> Iterator[None]:
    """Put `--out` before the message of an error in this block."""
    try:
        yield
    except DifftoolError as error:
        raise type(error)(f"--out: {error}") from None


def check_out(path: Path, *, overwrite: bool, suffixes: Sequence[str]) -> None:
    """Raise `UsageError` for a suffix that the command cannot write, and `DifftoolError` for an unsuitable path."""
    with naming_out():
        check_suffix(path, suffixes)
        check_output(path, overwrite=overwrite)


def check_outs(paths: Sequence[Path], *, overwrite: bool) -> None:
    """Raise `UsageError` for paths that cannot all be written, because two are the same or one lies within another.

    A path without a suffix is a folder.
    """
    known: list[Path] = []
    for path in paths:
        with naming_out():
            check_output(path, overwrite=overwrite, folder=not path.suffix)
        place = path.resolve()
        if place in known:
            raise UsageError(f"--out: {path} is given twice")
        if any(place in other.parents or other in place.parents for other in known):
            raise UsageError(f"--out: {path} lies within another --out, or another within it")
        known.append(place)


def save_figure(figure: Figure, path: Path, *, overwrite: bool) -> None:
    """Write a figure, whole or not at all."""
    from difftool.figures.style import save

    with atomic(path, overwrite=overwrite) as temporary:
        save(figure, temporary)


def report(paths: Sequence[Path], facts: dict[str, Any], *, as_json: bool) -> None:
    """Print the files written, one a line, or one JSON object with the files and all facts."""
    if as_json:
        result_json({"files": [str(path) for path in paths], **facts})
        return
    for path in paths:
        result(str(path))
