"""Manifests: the files that difftool wrote into a folder that it may share with its user.

A manifest holds a line with digest and name for each file. A file counts as difftool's while its content is what the
manifest says, so a picture that was edited since, or one that was put in its place, is the user's.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from difftool.errors import DifftoolError
from difftool.files import atomic, make_folder, move, not_written, open_regular, temporary_folder

NAME = ".difftool-files"
"""The name of a manifest in its folder."""
LARGEST = 64 * 2**20
"""The size in bytes up to which a manifest is read."""

Entry = tuple[str, str]
"""(SHA-256, name)."""


def entry(file: Path) -> Entry:
    """Return the line of a file. Raises `OSError`."""
    sha = hashlib.sha256()
    with open_regular(file) as opened:
        while block := opened.read(2**20):
            sha.update(block)
    return sha.hexdigest(), file.name


def record(folder: Path, entries: Iterable[Entry]) -> None:
    """Add lines to the manifest of a folder. Raises `DifftoolError`."""
    path = folder / NAME
    if path.is_symlink() or (path.exists() and not path.is_file()):  # it may be a pipe, or lead elsewhere
        raise DifftoolError(f"{path} could not be written: it is not a regular file")
    try:
        with open(path, "ab") as file:
            file.write(b"".join(map(_line, entries)))
    except OSError as error:
        raise not_written(path, error) from None


def recorded(folder: Path) -> dict[Path, Entry]:
    """Return the files of a folder that difftool wrote and nobody changed since, with their lines."""
    lines = _read(folder / NAME)
    found = {}
    for name in sorted({name for _, name in lines}):
        path = folder / name
        if path.is_file() and not path.is_symlink() and (line := entry(path)) in lines:
            found[path] = line
    return found


def remove(folder: Path, chosen: Callable[[str], object] = bool) -> None:
    """Delete the files that difftool wrote into a folder, or those whose names are chosen, and shorten the manifest."""
    if folder.is_symlink() or not (folder / NAME).is_file():
        return
    files = recorded(folder)
    for path in files:
        if chosen(path.name):
            path.unlink(missing_ok=True)
    lines = [_line(one) for path, one in files.items() if not chosen(path.name)]
    if lines:
        with atomic(folder / NAME) as temporary:
            temporary.write_bytes(b"".join(lines))
    else:
        (folder / NAME).unlink()


@contextlib.contextmanager
def atomic_folder(path: Path, *, overwrite: bool = True) -> Iterator[Path]:
    """Yield an empty folder whose files are moved into `path`, each whole, if the block succeeds.

    With `overwrite`, files of the same name are replaced, and so are the numbered files of an earlier set, which would
    pass for new ones. The manifest names the new files before they are moved, so those of a killed process are found.
    Raises `DifftoolError`.
    """
    if path.exists() and not path.is_dir():
        raise DifftoolError(f"{path} is a file; a folder is to be written there")
    try:
        with temporary_folder(path.parent) as folder:
            yield folder
            new = {p.name: p for p in sorted(folder.iterdir()) if p.is_file()}
            if taken := next((path / name for name in new if (path / name).is_dir()), None):
                raise DifftoolError(f"{taken} is a folder; a file is to be written there")
            make_folder(path)
            record(path, map(entry, new.values()))
            move([*new.values()], path, overwrite=overwrite)
            if overwrite:
                remove(path, lambda name: name not in new and re.fullmatch(r"\d{4,}", Path(name).stem))
    except OSError as error:
        raise not_written(path, error) from None


def _line(one: Entry) -> bytes:
    return b"%s  %s\n" % (one[0].encode(), os.fsencode(one[1]))


def _read(path: Path) -> set[Entry]:
    """Return the lines of a manifest. Lines that a killed process left half are skipped, and so are names of other
    folders."""
    try:
        with open_regular(path) as file:
            text = os.fsdecode(file.read(LARGEST))
    except OSError:
        return set()
    found = (re.fullmatch(r"([0-9a-f]{64})  ([^/\\\0]+)", line) for line in text.split("\n"))
    return {(m[1], m[2]) for m in found if m and m[2] not in (".", "..", NAME)}
