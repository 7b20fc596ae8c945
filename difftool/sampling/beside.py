"""The text about a file whose format has no place for it, in a file beside it: `samples.csv.json` of `samples.csv`."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from difftool.errors import BadFile, printable
from difftool.files import open_regular, parse_json, read_bounded, write_text

LARGEST = 2**18
"""The size in bytes up to which such a file is read."""


def path_beside(path: Path) -> Path:
    """Return the path of the file beside another one."""
    return path.with_name(f"{path.name}.json")


def write_beside(path: Path, text: str, *, overwrite: bool) -> None:
    """Write the text about a file beside it, with the digest of the file as it is now. Raises `DifftoolError`."""
    document = {"sha256": sha256_of(path), "record": json.loads(text)}
    write_text(path_beside(path), f"{json.dumps(document)}\n", overwrite=overwrite)


def text_beside(path: Path) -> str | None:
    """Return the text beside a file, or None without any. Raises `BadFile` if the file has changed since."""
    beside = path_beside(path)
    if not beside.is_file():
        return None
    try:
        document = parse_json(read_bounded(beside, LARGEST))
        if not isinstance(document, dict) or "record" not in document:
            return None
        if document.get("sha256") != sha256_of(path):
            raise ValueError(f"it was written with another {path.name} than this one")
    except (OSError, ValueError) as error:
        raise BadFile(f"{printable(str(beside))}: {error}") from None
    return json.dumps(document["record"])


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of the content of a file. Raises `OSError`."""
    sha = hashlib.sha256()
    with open_regular(path) as opened:
        while block := opened.read(2**20):
            sha.update(block)
    return sha.hexdigest()
