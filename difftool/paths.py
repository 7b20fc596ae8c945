"""Paths that files name: those to write stay in the run folder, and those to read come from no model file.

A user may type any path. A config file or a run's `config.toml` may name any path to read, but only relative paths to
write, which belong to the run folder. Files of weights hold no paths at all. An option says by its type and by
`option(path=...)` how it uses a path. A text of which nothing is said counts as a path if it looks like one.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from difftool.errors import DifftoolError, InvalidOption
from difftool.options import Field, Options, fields

LIKE_A_FILE = re.compile(r"^(?!\w+://[^/])(.*[/\\]|\.|.*\.[A-Za-z]\w{0,7}$)", re.DOTALL)
"""Texts that may well be files, of which an address such as `http://x/y` is none."""

T = TypeVar("T", bound=Options)

LONGEST_SHOWN = 200

LEADS_OUT = re.compile(r"^~|^[/\\]|^[A-Za-z]:[/\\]|(^|[/\\])\.\.([/\\]|$)|:///|\0")
"""Texts that lead out of a folder: absolute paths, the home folder, `..`, and addresses of local files."""


def without_paths(record: type[Options], values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values without those that name files or folders."""
    by_name = {f.name: f for f in fields(record)}
    return {name: v for name, v in values.items() if name not in by_name or not is_path(record, by_name[name], v)}


def is_path(record: type[Options], f: Field, value: object) -> bool:
    """Return whether the value of an option names a file or folder."""
    return f.use_in(record) is not None or (f.scalar is str and any(LEADS_OUT.search(text) for text in _texts(value)))


def check_named_by_file(record: type[Options], name: str, value: object, run: Path | None, *, moves: bool) -> object:
    """Return a value that a file gives to an option: a path to write is relative to the run folder.

    `run` is the run folder of the file, if it has one, whose absolute paths become relative. `moves` says that relative
    paths of the record are opened in the run folder. Raises `InvalidOption` for a path that leads out of it.
    """
    f = next((f for f in fields(record) if f.name == name), None)
    if f is None or (f.use_in(record) or record.path_use) == "read":
        return value
    if isinstance(value, (list, tuple)):
        return [check_named_by_file(record, name, entry, run, moves=moves) for entry in value]
    if not isinstance(value, str) or (f.scalar is not Path and f.scalar is not str):
        return value
    if f.use_in(record) is None:  # a text of a logger, of which nothing is known
        wrong = bool(LEADS_OUT.search(value) or LIKE_A_FILE.match(value)) or os.path.isfile(value)
    else:
        if run is not None and os.path.isabs(value) and "\0" not in value and is_inside(Path(value), run):
            value = os.path.relpath(os.path.realpath(value), os.path.realpath(run))
        wrong = not moves or LEADS_OUT.search(value) is not None
    if wrong:
        flag = f"--{getattr(record, 'kind', '')}.{f.flag}"
        reason = "lies outside the run folder, and a file may only name places in it to write to"
        raise InvalidOption(name, f"{value[:LONGEST_SHOWN]!r} {reason}; pass {flag} yourself if you want it")
    return value


def absolute(record: T, typed: Collection[str] | None = None) -> T:
    """Return a record whose paths to write are absolute, as the user who stands in the current folder means them.

    `typed` names the options that the user gave; by default they are those that differ from their defaults.
    """
    if typed is None:
        typed = [f.name for f in fields(type(record)) if getattr(record, f.name) != f.default]
    return _changed(record, Path.absolute, typed)


def relative_to_run(record: T, run: Path) -> T:
    """Return a record whose paths to write are relative where they lie in the run folder, so that it can move."""

    def shorten(path: Path) -> Path:
        return _real(path).relative_to(_real(run)) if path.is_absolute() and is_inside(path, run) else path

    return _changed(record, shorten)


def in_run(record: T, run: Path) -> T:
    """Return a record whose relative paths to write lie in the run folder. Raises `DifftoolError` for a link out."""

    def place(path: Path) -> Path:
        if path.is_absolute():
            return path
        check_links(run / path, run)
        return run / path

    return _changed(record, place)


def check_links(path: Path, run: Path) -> None:
    """Raise `DifftoolError` if a link leads from a path, or from anything below it, out of the run folder."""
    check_inside(path, run)
    for folder, folders, files in os.walk(path):
        for link in (Path(folder, name) for name in (*folders, *files) if os.path.islink(Path(folder, name))):
            check_inside(link, run)


def check_inside(path: Path, run: Path) -> None:
    """Raise `DifftoolError` if a link leads from a path out of the run folder."""
    if not is_inside(path, run):
        raise DifftoolError(f"{path} leads out of the run folder {run}; remove the link")


def is_inside(path: Path, folder: Path) -> bool:
    """Return whether a path lies in a folder, once links are followed."""
    return _real(path).is_relative_to(_real(folder))


def _real(path: Path) -> Path:
    return Path(os.path.realpath(path))


def _changed(record: T, change: Callable[[Path], Path], names: Collection[str] | None = None) -> T:
    """Return a record with its paths to write changed."""
    changes: dict[str, Any] = {}
    for f in fields(type(record)):
        value = getattr(record, f.name)
        if f.use_in(type(record)) == "write" and value is not None and (names is None or f.name in names):
            entries = value if isinstance(value, tuple) else (value,)
            new = tuple(change(entry) if isinstance(entry, Path) else str(change(Path(entry))) for entry in entries)
            changes[f.name] = new if isinstance(value, tuple) else new[0]
    changed: T = replace(record, **changes)  # type: ignore[type-var]  # subclasses of Options are dataclasses
    return changed


def _texts(value: object) -> list[str]:
    entries = value if isinstance(value, (list, tuple)) else [value]
    return [entry for entry in entries if isinstance(entry, str)]
