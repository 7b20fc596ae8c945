"""The text about a file that the file itself carries, in the place that its format has for one.

Files come from strangers: only regular files are opened, a text is read up to `LONGEST` bytes, compressed or not, and
no pixel is decoded.
"""

from __future__ import annotations

import contextlib
import html
import json
import os
import re
import struct
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

from difftool.errors import BadFile, printable
from difftool.figures.metadata import KEY
from difftool.files import open_regular, parse_json
from difftool.sampling.beside import text_beside

LONGEST = 2**18
"""The largest text in bytes."""
MOST_PARTS = 10_000
"""The number of parts of a file that are looked at."""
LARGEST_HEADER = 16 * 2**20
"""The size of the header of a safetensors file up to which it is read."""
EDGE = 2**20
"""The bytes at both ends of a PDF or SVG file that are looked at."""
FOUND_IN_FOLDERS = (".png", ".webp", ".wav")


def text_in(path: Path) -> str | None:
    """Return the text that a file carries, or that lies beside it, or None without any. Raises `BadFile`."""
    try:
        with open_regular(path) as file:
            text = _find(file)
    except FileNotFoundError:
        raise BadFile(f"{printable(str(path))} does not exist") from None
    except OSError as error:
        raise BadFile(f"{printable(str(path))} cannot be read: {error.strerror or error}") from None
    except (ValueError, struct.error, zlib.error) as error:
        raise BadFile(f"{printable(str(path))}: its record cannot be read: {error}") from None
    return text if text is not None else text_beside(path)


def _find(file: BinaryIO) -> str | None:
    """Return the text in an open file. Raises `ValueError` for one that is damaged."""
    start = file.read(12)
    for beginning, find in FORMATS.items():
        if re.match(beginning, start, re.DOTALL):
            file.seek(0)
            text = find(file)
            return None if text is None else text.decode("utf-8")
    return None


def _bounded(file: BinaryIO, size: int) -> bytes:
    if size > LONGEST:
        raise ValueError(f"it is larger than {LONGEST >> 10} KiB")
    data = file.read(size)
    if len(data) < size:
        raise ValueError("the file is cut off")
    return data


def _inflated(data: bytes) -> bytes:
    """Return compressed bytes as they were. Raises `ValueError` if they are too many."""
    text = zlib.decompressobj().decompress(data, LONGEST + 1)
    if len(text) > LONGEST:
        raise ValueError(f"it is larger than {LONGEST >> 10} KiB")
    return text


def _in_png(file: BinaryIO) -> bytes | None:
    """Return the text of a chunk tEXt, zTXt or iTXt before the pixels."""
    file.seek(8)
    for _ in range(MOST_PARTS):
        head = file.read(8)
        if len(head) < 8 or head[4:] in (b"IDAT", b"IEND"):
            return None
        size, kind = struct.unpack(">I4s", head)
        keyword = file.read(min(size, len(KEY) + 1)) if kind in (b"tEXt", b"zTXt", b"iTXt") else b""
        if keyword == KEY.encode() + b"\0":
            return _text_of(kind, _bounded(file, size - len(keyword)))
        file.seek(size - len(keyword) + 4, os.SEEK_CUR)
    return None


def _text_of(kind: bytes, data: bytes) -> bytes:
    """Return the text of a chunk after its keyword."""
    if kind == b"tEXt":
        return data
    if kind == b"zTXt":
        return _inflated(data[1:])
    compressed, (_, _, text) = data[:1] == b"\1", data[2:].split(b"\0", 2)
    return _inflated(text) if compressed else text


def _in_gif(file: BinaryIO) -> bytes | None:
    """Return the first comment before the first frame."""
    flags = file.read(13)[10]
    if flags & 0x80:
        file.seek(3 << (flags & 7) + 1, os.SEEK_CUR)
    for _ in range(MOST_PARTS):
        head = file.read(2)
        if len(head) < 2 or head[0] != 0x21:
            return None
        data = bytearray()
        while size := (file.read(1) or b"\0")[0]:
            data += _bounded(file, size)
            if len(data) > LONGEST:
                raise ValueError(f"it is larger than {LONGEST >> 10} KiB")
        if head[1] == 0xFE and data[:1] == b"{":
            return bytes(data)
    return None


def _in_jpeg(file: BinaryIO) -> bytes | None:
    """Return the first comment before the pixels."""
    file.seek(2)
    for _ in range(MOST_PARTS):
        head = file.read(4)
        if len(head) < 4 or head[0] != 0xFF or head[1] == 0xDA:
            return None
        size = int.from_bytes(head[2:], "big") - 2
        if size < 0:
            return None
        if head[1] == 0xFE and (data := _bounded(file, size))[:1] == b"{":
            return data
        if head[1] != 0xFE:
            file.seek(size, os.SEEK_CUR)
    return None


def _riff(file: BinaryIO, most: int = MOST_PARTS) -> Iterator[tuple[bytes, int]]:
    """Yield kind and size of each chunk, whose content the reader may read."""
    place = 12
    for _ in range(most):
        file.seek(place)
        head = file.read(8)
        if len(head) < 8:
            return
        kind, size = struct.unpack("<4sI", head)
        yield kind, size
        place += 8 + size + size % 2


def _in_webp(file: BinaryIO) -> bytes | None:
    return next((_bounded(file, size) for kind, size in _riff(file) if kind == b"XMP "), None)


def _in_wav(file: BinaryIO) -> bytes | None:
    """Return the comment in a list of facts, `LIST` of type `INFO`."""
    for kind, size in _riff(file):
        if kind == b"LIST" and file.read(4) == b"INFO" and file.read(4) == b"ICMT":
            return _bounded(file, min(int.from_bytes(file.read(4), "little"), size)).rstrip(b"\0")
    return None


def _in_zip(file: BinaryIO) -> bytes | None:
    """Return the comment of an archive, which is its end."""
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - 22 - 0xFFFF))
    end = file.read()
    place = end.rfind(b"PK\5\6")
    comment = end[place + 22 :] if place >= 0 else b""
    return comment if comment[:1] == b"{" else None


def _in_svg(file: BinaryIO) -> bytes | None:
    found = re.search(rb"<dc:description>(.*?)</dc:description>", file.read(EDGE), re.DOTALL)
    return html.unescape(found[1].decode("utf-8")).encode() if found and len(found[1]) <= LONGEST else None


def _in_pdf(file: BinaryIO) -> bytes | None:
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - EDGE))
    found = re.search(rb"/Subject \(((?:[^\\()]|\\.)*)\)", file.read(), re.DOTALL)
    return re.sub(rb"\\(.)", rb"\1", found[1]) if found and len(found[1]) <= LONGEST else None


def _in_safetensors(file: BinaryIO) -> bytes | None:
    """Return the record among the facts that a file of samples has as metadata."""
    length = int.from_bytes(file.read(8), "little")
    if length > LARGEST_HEADER:
        return None
    with contextlib.suppress(ValueError):
        header = parse_json(file.read(length))
        metadata: object = header.get("__metadata__") if isinstance(header, dict) else None
        if isinstance(metadata, Mapping) and isinstance(text := metadata.get("samples"), str):
            facts = parse_json(text)
            if isinstance(facts, dict) and "record" in facts:
                return json.dumps(facts["record"]).encode()
    return None


FORMATS: Mapping[bytes, Callable[[BinaryIO], bytes | None]] = {
    rb"\x89PNG\r\n\x1a\n": _in_png,
    rb"GIF8[79]a": _in_gif,
    rb"\xff\xd8": _in_jpeg,
    rb"RIFF....WEBP": _in_webp,
    rb"RIFF....WAVE": _in_wav,
    rb"PK": _in_zip,
    rb"%PDF": _in_pdf,
    rb"<\?xml|<svg": _in_svg,
    rb".{8}\{": _in_safetensors,
}
"""The function that finds the text in a file, by a pattern of its first bytes."""
