"""Files that appear whole or not at all, and names that are never taken twice."""

from __future__ import annotations

import contextlib
import errno
import glob
import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

from difftool.errors import DifftoolError

TEMPORARY = ".difftool-tmp"
"""How the names of temporary folders begin, so that leftovers of a killed run can be swept."""


LONGEST_NAME = 255
"""Bytes in the name of a file, on all usual file systems."""


@contextlib.contextmanager
def atomic(path: Path, *, overwrite: bool = True) -> Iterator[Path]:
    """A path in a temporary folder beside `path`; moved onto it, synced, when the block succeeds, removed when it
    fails.

    It has the name of `path`, since writers choose the format by the suffix, and a folder of its own, since some
    (safetensors) write to a temporary of theirs first. Parent folders are made. Without `overwrite` an existing file is
    refused, also one that appears in the meantime.
    """
    try:
        with _temporary_folder(path.parent) as folder:
            temporary = folder / path.name
            yield temporary
            # writers may not ask the umask; the folder was made by it
            os.chmod(temporary, folder.stat().st_mode & 0o666)
            _sync(temporary)
            if overwrite:
                os.replace(temporary, path)
            else:
                _move_to_new(temporary, path)
            _sync(path.parent)
    except FileExistsError:
        raise DifftoolError(f"{path} exists already; give another name, or --overwrite") from None
    except OSError as error:
        raise DifftoolError(f"{path} could not be written: {error.strerror or error}") from None


@contextlib.contextmanager
def atomic_folder(path: Path, *, overwrite: bool = True) -> Iterator[Path]:
    """An empty folder; the files written into it are moved into `path`, each whole, when the block succeeds.

    With `overwrite`, numbered files that an earlier, larger set left there are removed: they would pass for this one's.
    """
    if path.exists() and not path.is_dir():
        raise DifftoolError(f"{path} is a file; a folder is to be written there")
    try:
        with _temporary_folder(path.parent) as folder:
            yield folder
            new = sorted(p for p in folder.iterdir() if p.is_file())
            make_folder(path)
            for file in new:
                with atomic(path / file.name, overwrite=overwrite) as temporary:
                    os.replace(file, temporary)
            if overwrite:
                _remove_numbered(path, [file.name for file in new])
    except OSError as error:
        raise DifftoolError(f"{path} could not be written: {error.strerror or error}") from None


def _remove_numbered(folder: Path, kept: Sequence[str]) -> None:
    """Remove files that are called 0000.png and so on, with the suffixes of those kept, and are none of them."""
    suffixes = {Path(name).suffix for name in kept}
    for old in folder.iterdir():
        if re.fullmatch(r"\d{4,}", old.stem) and old.suffix in suffixes and old.name not in kept:
            old.unlink()


def open_regular(path: Path) -> BinaryIO:
    """A plain file, open for reading. Raises `OSError`, also for a pipe, which would be waited for without end."""
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "Is a directory" if stat.S_ISDIR(mode) else "no regular file", str(path))
    return os.fdopen(descriptor, "rb")


def make_folder(path: Path) -> None:
    """Make a folder where there is none, and wait until it is on the disk. Raises `DifftoolError`."""
    try:
        new = [p for p in (path, *path.parents) if not p.exists()]
        path.mkdir(parents=True, exist_ok=True)
        for made in new:
            _sync(made.parent)
    except FileExistsError:
        raise DifftoolError(f"{path} is a file; a folder is needed there") from None
    except OSError as error:
        raise DifftoolError(f"{path} could not be made: {error.strerror or error}") from None


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
    if any(len(os.fsencode(part)) > LONGEST_NAME for part in path.parts) or "\0" in str(path):
        raise DifftoolError(f"{path} is no name that a file can have")
    if path.is_dir() and not folder:
        raise DifftoolError(f"{path} is a folder; name a file in it")
    if path.is_symlink() and not path.exists():
        raise DifftoolError(f"{path} is a link to nothing; give another name")
    if path.exists() and not path.is_file() and not path.is_dir():
        raise DifftoolError(f"{path} is no regular file; give another name")
    if path.exists() and not overwrite and not (folder and path.is_dir() and not any(path.iterdir())):
        raise DifftoolError(f"{path} exists already; give another name, or --overwrite")
    parent = path.absolute().parent
    while not parent.exists():
        if parent.is_symlink():
            raise DifftoolError(f"{path}: {parent} is a link to nothing")
        parent = parent.parent
    if not parent.is_dir():
        raise DifftoolError(f"{path}: {parent} is not a folder")
    if not os.access(parent, os.W_OK):
        raise DifftoolError(f"{path}: {parent} is not writable")


def sweep(folder: Path) -> None:
    """Remove temporaries that a killed run left behind. Only while holding the folder's lock."""
    for leftover in list(folder.rglob(f"{TEMPORARY}-*")):
        shutil.rmtree(leftover, ignore_errors=True)


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


@contextlib.contextmanager
def _temporary_folder(parent: Path) -> Iterator[Path]:
    """A folder of a name that nobody has; after the block it is gone, also where a signal came as it was made."""
    folder = parent / f"{TEMPORARY}-{secrets.token_hex(8)}"
    try:
        make_folder(parent)
        folder.mkdir()
        yield folder
    finally:
        _remove(folder)


def _remove(folder: Path) -> None:
    try:
        shutil.rmtree(folder, ignore_errors=True)
    except BaseException:  # a signal: not before nothing is left
        shutil.rmtree(folder, ignore_errors=True)
        raise


def _sync(path: Path) -> None:
    """Wait until a file, or the entries of a folder, are on the disk."""
    if os.name == "nt" and path.is_dir():
        return
    descriptor = os.open(path, os.O_RDWR if path.is_file() else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


_held: set[int] = set()
"""Descriptors of the locks that this process holds."""


@contextlib.contextmanager
def hold(path: Path) -> Iterator[None]:
    """Lock the file in this block; it holds the number of the process. Raises `DifftoolError` where another has it."""
    descriptor = _open(path)
    _held.add(descriptor)
    try:
        if not _taken(descriptor):
            raise in_use(path.parent, _number(descriptor))
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, str(os.getpid()).encode(), 0)
        yield
    finally:
        _held.discard(descriptor)
        os.close(descriptor)


def holder(path: Path) -> str:
    """The number of the process that holds the lock; empty where none does."""
    try:
        with open_regular(path) as file:
            return "" if _taken(file.fileno()) else _number(file.fileno())
    except OSError:
        return ""


def in_use(folder: Path, process: str) -> DifftoolError:
    return DifftoolError(f"{folder} is in use by process {process}")


def _open(path: Path) -> int:
    """A descriptor of the lock file. A link would have somebody's file written to, a pipe be waited for without end."""
    guards = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | guards, 0o666)
        if stat.S_ISREG(os.fstat(descriptor).st_mode):
            return descriptor
        os.close(descriptor)
        reason = "no regular file"
    except OSError as error:
        reason = "it is a link" if error.errno == errno.ELOOP else str(error.strerror)
    raise DifftoolError(f"{path} cannot be locked: {reason}")


def _taken(descriptor: int) -> bool:
    """Take the lock, if nobody has it."""
    try:
        import fcntl
    except ImportError:  # no flock on this platform: runs are not guarded
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _number(descriptor: int) -> str:
    return os.pread(descriptor, 32, 0).decode("ascii", "replace").strip() or "unknown"


def _close_held() -> None:
    """A child that outlives a killed run must not keep its lock."""
    for descriptor in _held:
        os.close(descriptor)
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_close_held)
