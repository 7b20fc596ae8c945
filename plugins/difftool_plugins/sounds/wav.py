"""WAV files of 8, 16, 24 and 32 bits and of floats: read a part of one, and write one of 16 bits."""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from difftool import printable

Amplitudes = np.ndarray[Any, np.dtype[np.float32]]

PCM, FLOAT, EXTENSIBLE = 1, 3, 0xFFFE
"""The numbers of formats. The extensible one has the number of another one further on."""
STREAM = (0, 0xFFFFFFFF)
"""The sizes of data that programs write when they do not know theirs."""
TYPES = {(PCM, 8): "u1", (PCM, 16): "<i2", (PCM, 24): "u1", (PCM, 32): "<i4", (FLOAT, 32): "<f4", (FLOAT, 64): "<f8"}
MOST_CHANNELS = 64


@dataclass(frozen=True)
class Wav:
    """The header of a WAV file."""

    path: str
    rate: int
    channels: int
    kind: tuple[int, int]
    """The number of the format, and the bits of an amplitude."""
    start: int
    """The place of the amplitudes in the file."""
    length: int
    """The number of amplitudes of a channel."""

    def read(self, first: int, count: int) -> Amplitudes:
        """Return amplitudes (channels, count), from -1 to 1. Raises `ValueError` and `OSError`."""
        frame = self.kind[1] // 8 * self.channels
        with open(self.path, "rb") as file:
            file.seek(self.start + first * frame)
            data = file.read(count * frame)
        if len(data) < count * frame:
            raise ValueError(f"{printable(self.path)} has become shorter")
        raw: Any = np.frombuffer(data, TYPES[self.kind])
        if self.kind == (PCM, 24):
            wide = np.zeros((count * self.channels, 4), np.uint8)
            wide[:, 1:] = raw.reshape(-1, 3)  # the highest three bytes of 32 bits
            raw = wide.view("<i4")[:, 0]
        if self.kind[0] == PCM:
            bits = max(self.kind[1], 32 if self.kind[1] == 24 else 0)
            raw = raw.astype(np.float64) / 2.0 ** (bits - 1) - (1.0 if bits == 8 else 0.0)
        amplitudes: Amplitudes = raw.reshape(count, self.channels).T.astype(np.float32)
        if not np.isfinite(amplitudes).all():
            raise ValueError(f"{printable(self.path)} holds amplitudes that are not finite")
        return amplitudes


def open_wav(path: str | Path) -> Wav:
    """Read the header of a WAV file. Raises `ValueError` and `OSError`."""
    name = printable(str(path))
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        head = file.read(12)
        if head[:4] != b"RIFF" or head[8:] != b"WAVE":
            raise ValueError(f"{name} is not a WAV file")
        form = b""
        while len(chunk := file.read(8)) == 8:
            kind, length = struct.unpack("<4sI", chunk)
            if kind == b"data":
                break
            if kind == b"fmt ":
                form = file.read(min(length, 40))
                file.seek(length + length % 2 - len(form), os.SEEK_CUR)
            else:
                file.seek(length + length % 2, os.SEEK_CUR)
        else:
            raise ValueError(f"{name} has no sound in it")
        return _header(name, str(path), form, file, length, size)


def _header(name: str, path: str, form: bytes, file: IO[bytes], length: int, size: int) -> Wav:
    """Return the header from the chunk `fmt ` and the place of the data. Raises `ValueError`."""
    if len(form) < 16:
        raise ValueError(f"{name} does not say how its sound is stored")
    code, channels, rate, _, _, bits = struct.unpack("<HHIIHH", form[:16])
    if code == EXTENSIBLE and len(form) >= 26:
        (code,) = struct.unpack("<H", form[24:26])
    if (code, bits) not in TYPES:
        raise ValueError(f"{name} holds {bits} bits in format {code}; PCM of 8 to 32 bits and floats can be read")
    if not 1 <= channels <= MOST_CHANNELS or rate < 1:
        raise ValueError(f"{name} claims {channels} channels at {rate} Hz")
    start = file.tell()
    if length in STREAM:
        length = size - start
    if length > size - start:
        raise ValueError(f"{name} is cut off: {size - start:,} of {length:,} bytes of sound are there")
    count = length // (bits // 8 * channels)
    if count == 0:
        raise ValueError(f"{name} has no sound in it")
    return Wav(path, rate, channels, (code, bits), start, count)


def write_wav(path: Path, sound: np.ndarray[Any, Any], rate: int, *, comment: str = "") -> None:
    """Write amplitudes (channels, length) as 16 bits, and an ASCII comment. Amplitudes beyond -1 to 1 are clipped."""
    channels = len(sound)
    data = np.clip(np.round(sound.T.astype(np.float64) * 2**15), -(2**15), 2**15 - 1).astype("<i2").tobytes()
    form = struct.pack("<HHIIHH", PCM, channels, rate, rate * channels * 2, channels * 2, 16)
    chunks = _chunk(b"fmt ", form) + _chunk(b"data", data)
    if comment:
        chunks += _chunk(b"LIST", b"INFO" + _chunk(b"ICMT", comment.encode("ascii") + b"\0"))
    path.write_bytes(b"RIFF" + struct.pack("<I", 4 + len(chunks)) + b"WAVE" + chunks)


def _chunk(kind: bytes, content: bytes) -> bytes:
    """Return a chunk of a RIFF file, whose length is even."""
    return kind + struct.pack("<I", len(content)) + content + b"\0" * (len(content) % 2)
