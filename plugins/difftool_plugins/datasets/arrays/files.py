"""Arrays in `.npy`, `.npz` and `.safetensors` files: read whole, or row by row from where they lie in the file."""

from __future__ import annotations

import json
import math
import os
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from difftool import printable

SUFFIXES = (".npy", ".npz", ".safetensors")
DTYPES = {
    "F64": "<f8",
    "F32": "<f4",
    "F16": "<f2",
    "BF16": "bfloat16",
    "BOOL": "|b1",
    "I8": "|i1",
    "U8": "|u1",
    "I16": "<i2",
    "U16": "<u2",
    "I32": "<i4",
    "U32": "<u4",
    "I64": "<i8",
    "U64": "<u8",
}
"""The types of safetensors by their NumPy names, and bfloat16, which NumPy does not have."""
LONGEST_HEADER = 2**24
"""The largest header in bytes of a safetensors file."""


@dataclass(frozen=True)
class Stored:
    """An array in a file: its shape and type, and where it lies."""

    path: Path
    key: str
    shape: tuple[int, ...]
    dtype: str
    """The NumPy type, or `bfloat16`."""
    offset: int | None
    """The place of its first byte, or None in an archive that is compressed."""
    member: str | None = None
    """The name in the archive of an array that lies in one."""
    fortran: bool = False
    """True if the first axis varies fastest."""

    @property
    def name(self) -> str:
        """The name in errors."""
        return f"{printable(str(self.path))}[{printable(self.key)}]" if self.key else printable(str(self.path))

    @property
    def storage(self) -> np.dtype[Any]:
        return np.dtype("<u2" if self.dtype == "bfloat16" else self.dtype)

    @property
    def is_number(self) -> bool:
        return self.storage.kind in "biuf"

    @property
    def is_text(self) -> bool:
        return self.storage.kind == "U"

    @property
    def is_floating(self) -> bool:
        return self.dtype == "bfloat16" or self.storage.kind == "f"

    @property
    def by_row(self) -> bool:
        """True if a row can be read without the others: nothing is compressed, and rows are not scattered."""
        return self.offset is not None and not self.fortran

    @property
    def size_in_bytes(self) -> int:
        return math.prod(self.shape) * self.storage.itemsize

    def __str__(self) -> str:
        """The array in words, such as `x_train (60000, 28, 28) uint8`."""
        return f"{printable(self.key)} {self.shape} {self.dtype if self.dtype == 'bfloat16' else self.storage}"

    def read(self) -> np.ndarray[Any, Any]:
        """Return the whole array; bfloat16 becomes float32. Raises `ValueError` for a damaged file."""
        with damaged(self.path), open(self.path, "rb") as file:
            if self.member is None:
                file.seek(self.offset or 0)
                return self._array(file)
            with zipfile.ZipFile(file) as archive, archive.open(self.member) as content:  # which checks the CRC
                read_header(content)
                array = self._array(content)
                content.read(1)  # the end, where the CRC is compared
                return array

    def _array(self, file: Any, shape: tuple[int, ...] | None = None) -> np.ndarray[Any, Any]:
        shape = self.shape if shape is None else shape
        data = bytearray(math.prod(shape) * self.storage.itemsize)
        if file.readinto(data) != len(data):
            raise ValueError("it ends too early")
        array: np.ndarray[Any, Any] = np.frombuffer(data, dtype=self.storage)
        if self.dtype == "bfloat16":
            array = torch.from_numpy(array.view(np.int16)).view(torch.bfloat16).float().numpy()
        return array.reshape(shape, order="F" if self.fortran else "C")

    def row(self, file: BinaryIO, i: int) -> np.ndarray[Any, Any]:
        """Return row i from an open file. Raises `ValueError` if the file has become shorter."""
        assert self.offset is not None
        shape = self.shape[1:]
        size = math.prod(shape) * self.storage.itemsize
        with damaged(self.path):
            file.seek(self.offset + i * size)
            return self._array(file, shape)


@dataclass
class FileRows:
    """A map-style source of the rows of a stored array, which each process opens by itself."""

    stored: Stored
    _file: tuple[int, BinaryIO] | None = field(default=None, repr=False, compare=False)

    def __len__(self) -> int:
        return self.stored.shape[0]

    @property
    def is_floating(self) -> bool:
        return self.stored.is_floating

    def __getitem__(self, i: int) -> Tensor:
        if self._file is None or self._file[0] != os.getpid():  # a place in a file is shared across a fork
            self._file = os.getpid(), open(self.stored.path, "rb")  # noqa: SIM115
        row = self.stored.row(self._file[1], int(i))
        return torch.from_numpy(np.asarray(row, dtype=plain_type(row.dtype)))

    def __getstate__(self) -> dict[str, Any]:
        return {"stored": self.stored, "_file": None}


def plain_type(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """Return the type in the order of this machine's bytes, which torch has: wider than NumPy's where it lacks one."""
    if dtype.kind == "u" and dtype.itemsize > 1:
        return np.dtype(np.int32 if dtype.itemsize == 2 else np.int64)
    return dtype.newbyteorder("=") if dtype.kind != "f" or dtype.itemsize <= 8 else np.dtype(np.float64)


@contextmanager
def damaged(path: Path) -> Iterator[None]:
    """Name the file in errors of reading it."""
    try:
        yield
    except (ValueError, KeyError, EOFError, OSError, NotImplementedError, RuntimeError, zipfile.BadZipFile) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise ValueError(f"{printable(str(path))} cannot be read: {printable(str(reason))[:200]}") from None


def open_arrays(path: Path) -> tuple[dict[str, Stored], Mapping[str, Any]]:
    """Return the arrays of a file by their keys (`""` in a .npy file), and the facts that difftool wrote with them.

    Nothing but headers is read. Raises `ValueError`.
    """
    with damaged(path), open(path, "rb") as file:
        if path.suffix.lower() == ".npy":
            shape, fortran, dtype = read_header(file)
            stored = Stored(path, "", shape, dtype.str, file.tell(), fortran=fortran)
            if os.path.getsize(path) < file.tell() + stored.size_in_bytes:
                raise ValueError("it ends too early")
            return {"": stored}, {}
        if path.suffix.lower() == ".npz":
            with zipfile.ZipFile(file) as archive:
                return {one.key: one for one in _members(path, archive, file)}, {}
        return _tensors(path, file)


def _members(path: Path, archive: zipfile.ZipFile, file: BinaryIO) -> Iterator[Stored]:
    for info in archive.infolist():
        if info.is_dir() or not info.filename.endswith(".npy"):
            continue
        with archive.open(info) as content:
            shape, fortran, dtype = read_header(content)
            before = content.tell()
        if math.prod(shape) * dtype.itemsize != info.file_size - before:
            raise ValueError(f"{info.filename} has another size than its header says")
        offset = None
        if info.compress_type == zipfile.ZIP_STORED and not info.flag_bits & 1:
            file.seek(info.header_offset + 26)
            lengths = file.read(4)
            name, extra = int.from_bytes(lengths[:2], "little"), int.from_bytes(lengths[2:], "little")
            offset = info.header_offset + 30 + name + extra + before
        key = info.filename.removesuffix(".npy")
        yield Stored(path, key, shape, dtype.str, offset, member=info.filename, fortran=fortran)


def read_header(file: Any) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Return (shape, columns first, type) of an array in the format of NumPy. Raises `ValueError`."""
    try:
        version = np.lib.format.read_magic(file)
    except ValueError:
        raise ValueError("it is empty, or not in the format of NumPy") from None
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"it is of version {version} of the format, and 1.0 and 2.0 are known")
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    try:
        shape, fortran, dtype = read(file)
    except ValueError as error:  # NumPy's advice on long headers would allow pickles
        raise ValueError(f"its header cannot be read ({str(error).partition('.')[0].partition(chr(10))[0]})") from None
    if dtype.hasobject:
        raise ValueError("it holds Python objects, which are never unpickled; save numbers or texts (dtype=str)")
    return tuple(map(int, shape)), bool(fortran) and len(shape) > 1, dtype


def _tensors(path: Path, file: BinaryIO) -> tuple[dict[str, Stored], Mapping[str, Any]]:
    from safetensors import SafetensorError, safe_open

    size = int.from_bytes(file.read(8), "little")
    if size > LONGEST_HEADER:
        raise ValueError("it is not a safetensors file, or its header is too long")
    try:
        with safe_open(path, "pt"):  # which checks the header against the file
            pass
    except SafetensorError as error:
        raise ValueError(f"it is not a safetensors file, or is damaged ({error})") from None
    header = json.loads(file.read(size))
    texts = header.pop("__metadata__", {})
    arrays = {}
    for key, one in header.items():
        if one["dtype"] in DTYPES:
            offset = 8 + size + one["data_offsets"][0]
            arrays[key] = Stored(path, key, tuple(one["shape"]), DTYPES[one["dtype"]], offset)
    try:
        facts = json.loads(texts.get("samples", "{}"))
    except (ValueError, RecursionError):
        facts = {}
    return arrays, facts if isinstance(facts, dict) else {}
