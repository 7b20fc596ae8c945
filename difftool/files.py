"""Files: written whole or not at all, never over one another, and read with bounds."""

from __future__ import annotations

import contextlib
import errno
import glob
import json
import math
import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from difftool.errors import DifftoolError

TEMPORARY = ".difftool-tmp"
"""The prefix of temporary folders, by which `sweep` finds those of a killed run."""
LONGEST_NAME = 255
"""The largest size of a file name in bytes, on all usual file systems."""
LARGEST_INTEGER, DEEPEST = 2**63, 32
"""The limits for whole numbers in files, and for values within values."""
AT_ONCE = 16
"""The number of files that are waited for at once, until they are on the disk."""
LARGEST_JSON = 2**28
"""The size in bytes up to which a JSON file is read."""


@contextlib.contextmanager
def atomic(path: Path, *, overwrite: bool = True) -> Iterator[Path]:
    """Yield a temporary path whose file is synced and moved to `path` if the block succeeds, and else removed.

    It has the name of `path`, since writers choose the format by the suffix, and a folder of its own, since some
    (safetensors) write a temporary file first. Parent folders are created. Without `overwrite` an existing file is
    refused, also one that appears in the meantime. Raises `DifftoolError`.
    """
    try:
        with temporary_folder(path.parent) as folder:
            temporary = folder / path.name
            yield temporary
            # a writer may ignore the umask, but the folder was created with it
            os.chmod(temporary, folder.stat().st_mode & 0o666)
            _sync(temporary)
            if overwrite:
                os.replace(temporary, path)
            else:
                _move_to_new(temporary, path)
            _sync(path.parent)
    except FileExistsError:
        raise _exists(path) from None
    except OSError as error:
        raise not_written(path, error) from None


def move(files: Sequence[Path], folder: Path, *, overwrite: bool) -> None:
    """Move files from one temporary folder to another folder, each whole: all are on the disk before the first moves.

    Raises `DifftoolError` for a file that exists, without `overwrite`, and `OSError`.
    """

    from concurrent.futures import ThreadPoolExecutor

    def settle(file: Path) -> None:
        os.chmod(file, file.parent.stat().st_mode & 0o666)
        _sync(file)

    with ThreadPoolExecutor(AT_ONCE) as pool:
        for _ in pool.map(settle, files):
            pass
    for file in files:
        try:
            (os.replace if overwrite else _move_to_new)(file, folder / file.name)
        except FileExistsError:
            raise _exists(folder / file.name) from None
    _sync(folder)


def _exists(path: Path) -> DifftoolError:
    return DifftoolError(f"{path} exists already; give another name, or --overwrite")


def not_written(path: Path, error: OSError) -> DifftoolError:
    """Return the error for a file or folder that could not be written."""
    return DifftoolError(f"{path} could not be written: {error.strerror or error}")


def open_regular(path: Path) -> BinaryIO:
    """Open a regular file for reading. Raises `OSError`, also for a pipe, which could be waited for without end."""
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "Is a directory" if stat.S_ISDIR(mode) else "not a regular file", str(path))
    return os.fdopen(descriptor, "rb")


def read_bounded(path: Path, most: int) -> bytes:
    """Return the bytes of a regular file. Raises `OSError`, and `ValueError` if there are more than `most`."""
    with open_regular(path) as file:
        data = file.read(most + 1)
    if len(data) > most:
        raise ValueError(f"it is larger than {most >> 20} MiB")
    return data


def read_json(path: Path) -> Any:
    """Return the value in a JSON file, with the checks of `parse_json`. Raises `OSError` and `ValueError`."""
    return parse_json(read_bounded(path, LARGEST_JSON))


def parse_json(text: str | bytes) -> Any:
    """Return the value of a JSON text from an untrusted file.

    Raises `ValueError` for text that is not JSON, objects with two equal keys, and what `check_values` refuses.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            raise ValueError("two keys are equal")
        return found

    try:
        value = json.loads(text, object_pairs_hook=unique)
    except RecursionError:
        raise ValueError("values are nested too deeply") from None
    except (json.JSONDecodeError, UnicodeDecodeError):
        raise ValueError("the text is not JSON") from None
    check_values(value)
    return value


def check_values(value: Any, name: str = "", depth: int = 0) -> None:
    """Check values from an untrusted file before anything computes with them.

    Raises `ValueError`, with the key, for numbers that are not finite or take more than 64 bits, and for values nested
    too deeply.
    """
    problem = ""
    if isinstance(value, (dict, list)):
        if depth == DEEPEST:
            raise ValueError("values are nested too deeply")
        for key, entry in value.items() if isinstance(value, dict) else enumerate(value):
            check_values(entry, f"{name}.{key}" if name else str(key), depth + 1)
    elif isinstance(value, float) and not math.isfinite(value):
        problem = f"must be a finite number, not {value}"
    elif isinstance(value, int) and not -LARGEST_INTEGER <= value < LARGEST_INTEGER:
        problem = "a whole number of more than 64 bits"
    if problem:
        raise ValueError(f"{name}: {problem}" if name else problem)


def make_folder(path: Path) -> None:
    """Create a folder and its parents where they are missing, synced to the disk. Raises `DifftoolError`."""
    try:
        new = [p for p in (path, *path.parents) if not p.exists()]
        path.mkdir(parents=True, exist_ok=True)
        for made in new:
            _sync(made.parent)
    except FileExistsError:
        raise DifftoolError(f"{path} is a file; a folder is needed there") from None
    except OSError as error:
        raise DifftoolError(f"{path} could not be created: {error.strerror or error}") from None


def write_text(path: Path, text: str, *, overwrite: bool = True) -> None:
    """Write a UTF-8 text file, whole or not at all. Raises `DifftoolError`."""
    with atomic(path, overwrite=overwrite) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write plain values as a JSON file, whole or not at all. Raises `DifftoolError`."""
    write_text(path, json.dumps(value))


def numbered(folder: Path, stem: str, suffix: str) -> Path:
    """Return the path `folder/stem-NNN.suffix` with the number after the highest that exists."""
    pattern = re.compile(re.escape(stem) + r"-(\d{3,})")
    names = (p.name.removesuffix(suffix) for p in folder.glob(f"{glob.escape(stem)}-*{suffix}"))
    taken = [int(m[1]) for name in names if (m := pattern.fullmatch(name))]
    return folder / f"{stem}-{max(taken, default=0) + 1:03d}{suffix}"


def check_output(path: Path, *, overwrite: bool, folder: bool = False) -> None:
    """Refuse, before any work, an output that exists, is of the wrong kind or cannot be written.

    Raises `DifftoolError`.
    """
    if any(len(os.fsencode(part)) > LONGEST_NAME for part in path.parts) or "\0" in str(path):
        raise DifftoolError(f"{path} is not a valid file name")
    if path.is_dir() and not folder:
        raise DifftoolError(f"{path} is a folder; name a file in it")
    if path.is_symlink() and not path.exists():
        raise DifftoolError(f"{path} is a broken link; give another name")
    if path.exists() and not path.is_file() and not path.is_dir():
        raise DifftoolError(f"{path} is not a regular file; give another name")
    if path.exists() and not overwrite and not (folder and path.is_dir() and not any(path.iterdir())):
        raise _exists(path)
    parent = path.absolute().parent
    while not parent.exists():
        if parent.is_symlink():
            raise DifftoolError(f"{path}: {parent} is a broken link")
        parent = parent.parent
    if not parent.is_dir():
        raise DifftoolError(f"{path}: {parent} is not a folder")
    if not os.access(parent, os.W_OK):
        raise DifftoolError(f"{path}: {parent} is not writable")


def sweep(folder: Path) -> None:
    """Remove the temporary folders of a killed run. The caller holds the lock of the folder."""
    for leftover in list(folder.rglob(f"{TEMPORARY}-*")):
        shutil.rmtree(leftover, ignore_errors=True)


def _move_to_new(temporary: Path, path: Path) -> None:
    """Rename a file. Raises `FileExistsError` if the name is taken, rather than replace the other file."""
    try:
        os.link(temporary, path)
    except FileExistsError:
        raise
    except OSError:  # a file system without hard links: checking before the rename must do
        if path.exists():
            raise FileExistsError(path) from None
        os.rename(temporary, path)


@contextlib.contextmanager
def temporary_folder(parent: Path) -> Iterator[Path]:
    """Create a folder with a new name for a block, and remove it even if a signal comes while it is created."""
    folder = parent / f"{TEMPORARY}-{secrets.token_hex(8)}"
    try:
        make_folder(parent)
        folder.mkdir()
        yield folder
    finally:
        try:
            shutil.rmtree(folder, ignore_errors=True)
        except BaseException:  # a signal: finish first
            shutil.rmtree(folder, ignore_errors=True)
            raise


def move_folder(folder: Path, path: Path) -> None:
    """Give a folder its name, at which nothing is yet, for good: synced to the disk. Raises `DifftoolError`."""
    try:
        _sync(folder)
        os.rename(folder, path)
        _sync(path.parent)
    except OSError as error:
        raise not_written(path, error) from None


def _sync(path: Path) -> None:
    """Wait until a file, or the list of files in a folder, is on the disk."""
    if os.name == "nt" and path.is_dir():
        return
    descriptor = os.open(path, os.O_RDWR if path.is_file() else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
