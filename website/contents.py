"""The contents of the site, which are those of the indexes in the checkout: their tables name pages, in order.

docs/README.md has a table for each part. A page that it lists and that is called README.md is an index of its own.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from website.places import INDEX, ROOT, resolved

ROW = re.compile(r"^\| \[[^\]]+\]\((?P<target>[^)#\s]+)\) \|", re.MULTILINE)


@dataclass(frozen=True)
class Part:
    """A part of the contents: its title, and the files of its pages."""

    title: str
    files: tuple[str, ...]


def parts() -> list[Part]:
    """Return the parts of docs/README.md."""
    _, *sections = re.split(r"^## ", read(INDEX), flags=re.MULTILINE)
    return [Part(text.partition("\n")[0], tuple(rows(INDEX, text))) for text in sections]


def children(file: str) -> list[str]:
    """Return the files of the pages that an index lists; none for any other page."""
    return list(rows(file, read(file))) if file.endswith("/README.md") else []


def rows(file: str, text: str) -> Iterator[str]:
    """Yield the files that the rows of an index name. Links that lead nowhere are found when the page is written."""
    for match in ROW.finditer(text):
        if (found := resolved(file, match["target"])) is not None:
            yield found


def listed() -> list[str]:
    """Return the files of all pages in the contents, in their order."""
    files = [file for part in parts() for file in part.files]
    return [one for file in files for one in (file, *children(file))]


def unlisted() -> list[str]:
    """Return the pages that no index names."""
    known = {*listed(), INDEX}
    patterns = ("docs/*.md", "examples/tutorials/*/README.md", "examples/plugins/*/README.md")
    there = [path.relative_to(ROOT).as_posix() for pattern in patterns for path in sorted(ROOT.glob(pattern))]
    return [file for file in there if file not in known]


def read(file: str) -> str:
    return (ROOT / file).read_text(encoding="utf-8")


def tree(pages: list[str], caption: str = "") -> str:
    """Return what makes these pages the contents of the page that it stands on."""
    options = ["```{toctree}", ":hidden:", *([f":caption: {caption}"] if caption else [])]
    return "\n".join(["", *options, "", *(f"/{page}" for page in pages), "```", ""])
