"""Reading of image files before training: into memory if they are few, or else a check of each."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from difftool import BadImage, DifftoolError, printable, read_json, write_json
from difftool_plugins.datasets.folders import report
from difftool_plugins.datasets.images.files import ImageFiles, RandomCrops, check_all, read_all

Stamp = list[int]
"""Size in bytes and time of the last change in nanoseconds; empty for a file without a status."""


@dataclass(frozen=True)
class Read:
    """The images that were read, and their partners."""

    columns: Sequence[Tensor | ImageFiles | RandomCrops]
    good: list[int]
    """The numbers of the images that can be read."""
    fingerprint: str
    room: float
    """The bytes of memory that are left, or 0 if the images are read during training."""


def read(sources: Sequence[ImageFiles], most: float, cache: Path | None, *, random: bool) -> Read:
    """Read images and their partners into memory if they take at most so many bytes, or else check them.

    With `random` they are cropped at random, so they are read during training. Raises `BadImage`, and `ValueError` if
    none can be read.
    """
    files = sources[0]
    size = sum(source.nbytes for source in sources)
    bad: dict[int, BadImage] = {}
    columns: list[Tensor] | list[ImageFiles] | list[RandomCrops]
    if size <= most and not random:
        tensors = []
        for source in sources:
            tensor, errors = read_all(source)
            tensors.append(tensor)
            bad |= errors
        good = [i for i in range(len(files)) if i not in bad]
        columns, room = [t[good] for t in tensors] if bad else tensors, most - size
        # pixels of 8 bits speak for themselves, and floats are not compared
        fingerprint = "" if files.bits == 8 else _fingerprint(files, good, [_stamp(files.path(i)) for i in good])
    else:
        stamps = [[_stamp(source.path(i)) for i in range(len(source))] for source in sources]
        for source, own in zip(sources, stamps, strict=True):
            both = own if source is files else [a + b for a, b in zip(own, stamps[0], strict=True)]
            bad |= _check(source, files, both, cache)
        good = [i for i in range(len(files)) if i not in bad]
        chosen = [source.choose(good) for source in sources]
        columns, room = [RandomCrops(source) for source in chosen] if random else chosen, 0.0
        fingerprint = " ".join(
            _fingerprint(source, good, [own[i] for i in good]) for source, own in zip(sources, stamps, strict=True)
        )
    report([str(error) for error in bad.values()], len(files), "image files", f" in {printable(files.root)}")
    return Read(columns, good, fingerprint, room)


def _check(source: ImageFiles, files: ImageFiles, stamps: Sequence[Stamp], cache: Path | None) -> dict[int, BadImage]:
    """Return the errors of bad files by number, without holding the images in memory.

    `source` holds the images `files`, or their partners. Good files are remembered in the cache folder until they
    change.
    """
    roots = "\0".join((source.root, *source.others))
    beside = "" if source is files else f"\0{files.root}\0{source.channels}"
    deep = "" if source.bits == 8 else f"\0{source.bits} bits"
    key = hashlib.sha256(os.fsencode(f"{roots}\0{source.skip_bad}{beside}{deep}")).hexdigest()[:16]
    index = cache / f"image-folder-{key}.json" if cache else None
    checked = _read_index(index) if index else {}
    names = [source.identity(i) for i in range(len(source))]
    unchecked = [i for i, name in enumerate(names) if not stamps[i] or checked.get(name) != stamps[i]]
    bad = check_all(source, unchecked)
    if index and unchecked:
        good = {name: stamps[i] for i, name in enumerate(names) if i not in bad}
        with contextlib.suppress(DifftoolError):  # a run can go on without it, as on a full or read-only disk
            write_json(index, good)
    return bad


def _stamp(path: str) -> Stamp:
    try:
        status = os.stat(path)
    except OSError:
        return []
    return [status.st_size, status.st_mtime_ns]


def _fingerprint(files: ImageFiles, numbers: Sequence[int], stamps: Sequence[Stamp]) -> str:
    """Return the SHA-256 of names and sizes, but not of times: a copy of the folder holds the same data."""
    sha = hashlib.sha256()
    for i, stamp in zip(numbers, stamps, strict=True):
        sha.update(os.fsencode(files.identity(i)) + b"\0%d\0" % sum(stamp[:1]))
    return sha.hexdigest()


def _read_index(file: Path) -> dict[str, Stamp]:
    """Return the stamps in an index file, or none if it is missing or damaged, since it only saves time."""
    try:
        index = read_json(file)
    except (OSError, ValueError):
        return {}
    return index if isinstance(index, dict) else {}
