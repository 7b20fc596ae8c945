"""Training states on the disk: a safetensors file, or a folder of shards, of which each process wrote one.

    step-000000500.safetensors      all tensors, and the document
    step-000000500/                 the same in parts
        shard-00000-of-00002.safetensors   the first rows of the sharded tensors, and all other tensors
        shard-00001-of-00002.safetensors   the other rows
        index.json                         the document, the shapes of the sharded tensors, and the digest of each shard

A tensor of n rows is split like `torch.chunk` does it: into parts of ceil(n / N) rows, of which the last ones may be
shorter or empty. So any number of processes can read the parts that any other number wrote.
"""

from __future__ import annotations

import hashlib
import json
import re
import secrets
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from difftool.errors import BadFile
from difftool.files import TEMPORARY, parse_json, read_bounded, write_text
from difftool.runs import checkpoint
from difftool.runs.folder import INDEX

MOST_SHARDS = 2**16
LARGEST_INDEX = 2**28
"""The size in bytes up to which an index is read."""
SHARD = re.compile(r"shard-\d{5}-of-\d{5}\.safetensors", re.ASCII)


def shard_name(rank: int, size: int) -> str:
    return f"shard-{rank:05d}-of-{size:05d}.safetensors"


def rows_of(rows: int, rank: int, size: int) -> slice:
    """Return the rows of a tensor that process `rank` of `size` holds."""
    each = -(-rows // size)
    return slice(min(rank * each, rows), min((rank + 1) * each, rows))


def write_shard(
    folder: Path, rank: int, size: int, tensors: Mapping[str, Tensor], shapes: Mapping[str, Sequence[int]], step: int
) -> str:
    """Write the shard of a process, and return its digest.

    `shapes` has the whole shape of each sharded tensor. The first process alone writes the others. Raises
    `DifftoolError`.
    """
    own = {name: tensor for name, tensor in tensors.items() if rank == 0 or name in shapes}
    checkpoint.save(folder / shard_name(rank, size), own, {"kind": "shard", "step": step})
    return checkpoint.load_digest(folder / shard_name(rank, size))


def write_index(
    folder: Path, document: Mapping[str, Any], shapes: Mapping[str, Sequence[int]], digests: Sequence[str]
) -> None:
    """Write the index of shards that lie in a folder, which makes them a state. Raises `DifftoolError`."""
    content = {
        "format": checkpoint.FORMAT,
        "document": {"format": checkpoint.FORMAT, **document},
        "tensors": {name: list(shape) for name, shape in shapes.items()},
        "shards": list(digests),
    }
    text = json.dumps(content, sort_keys=True, allow_nan=False)
    write_text(folder / INDEX, json.dumps({"sha256": _digest(text), **content}, sort_keys=True, indent=1) + "\n")


@dataclass(frozen=True)
class Index:
    """The index of a folder of shards."""

    folder: Path
    document: dict[str, Any]
    shapes: Mapping[str, tuple[int, ...]]
    """The whole shape of each sharded tensor."""
    digests: Sequence[str]
    """The digest of each shard."""
    sha256: str
    """The digest of all that."""

    @classmethod
    def read(cls, folder: Path) -> Index:
        """Read the index of a folder. Raises `BadFile`."""
        path = folder / INDEX
        try:
            content = parse_json(read_bounded(path, LARGEST_INDEX))
            sha256 = content.pop("sha256")
            if sha256 != _digest(json.dumps(content, sort_keys=True)):
                raise BadFile(f"{path} is damaged: its content does not match its digest")
            if content["format"] > checkpoint.FORMAT:
                raise BadFile(f"{path} was written by a newer difftool (format {content['format']}); upgrade difftool")
            document, shapes, digests = content["document"], content["tensors"], content["shards"]
            if not isinstance(document, dict) or not 0 < len(digests) <= MOST_SHARDS:
                raise ValueError("it has no document or no shards")
            if not all(isinstance(digest, str) for digest in digests):
                raise ValueError("a digest is no text")
            for shape in shapes.values():
                if not shape or not all(type(n) is int and 0 <= n <= checkpoint.LARGEST_FILE for n in shape):
                    raise ValueError("a shape is none")
        except OSError as error:
            raise BadFile(f"{path} cannot be read: {error.strerror}") from None
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise BadFile(f"{path} is not the index of a training state ({error})") from None
        return cls(folder, document, {name: tuple(shape) for name, shape in shapes.items()}, digests, sha256)

    def tensors(self, rank: int, size: int) -> dict[str, Tensor]:
        """Return the tensors that process `rank` of `size` needs: its rows of the sharded ones, and the others.

        One shard is in memory at a time. The first process reads all of them, and so finds damage to any. Raises
        `BadFile`.
        """
        found: dict[str, list[Tensor]] = {}
        for number in range(len(self.digests)):
            wanted = {name: self._overlap(shape[0], number, rank, size) for name, shape in self.shapes.items()}
            if number and rank and not any(rows.stop > rows.start for rows in wanted.values()):
                continue
            for name, tensor in self._shard(number).items():
                if name not in self.shapes:
                    found[name] = [tensor]
                    continue
                rows = wanted[name]
                found.setdefault(name, []).append(
                    tensor[rows].clone() if rows.stop - rows.start < len(tensor) else tensor
                )
        return {name: parts[0] if len(parts) == 1 else torch.cat(parts) for name, parts in found.items()}

    def _overlap(self, rows: int, number: int, rank: int, size: int) -> slice:
        """Return the rows, within a shard, that a process needs of a tensor."""
        there, here = rows_of(rows, number, len(self.digests)), rows_of(rows, rank, size)
        start = max(there.start, here.start)
        return slice(start - there.start, max(start, min(there.stop, here.stop)) - there.start)

    def _shard(self, number: int) -> dict[str, Tensor]:
        """Return the tensors of a shard. Raises `BadFile`."""
        path = self.folder / shard_name(number, len(self.digests))
        tensors, document, digest = checkpoint.load_with_digest(path)
        if digest != self.digests[number] or document.get("kind") != "shard":
            raise BadFile(f"{path} is not the shard that {self.folder / INDEX} names")
        for name, shape in self.shapes.items():
            rows = rows_of(shape[0], number, len(self.digests))
            if name not in tensors or tensors[name].shape != (rows.stop - rows.start, *shape[1:]):
                raise BadFile(f"{path}: {name} is not there, or has other rows than its index says")
        if number and (others := tensors.keys() - self.shapes.keys()):
            raise BadFile(f"{path}: {min(others)} belongs to the first shard")
        return tensors


def load(
    path: Path, rank: int = 0, size: int = 1, shapes: Mapping[str, Sequence[int]] | None = None
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors of a state that process `rank` of `size` needs, and the document. Raises `BadFile`.

    Of a whole file, a process takes its rows of the tensors that `shapes` has.
    """
    return load_with_digest(path, rank, size, shapes)[:2]


def load_with_digest(
    path: Path, rank: int = 0, size: int = 1, shapes: Mapping[str, Sequence[int]] | None = None
) -> tuple[dict[str, Tensor], dict[str, Any], str]:
    """Return what `load` returns, and the digest of the state. Raises `BadFile`."""
    if path.is_dir():
        index = Index.read(path)
        return index.tensors(rank, size), index.document, index.sha256
    tensors, document, digest = checkpoint.load_with_digest(path)
    if size > 1:
        for name, shape in (shapes or {}).items():
            if name in tensors and tensors[name].shape == tuple(shape):
                tensors[name] = tensors[name][rows_of(shape[0], rank, size)].clone()
    return tensors, document, digest


def load_document(path: Path) -> dict[str, Any]:
    """Return the document of a state without its tensors, which are not checked. Raises `BadFile`."""
    return Index.read(path).document if path.is_dir() else checkpoint.load_document(path)


def load_digest(path: Path) -> str:
    """Return the digest that a file or a folder of shards carries, without a check of its tensors. Raises `BadFile`."""
    return Index.read(path).sha256 if path.is_dir() else checkpoint.load_digest(path)


def size_of(path: Path) -> int:
    """Return the bytes of a state. Raises `FileNotFoundError`."""
    return sum(file.stat().st_size for file in (path.iterdir() if path.is_dir() else [path]))


def remove(path: Path) -> None:
    """Remove a state, and nothing else, in one step: what a kill leaves of it is not taken for a state."""
    if not path.is_dir():
        path.unlink(missing_ok=True)
        return
    ours = [file for file in path.iterdir() if file.name == INDEX or SHARD.fullmatch(file.name)]
    if len(ours) == len([*path.iterdir()]):
        path = path.rename(path.with_name(f"{TEMPORARY}-{secrets.token_hex(8)}"))
        shutil.rmtree(path, ignore_errors=True)
        return
    for file in sorted(ours):  # the index first
        file.unlink(missing_ok=True)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
