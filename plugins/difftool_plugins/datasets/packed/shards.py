"""Tar shards: an index of the places of their members, made once, so that any sample is read by its number."""

from __future__ import annotations

import contextlib
import glob
import itertools
import os
import re
import tarfile
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from difftool import DifftoolError, printable, read_json, write_json
from difftool_plugins.datasets.packed.cells import digest

VERSION = 2
"""The version of the index file; another one is made anew."""


@dataclass
class Shard:
    """A tar file, and the samples in it: `members[suffix]` holds offset and size of each sample's, or -1, 0."""

    path: str
    keys: list[str] = field(default_factory=list)
    members: dict[str, array[int]] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        return os.path.basename(self.path)

    def add(self, key: str, suffix: str, offset: int, size: int) -> None:
        """Add a member to the last sample, or begin a new one."""
        if not self.keys or self.keys[-1] != key:
            self.keys.append(key)
        places, at = self.members.setdefault(suffix, array("q")), 2 * (len(self.keys) - 1)
        if len(places) > at:
            self.problems.append(f"{printable(self.path)}: {printable(key)} has two members {printable(suffix)}")
            return
        places.extend([-1, 0] * ((at - len(places)) // 2))
        places.extend((offset, size))

    def place(self, suffix: str, i: int) -> tuple[int, int]:
        """Return offset and size of a member of sample i; the offset is -1 if there is none."""
        places = self.members.get(suffix, ())
        return (places[2 * i], places[2 * i + 1]) if 2 * i < len(places) else (-1, 0)


def shard_paths(pattern: str) -> list[str]:
    """Return the tar files of a folder, a file, a pattern with * or ranges {000..012}, sorted by name.

    Raises `ValueError`.
    """
    place = printable(pattern)
    if os.path.isdir(pattern):
        paths = sorted(glob.glob(os.path.join(glob.escape(pattern), "*.tar")), key=os.fsencode)
        if not paths:
            raise ValueError(f"path: no .tar files in {place}")
        return paths
    if os.path.exists(pattern):
        return [pattern]
    paths = []
    for each in _expanded(pattern):
        found = sorted(glob.glob(each), key=os.fsencode) if re.search(r"[*?\[]", each) else [each]
        if not found or not os.path.exists(found[0]):
            raise ValueError(f"path: {printable(each)} does not exist" if found else f"path: no file matches {place}")
        paths += found
    return list(dict.fromkeys(paths))


def _expanded(pattern: str) -> list[str]:
    """Return the texts that ranges {000..012} and lists {a,b} stand for. Raises `ValueError` for very many."""
    parts: list[list[str]] = []
    for word in re.split(r"(\{[^{}]*\})", pattern):
        span = re.fullmatch(r"\{(\d{1,9})\.\.(\d{1,9})\}", word)
        if span:
            low, high = int(span[1]), int(span[2])
            if not 0 <= high - low < 1_000_000:
                raise ValueError(f"path: {word} must count upwards, to a million at most")
            parts.append([f"{k:0{len(span[1])}}" for k in range(low, high + 1)])
        else:
            parts.append(word[1:-1].split(",") if word.startswith("{") and "," in word else [word])
    return ["".join(words) for words in itertools.product(*parts)]


def read_index(path: str, cache: Path | None) -> Shard:
    """Return the index of a shard, from the cache if the file has not changed since. Raises `ValueError`."""
    try:
        status = os.stat(path)
    except OSError as error:
        raise ValueError(f"path: {printable(path)}: {error.strerror}") from None
    stamp = [VERSION, status.st_size, status.st_mtime_ns]
    file = cache / f"webdataset-{digest(os.path.realpath(path))[:16]}.json" if cache else None
    if file is not None and (shard := _known(path, file, stamp)):
        return shard
    shard = _scanned(path, status.st_size)
    if file is not None:
        members = {suffix: places.tolist() for suffix, places in shard.members.items()}
        index = {"stamp": stamp, "keys": shard.keys, "members": members, "problems": shard.problems}
        with contextlib.suppress(DifftoolError, UnicodeError):  # it only saves time
            write_json(file, index)
    return shard


def _known(path: str, file: Path, stamp: list[int]) -> Shard | None:
    """Return the index in a file, or None if it is missing, damaged or of another state of the shard."""
    try:
        index: Any = read_json(file)
        if index["stamp"] != stamp:
            return None
        members = {str(suffix): array("q", places) for suffix, places in index["members"].items()}
        return Shard(path, list(map(str, index["keys"])), members, list(map(str, index["problems"])))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError):
        return None


def _scanned(path: str, size: int) -> Shard:
    """Read the headers of a tar file from its beginning to its end. Raises `ValueError` if it is not one."""
    shard, place = Shard(path), printable(path)
    try:
        with tarfile.open(path, "r:") as tar:
            try:
                while (member := tar.next()) is not None:
                    tar.members = []  # type: ignore[attr-defined]  # tarfile remembers every header
                    _take(shard, member, size)
                with open(path, "rb") as file:
                    file.seek(tar.offset)
                    if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):  # two blocks of zeros end an archive
                        shard.problems.append(f"{place} is cut off: it does not end as a tar file does")
            except tarfile.TarError as error:
                shard.problems.append(f"{place} is cut off or damaged ({error})")
    except (tarfile.TarError, EOFError) as error:
        with open(path, "rb") as file:
            packed = file.read(4)[:2] in (b"\x1f\x8b", b"BZ", b"\xfd7", b"\x28\xb5")
        cure = "it is compressed, and members are read at any place: unpack it (gunzip)" if packed else str(error)
        raise ValueError(f"path: {place} is not a tar file ({cure})") from None
    except OSError as error:
        raise ValueError(f"path: {place}: {error.strerror or error}") from None
    if repeated := len(shard.keys) - len(set(shard.keys)):
        shard.problems.append(f"{place}: {repeated} keys come back after other samples; sort its members by name")
    return shard


def _take(shard: Shard, member: tarfile.TarInfo, size: int) -> None:
    """Add a regular file to the index, and pass over folders, links and hidden files."""
    folder, _, file = member.name.removeprefix("./").rpartition("/")
    if not member.isreg() or file.startswith(".") or "." not in file:
        return
    stem, _, suffix = file.partition(".")
    if member.sparse is not None or member.offset_data + member.size > size:
        why = "is sparse" if member.sparse is not None else "is cut off"
        shard.problems.append(f"{printable(shard.path)}: {printable(member.name)} {why}")
        return
    shard.add(f"{folder}/{stem}" if folder else stem, suffix.lower(), member.offset_data, member.size)


@dataclass(frozen=True)
class Members:
    """The members of one suffix, one for each sample of all shards. A member is read by its place."""

    paths: Sequence[str]
    keys: Sequence[str]
    shard: array[int]
    places: array[int]
    suffix: str

    def __len__(self) -> int:
        return len(self.keys)

    def name(self, i: int) -> str:
        return f"{self.paths[self.shard[i]]}: {self.keys[i]}.{self.suffix}"

    def sizes(self) -> bytes:
        """Return the sizes of all members."""
        return self.places[1::2].tobytes()

    def content(self, i: int) -> bytes:
        """Return the bytes of a member. Raises `ValueError` if there are none."""
        offset, size = self.places[2 * i], self.places[2 * i + 1]
        if offset < 0:
            raise ValueError("is missing")
        with open(self.paths[self.shard[i]], "rb", buffering=0) as file:
            file.seek(offset)
            read = file.read(size)
        if len(read) < size:
            raise ValueError("is cut off; the shard has changed")
        return read


def members_of(shards: Sequence[Shard], suffix: str) -> Members:
    """Return the members of a suffix of all samples."""
    number, places, keys = array("q"), array("q"), list[str]()
    for k, shard in enumerate(shards):
        keys += shard.keys
        number.extend([k] * len(shard.keys))
        stored = shard.members.get(suffix, array("q"))
        places.extend(stored)
        places.extend([-1, 0] * (len(shard.keys) - len(stored) // 2))
    return Members([shard.path for shard in shards], keys, number, places, suffix)
