"""What commands that write files share: the check of --out before any work, and the report at the end."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from difftool.cli.console import result, result_json
from difftool.errors import DifftoolError, UsageError
from difftool.figures.formats import check_suffix
from difftool.files import check_output


@contextlib.contextmanager
def naming_out() -> Iterator[None]:
    """What is wrong with a path is told with the option that it was given by."""
    try:
        yield
    except DifftoolError as error:
        raise type(error)(f"--out: {error}") from None


def check_out(path: Path, *, overwrite: bool, suffixes: Sequence[str]) -> None:
    """Refuse an --out that a command cannot write."""
    with naming_out():
        check_suffix(path, suffixes)
        check_output(path, overwrite=overwrite)


def check_outs(paths: Sequence[Path], *, overwrite: bool) -> None:
    """Refuse paths that cannot all be written: none may be another, or lie within it; no suffix is a folder."""
    known: list[Path] = []
    for path in paths:
        with naming_out():
            check_output(path, overwrite=overwrite, folder=not path.suffix)
        place = path.resolve()
        if place in known:
            raise UsageError(f"--out: {path} is given twice")
        if any(place in other.parents or other in place.parents for other in known):
            raise UsageError(f"--out: {path} and another lie within each other")
        known.append(place)


def report(paths: Sequence[Path], facts: dict[str, Any], *, as_json: bool) -> None:
    """The files written, one a line, or with all facts as one JSON object."""
    if as_json:
        result_json({"files": [str(path) for path in paths], **facts})
        return
    for path in paths:
        result(str(path))
