"""What commands that write files share: the check of --out before any work, and the report at the end."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from difftool.cli.console import result, result_json
from difftool.errors import DifftoolError, UsageError
from difftool.figures.formats import SUFFIXES, check_suffix
from difftool.files import check_output


def check_out(path: Path, *, overwrite: bool, suffixes: Sequence[str] = SUFFIXES) -> None:
    """Refuse an --out that cannot be written. Among all suffixes, a path without one is a folder of images."""
    try:
        check_suffix(path, suffixes)
        check_output(path, overwrite=overwrite, folder=not path.suffix)
    except DifftoolError as error:
        raise type(error)(f"--out: {error}") from None


def check_outs(paths: Sequence[Path], *, overwrite: bool) -> None:
    """`check_out` for several that are all to be written: none may be another, or lie within it."""
    known: list[Path] = []
    for path in paths:
        check_out(path, overwrite=overwrite)
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
