"""Safetensors files with a JSON document in the metadata, and a digest over all of it.

Files from others are safe to load: only regular files with a small header are opened, the digest must match, the caller
checks the document, and pickles are refused.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import torch
from torch import Tensor

from difftool.errors import BadFile, DifftoolError, out_of_memory
from difftool.files import atomic, open_regular, parse_json

KEY = "difftool"
"""The only metadata key, since the order of several would vary between saves."""
ENVELOPE = ("document", "sha256")
"""The entries of the metadata: the document as JSON text, and the digest."""
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "C64": torch.complex64,
    "BOOL": torch.bool,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U16": torch.uint16,
}
"""The types of tensors, by their names in the header."""
HALVES = {"bf16": torch.bfloat16, "fp16": torch.float16}
"""The number formats of half the size in which a model file may hold its network."""
FORMAT = 1
LARGEST_FILE = 2**62
"""The largest number that a header may give for a size or a place."""
LARGEST_HEADER = 16 * 2**20
PICKLES = (".pt", ".pth", ".ckpt", ".bin", ".pkl", ".pickle")


class Contents(NamedTuple):
    """The content of a file, as `save` takes it."""

    tensors: Mapping[str, Tensor]
    document: Mapping[str, Any]


def save(path: Path, tensors: Mapping[str, Tensor], document: Mapping[str, Any], *, overwrite: bool = True) -> None:
    """Write tensors and a document, whole or not at all. Raises `DifftoolError`."""
    write(path, *encoded(tensors, document), overwrite=overwrite)


def encoded(tensors: Mapping[str, Tensor], document: Mapping[str, Any]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return tensors and a document as a file holds them: tensors of their own on the CPU, and metadata."""
    ready: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in tensors.items():
        array = tensor.detach().to("cpu").contiguous()
        ready[name] = array.clone() if array.data_ptr() in seen else array  # the format refuses shared memory
        seen.add(array.data_ptr())
    text = json.dumps({"format": FORMAT, **document}, sort_keys=True, allow_nan=False)
    return ready, {KEY: json.dumps({"document": text, "sha256": digest(ready, text)}, sort_keys=True)}


def write(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str], *, overwrite: bool = True) -> None:
    """Write what `encoded` returned, whole or not at all. Raises `DifftoolError`."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    try:
        with atomic(path, overwrite=overwrite) as temporary:
            save_file(tensors, temporary, metadata)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise DifftoolError(f"{path} could not be written: {reason}") from None


def load(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors and the document of a file that `save` wrote. Raises `BadFile`."""
    return load_with_digest(path)[:2]


def load_with_digest(path: Path) -> tuple[dict[str, Tensor], dict[str, Any], str]:
    """Return the tensors, the document and the digest of a file that `save` wrote. Raises `BadFile`.

    All is read from one open file, so a run that replaces the file meanwhile does not mix with it.
    """
    with _opened(path) as (file, header):
        tensors = {entry.name: entry.read(path, file) for entry in header.entries}
    if digest(tensors, header.text) != header.sha256:
        raise BadFile(f"{path} is damaged: its content does not match its digest")
    return tensors, _parse(path, header.text), header.sha256


def load_document(path: Path) -> dict[str, Any]:
    """Return the document of a file without its tensors, and so without a check of the digest. Raises `BadFile`."""
    with _opened(path) as (_, header):
        return _parse(path, header.text)


def load_digest(path: Path) -> str:
    """Return the digest that a file carries, without its tensors, and so without a check of it. Raises `BadFile`."""
    with _opened(path) as (_, header):
        return header.sha256


@dataclass(frozen=True)
class _Entry:
    """A tensor, as the header describes it."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    end: int

    @classmethod
    def parse(cls, name: str, entry: Any) -> _Entry:
        """Check an entry of the header. Raises `ValueError`."""
        try:
            dtype, shape, (start, end) = DTYPES[entry["dtype"]], entry["shape"], entry["data_offsets"]
            if not all(type(n) is int and 0 <= n <= LARGEST_FILE for n in (*shape, start, end)):
                raise ValueError
        except (KeyError, TypeError, ValueError):
            raise ValueError(f"{name} is malformed in its header") from None
        if end - start != math.prod(shape) * dtype.itemsize:
            raise ValueError(f"{name} has another size than its shape")
        return cls(name, dtype, tuple(shape), start, end)

    def read(self, path: Path, file: BinaryIO) -> Tensor:
        """Read the next tensor of the file. Raises `BadFile`."""
        try:
            tensor = torch.empty(self.shape, dtype=self.dtype)
        except (RuntimeError, ValueError) as error:
            if out_of_memory(error):
                raise
            raise _foreign(path, f"{self.name} cannot have the shape {self.shape}") from None
        array: Any = tensor.reshape(-1).view(torch.uint8).numpy()
        rest = memoryview(array)
        while rest and (count := file.readinto(rest)):  # type: ignore[attr-defined]
            rest = rest[count:]
        if rest:
            raise _foreign(path, "it ends too early")
        return tensor


@dataclass(frozen=True)
class _Header:
    """The header of a file: its tensors in the order of their bytes, the document, as text, and the digest."""

    entries: Sequence[_Entry]
    text: str
    sha256: str


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[tuple[BinaryIO, _Header]]:
    """Open a file for a block, after its header. Raises `BadFile`, also inside the block."""
    if path.suffix.lower() in PICKLES:
        raise _foreign(path, f"{path.suffix} files can run code when they are opened, so this one is not")
    try:
        with open_regular(path) as file:
            yield file, _read_header(path, file)
    except FileNotFoundError:
        raise BadFile(f"{path} does not exist") from None
    except OSError as error:
        raise BadFile(f"{path} cannot be read: {error.strerror}") from None


def _read_header(path: Path, file: BinaryIO) -> _Header:
    """Read the header of an open file, and check all of it. Raises `BadFile`.

    The tensors must lie one after the other and fill the file, so nothing is hidden between or behind them.
    """
    size, start = os.fstat(file.fileno()).st_size, file.read(8)
    if len(start) < 8:
        raise _foreign(path, "no header")
    length = int.from_bytes(start, "little")
    if length > LARGEST_HEADER:
        raise _foreign(path, "its header is too large")
    text = file.read(length)
    if not text.startswith(b"{"):
        raise _foreign(path, "no header")
    header = _json(path, text, "header")
    metadata = header.pop("__metadata__", None)
    if not isinstance(metadata, dict) or not isinstance(metadata.get(KEY), str):
        raise _foreign(path, "it carries no difftool metadata")
    envelope = _json(path, metadata[KEY], "metadata")
    if not isinstance(envelope, dict) or not all(isinstance(envelope.get(k), str) for k in ENVELOPE):
        raise _foreign(path, "its metadata are malformed")
    try:
        entries = sorted((_Entry.parse(*item) for item in header.items()), key=lambda entry: (entry.start, entry.end))
    except ValueError as error:
        raise _foreign(path, str(error)) from None
    ends = [0, *(entry.end for entry in entries)]
    if ends != [*(entry.start for entry in entries), size - 8 - length]:
        raise _foreign(path, "its tensors do not fill it one after the other")
    return _Header(entries, envelope["document"], envelope["sha256"])


def digest(tensors: Mapping[str, Tensor], text: str) -> str:
    """Return the SHA-256 of the document and of each tensor's name, dtype, shape and bytes."""
    sha = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        sha.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        array: Any = tensor.reshape(-1).view(torch.uint8).numpy()
        sha.update(array)
    return sha.hexdigest()


def grouped(tensors: Mapping[str, Tensor], names: Sequence[str]) -> dict[str, dict[str, Tensor]]:
    """Return the tensors of each group by their names there: `network.first.weight` is `first.weight` of `network`.

    Raises `ValueError` for a tensor of another group.
    """
    groups: dict[str, dict[str, Tensor]] = {name: {} for name in names}
    for name, tensor in tensors.items():
        group, _, rest = name.partition(".")
        if group not in groups:
            raise ValueError(f"{name} belongs to none of {', '.join(names)}")
        groups[group][rest] = tensor
    return groups


def ungrouped(groups: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Return tensors by names that begin with that of their group."""
    return {f"{group}.{name}": tensor for group, some in groups.items() for name, tensor in some.items()}


def half_of(tensors: Mapping[str, Tensor]) -> str | None:
    """Return the name of the number format of half the size, if all floating-point tensors have it, or None."""
    kinds = {tensor.dtype for tensor in tensors.values() if tensor.is_floating_point()}
    return next((name for name, dtype in HALVES.items() if kinds == {dtype}), None)


def widened(tensors: Mapping[str, Tensor], half: object) -> dict[str, Tensor]:
    """Return the tensors of a file with those of a number format of half the size as float32.

    `half` is the format that the file names, or None. Raises `ValueError` for another one.
    """
    if half is None:
        return dict(tensors)
    if not isinstance(half, str) or half not in HALVES:
        raise ValueError("dtype is no number format of half the size")
    return {name: t.float() if t.dtype == HALVES[half] else t for name, t in tensors.items()}


def differences(wanted: Mapping[str, Tensor], found: Mapping[str, Tensor], most: int = 3) -> str:
    """Return the first differences in names, shapes and types, and the number of the others, or an empty text."""
    rows = [f"{name} is missing" for name in sorted(wanted.keys() - found.keys())]
    rows += [f"{name} is not expected" for name in sorted(found.keys() - wanted.keys())]
    for name in sorted(wanted.keys() & found.keys()):
        new, old = found[name], wanted[name]
        if new.shape != old.shape:
            rows.append(f"{name} is {tuple(new.shape)}, not {tuple(old.shape)}")
        if new.dtype != old.dtype:
            rows.append(f"{name} is {new.dtype}, not {old.dtype}".replace("torch.", ""))
    more = f" and {len(rows) - most} more" if len(rows) > most else ""
    return "; ".join(rows[:most]) + more


def _json(path: Path, text: str | bytes, part: str) -> Any:
    """Parse the JSON in a part of a file, with the checks that untrusted text needs. Raises `BadFile`."""
    try:
        return parse_json(text)
    except ValueError as error:
        raise _foreign(path, f"in its {part}, {error}") from None


def _parse(path: Path, text: str) -> dict[str, Any]:
    """Check a document. Raises `BadFile`."""
    document = _json(path, text, "metadata")
    if not isinstance(document, dict) or type(document.get("format")) is not int or document["format"] < 1:
        raise _foreign(path, "its metadata are malformed")
    if document["format"] > FORMAT:
        raise BadFile(f"{path} was written by a newer difftool (format {document['format']}); upgrade difftool")
    return document


def _foreign(path: Path, why: str) -> BadFile:
    return BadFile(f"{path} is not a safetensors file written by difftool ({why})")
