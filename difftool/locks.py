"""Locks of folders: one process at a time writes, looks at who does disturb nobody, and moved folders are found again.

The lock file is also the mark of a folder that difftool made, by its first line.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from difftool.errors import DifftoolError
from difftool.files import open_regular

if TYPE_CHECKING:
    from filelock import FileLock

MARK = "difftool run\n"
"""The first line of a lock file. The number of the process follows while one has the lock."""
ATTEMPTS, PAUSE = 1000, 0.002
"""The number of tries for a lock that only looks are in the way of, and the seconds between two."""


@contextlib.contextmanager
def hold(path: Path) -> Iterator[None]:
    """Lock a file for a block; the file holds the mark and the number of this process.

    The system releases the lock of a killed process, and forked children do not inherit it. Raises `DifftoolError` if
    another process has the lock, or if the file is not a lock of difftool.
    """
    if path.is_symlink() or (path.exists() and not path.is_file()):  # it may lead to somebody else's file, or be a pipe
        raise DifftoolError(f"{path} cannot be locked: it is {'a link' if path.is_symlink() else 'not a regular file'}")
    lock = _new_lock(path)
    try:
        if not is_marked(path, or_empty=True):
            raise DifftoolError(f"{path} cannot be locked: difftool did not write it; rename it")
        _acquire(lock, path)
        descriptor = os.open(path, os.O_WRONLY)
    except OSError as error:
        raise DifftoolError(f"{path} cannot be locked: {error.strerror or error}") from None
    try:
        _write(descriptor, f"{MARK}{os.getpid()}")
        yield
    finally:
        _write(descriptor, MARK)  # by its descriptor, since the folder may have another name by now
        lock.release()
        if sys.platform == "win32":
            _write(descriptor, MARK)
        os.close(descriptor)


def holder(path: Path) -> str:
    """Return the number of the process that holds a lock, or an empty text.

    A look shares the lock with other looks and holds it for a moment only. `hold` waits for it to pass.
    """
    if path.is_symlink():
        return ""
    try:
        with open_regular(path) as file:
            if _is_shared(file.fileno(), path):
                return ""
            file.seek(0)
            return file.read(64).decode("ascii", "replace").removeprefix(MARK).strip() or "unknown"
    except OSError:
        return ""


@contextlib.contextmanager
def followed(folder: Path) -> Iterator[Callable[[], Path]]:
    """Yield a function that returns the path of a folder, also after it was moved.

    The function raises `DifftoolError` if the folder is gone. On Windows a folder in use can be neither moved nor
    deleted.
    """
    if sys.platform == "win32":
        yield lambda: folder
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        yield lambda: _place_of(descriptor, folder)
    finally:
        os.close(descriptor)


def _place_of(descriptor: int, path: Path) -> Path:
    """Return the path of an open folder, which was `path` before. Raises `DifftoolError` if it is gone."""
    own = os.fstat(descriptor)
    found = [path]
    with contextlib.suppress(OSError):
        if sys.platform == "darwin":
            import fcntl

            found.append(Path(os.fsdecode(fcntl.fcntl(descriptor, fcntl.F_GETPATH, bytes(1024)).rstrip(b"\0"))))
        else:
            found.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")))
    for place in found:
        with contextlib.suppress(OSError):
            if os.path.samestat(own, place.stat()):
                return place
    raise DifftoolError(f"the folder {path} is gone: it was deleted, or moved to another disk, while it was in use")


def is_marked(path: Path, *, or_empty: bool = False) -> bool:
    """Return whether a file is a lock of difftool.

    `or_empty` accepts a missing or empty one as well, which a process leaves that is killed when it creates it.
    """
    if path.is_symlink():
        return False
    try:
        with open_regular(path) as file:
            start = file.read(len(MARK))
    except FileNotFoundError:
        return or_empty
    return start == MARK.encode() or (or_empty and not start)


def in_use(folder: Path, process: str) -> DifftoolError:
    """Return the error for a folder that another process has locked."""
    return DifftoolError(f"{folder} is in use by process {process}")


def _acquire(lock: FileLock, path: Path) -> None:
    """Acquire a lock. Raises `DifftoolError` if another process holds it, and waits while others only look."""
    from filelock import Timeout

    for _ in range(ATTEMPTS):
        try:
            lock.acquire()
        except Timeout:
            if process := holder(path):
                raise in_use(path.parent, process) from None
            time.sleep(PAUSE)
        else:
            return
    raise in_use(path.parent, "unknown")


def _is_shared(descriptor: int, path: Path) -> bool:
    """Return whether nobody holds a lock: whether it can be shared."""
    if sys.platform == "win32":  # no shared locks there
        from filelock import Timeout

        try:
            with _new_lock(path):
                return True
        except Timeout:
            return False
    else:
        import fcntl

        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        fcntl.flock(descriptor, fcntl.LOCK_UN)
        return True


def _write(descriptor: int, text: str) -> None:
    with contextlib.suppress(OSError):  # Windows lets nobody write to a locked file
        os.lseek(descriptor, 0, os.SEEK_SET)
        os.write(descriptor, text.encode())
        os.truncate(descriptor, len(text))


_locks: list[FileLock] = []
"""All locks, which are never freed: a signal in the `__del__` of filelock could not end the program."""


def _new_lock(path: Path) -> FileLock:
    from filelock import FileLock

    # the file stays, also where filelock would remove it by default
    _locks.append(FileLock(path, blocking=False, preserve_lock_file=sys.platform == "win32"))
    return _locks[-1]
