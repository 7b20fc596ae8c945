"""Safetensors files with a JSON document in the metadata, and a digest over all of it.

Files from others are safe to load: only regular files with a small header are opened, the digest must match, the caller
checks the document, and pickles are refused.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from difftool.errors import BadFile, DifftoolError
from difftool.files import atomic, open_regular, parse_json

KEY = "difftool"
"""The only metadata key, since the order of several would vary between saves."""
ENVELOPE = ("document", "sha256")
"""The entries of the metadata: the document as JSON text, and the digest."""
FORMAT = 1
LARGEST_HEADER = 16 * 2**20
PICKLES = (".pt", ".pth", ".ckpt", ".bin", ".pkl", ".pickle")


def save(path: Path, tensors: Mapping[str, Tensor], document: Mapping[str, Any], *, overwrite: bool = True) -> None:
    """Write tensors and a document, whole or not at all. Raises `DifftoolError`."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    ready: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in tensors.items():
        array = tensor.detach().to("cpu").contiguous()
        ready[name] = array.clone() if array.data_ptr() in seen else array  # the format refuses shared memory
        seen.add(array.data_ptr())
    text = json.dumps({"format": FORMAT, **document}, sort_keys=True, allow_nan=False)
    metadata = {KEY: json.dumps({"document": text, "sha256": digest(ready, text)}, sort_keys=True)}
    try:
        with atomic(path, overwrite=overwrite) as temporary:
            save_file(ready, temporary, metadata)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise DifftoolError(f"{path} could not be written: {reason}") from None


def load(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors and the document of a file that `save` wrote. Raises `BadFile`."""
    with _opened(path) as (file, text, expected):
        tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 - not a dict
    if digest(tensors, text) != expected:
        raise BadFile(f"{path} is damaged: its content does not match its digest")
    return tensors, _parse(path, text)


def load_document(path: Path) -> dict[str, Any]:
    """Return the document of a file without reading its tensors or checking its digest. Raises `BadFile`."""
    with _opened(path) as (_, text, _):
        return _parse(path, text)


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[tuple[Any, str, str]]:
    """Open a file for a block with its document, as text, and its digest. Raises `BadFile`, also inside the block."""
    from safetensors import SafetensorError, safe_open

    _check_header(path)
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata()
            if not metadata or KEY not in metadata:
                raise _foreign(path, "it carries no difftool metadata")
            envelope = _json(path, metadata[KEY], "metadata")
            if not isinstance(envelope, dict) or not all(isinstance(envelope.get(k), str) for k in ENVELOPE):
                raise _foreign(path, "its metadata are malformed")
            yield file, envelope["document"], envelope["sha256"]
    except (SafetensorError, OSError, ValueError) as error:
        raise _foreign(path, str(error)) from None


def digest(tensors: Mapping[str, Tensor], text: str) -> str:
    """Return the SHA-256 of the document and of each tensor's name, dtype, shape and bytes."""
    sha = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        sha.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        array: Any = tensor.reshape(-1).view(torch.uint8).numpy()
        sha.update(array)
    return sha.hexdigest()


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


def _check_header(path: Path) -> None:
    """Check suffix, kind and header of a file before a library parses it. Raises `BadFile`.

    Two tensors with the same name are refused, of which the library would take the last.
    """
    if path.suffix.lower() in PICKLES:
        raise _foreign(path, f"{path.suffix} files can run code when they are opened, so this one is not")
    try:
        with open_regular(path) as file:
            start = file.read(8)
            length = int.from_bytes(start, "little")
            if len(start) == 8 and length > LARGEST_HEADER:
                raise _foreign(path, "its header is too large")
            header = file.read(length)
    except FileNotFoundError:
        raise BadFile(f"{path} does not exist") from None
    except OSError as error:
        raise BadFile(f"{path} cannot be read: {error.strerror}") from None
    if not header.startswith(b"{"):
        raise _foreign(path, "no header")
    _json(path, header, "header")


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
