"""The place that each format of pictures has for a text about the file, as Pillow and matplotlib name it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from PIL.PngImagePlugin import PngInfo

KEY = "difftool"
"""The keyword of a text in a PNG file."""


def of_picture(path: Path, text: str) -> dict[str, Any]:
    """Return the arguments with which Pillow writes an ASCII text into a file of this suffix; none without a text."""
    suffix = path.suffix.lower()
    if not text:
        return {}
    if suffix in (".png", ".apng"):
        info = PngInfo()
        info.add_text(KEY, text)
        return {"pnginfo": info}
    if suffix == ".webp":
        return {"xmp": text.encode("ascii")}
    return {"comment": text.encode("ascii")} if suffix in (".gif", ".jpg", ".jpeg") else {}


def of_vectors(path: Path, text: str) -> dict[str, str | None]:
    """Return the metadata with which matplotlib writes a text into an SVG or PDF file, and no date."""
    place, date = {".svg": ("Description", "Date"), ".pdf": ("Subject", "CreationDate")}[path.suffix.lower()]
    return {date: None, **({place: text} if text else {})}
