"""The description for package indexes: the README without what only leads somewhere in a checkout.

An index shows the text alone, so pictures go, and a link to a file becomes the name of that file, which the source
distribution holds.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface

PICTURE = re.compile(r"^(?:!\[[^\]]*\]\([^)]*\)|<img[^>]*>|\s)+\n", re.MULTILINE)
RELATIVE_LINK = re.compile(r"\[([^\]]+)\]\((?!https?:|#)([^)#]+)[^)]*\)")


class Description(MetadataHookInterface):
    """Sets `readme` of the project."""

    def update(self, metadata: dict[str, Any]) -> None:
        text = (Path(self.root) / "README.md").read_text(encoding="utf-8")
        metadata["readme"] = {"content-type": "text/markdown", "text": description(text)}


def description(readme: str) -> str:
    """Return a README without pictures, and with the names of files in place of links to them."""
    return RELATIVE_LINK.sub(_named, PICTURE.sub("\n", readme))


def _named(link: re.Match[str]) -> str:
    words, path = link.groups()
    return f"`{path}`" if words == path else f"{words} (`{path}`)"
