"""A file that is locked while a process works in its folder. The kernel frees the lock even after kill -9."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from difftool.errors import DifftoolError
from difftool.files import open_regular

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
