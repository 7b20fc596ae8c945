"""Files that appear whole or not at all, and names that are never taken twice."""

from __future__ import annotations

import contextlib
import glob
import os
import re
import secrets
from collections.abc import Iterator
from pathlib import Path

from difftool.errors import DifftoolError

TEMPORARY = ".difftool-tmp"
"""Part of every temporary file's name, so that leftovers of a killed run can be swept."""


@contextlib.contextmanager
def atomic(path: Path, *, overwrite: bool = True) -> Iterator[Path]:
    """A temporary path beside `path`; moved onto it, synced, when the block succeeds, removed when it fails.

    The temporary keeps the suffix, since writers choose the format by it. Parent folders are made. Without
    `overwrite` an existing file is refused, also one that appears in the meantime.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{TEMPORARY}-{secrets.token_hex(8)}{path.suffix}")
    try:
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        if overwrite:
            os.replace(temporary, path)
        else:
            _move_to_new(temporary, path)
        _sync_folder(path.parent)
    except FileExistsError:
        raise DifftoolError(f"{path} exists already; give another name, or --overwrite") from None
    except OSError as error:
        raise DifftoolError(f"{path} could not be written: {error.strerror or error}") from None
    finally:
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()


def write_text(path: Path, text: str, *, overwrite: bool = True) -> None:
    """Write a UTF-8 text file, whole or not at all."""
    with atomic(path, overwrite=overwrite) as temporary:
        temporary.write_text(text, encoding="utf-8")


def numbered(folder: Path, stem: str, suffix: str) -> Path:
    """`folder/stem-NNN.suffix`, one above the highest number there is."""
    pattern = re.compile(re.escape(stem) + r"-(\d{3,})")
    names = (p.name.removesuffix(suffix) for p in folder.glob(f"{glob.escape(stem)}-*{suffix}"))
    taken = [int(m[1]) for name in names if (m := pattern.fullmatch(name))]
    return folder / f"{stem}-{max(taken, default=0) + 1:03d}{suffix}"


def check_output(path: Path, *, overwrite: bool, folder: bool = False) -> None:
    """Refuse, before any work, an output that exists, is of the wrong kind or cannot be written."""
    if path.is_dir() and not folder:
        raise DifftoolError(f"{path} is a folder; name a file in it")
    if path.is_symlink() and not path.exists():
        raise DifftoolError(f"{path} is a link to nothing; give another name")
    if path.exists() and not overwrite and not (folder and path.is_dir() and not any(path.iterdir())):
        raise DifftoolError(f"{path} exists already; give another name, or --overwrite")
    parent = path.absolute().parent
    while not parent.exists():
        parent = parent.parent
    if not parent.is_dir():
        raise DifftoolError(f"{path}: {parent} is not a folder")
    if not os.access(parent, os.W_OK):
        raise DifftoolError(f"{path}: {parent} is not writable")


def sweep(folder: Path) -> None:
    """Remove temporaries that a killed run left behind. Only while holding the folder's lock."""
    for leftover in folder.rglob(f"{TEMPORARY}-*"):
        with contextlib.suppress(OSError):
            leftover.unlink()


def _move_to_new(temporary: Path, path: Path) -> None:
    """Give the file its name, failing rather than replacing when the name is taken."""
    try:
        os.link(temporary, path)
    except FileExistsError:
        raise
    except OSError:  # a file system without hard links: a look before the rename must do
        if path.exists():
            raise FileExistsError(path) from None
        os.rename(temporary, path)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _sync_folder(folder: Path) -> None:
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
