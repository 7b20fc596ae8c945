"""The gallery: the pictures of the checkout, each with the commands that made it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from website import contents
from website.commands import title_of
from website.markdown import fenced, plain
from website.places import MARKUP, PICTURES, Pages, page_of, resolved

PICTURE = re.compile(
    r"!\[(?P<text>[^\]]*)\]\((?P<file>[^)\s]+)\)|<img src=\"(?P<source>[^\"]+)\" alt=\"(?P<alt>[^\"]+)\""
)


@dataclass(frozen=True)
class Picture:
    """A picture, what a page says of it, and the commands before it."""

    file: str
    text: str
    commands: tuple[str, ...]


def pictures(file: str) -> Iterator[Picture]:
    """Yield the pictures of a page."""
    text = contents.read(file)
    blocks = [match for match in MARKUP.finditer(text) if match["language"] == "console"]
    for match in PICTURE.finditer(text):
        place = resolved(file, match["file"] or match["source"])
        if place is not None and place.endswith(PICTURES):
            name = place.rpartition("/")[2]
            said = match["text"] or match["alt"]
            before = [block["code"] for block in blocks if block.end() < match.start()]
            made = re.findall(r"`([^`]+)`", said) or _made(name, before)
            yield Picture(place, re.sub(r"[:,] `[^`]+`", "", said), tuple(made))


def _made(name: str, blocks: list[str]) -> list[str]:
    """Return the command before a picture that writes its file, or else the last one."""
    commands = [line for block in blocks for line in re.findall(r"^(?:\$ )?(\w(?:.*\\\n)*.*)", block, re.MULTILINE)]
    naming = [line for line in commands if re.search(rf"[ /]{re.escape(name)}\b", line)]
    return (naming or commands)[-1:]


def page(pages: Pages) -> str:
    """Return the gallery."""
    lines = ["# Gallery", "", "The pictures of these pages, with the command that drew each of them."]
    for file in ("README.md", *contents.listed()):
        found = [*pictures(file)] if file.endswith(".md") else []
        if found:
            lines += ["", f"## [{title_of(file)}](/{page_of(file)}.md)", "", "::::{container} gallery"]
            for one in found:
                lines += [
                    "",
                    ":::{container} picture",
                    f"![{plain(one.text)}]({pages.picture(one.file)})",
                    "",
                    plain(one.text),
                ]
                lines += ["", fenced("bash", "\n".join(one.commands))] if one.commands else []
                lines += [":::"]
            lines += ["::::"]
    return "\n".join(lines) + "\n"
