"""The gallery: the pictures of the checkout, each with the commands that made it."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass

from website import contents
from website.commands import title_of
from website.markdown import fenced, plain
from website.places import MARKUP, PICTURES, Pages, page_of, resolved

PICTURE = re.compile(
    r"!\[(?P<text>[^\]]*)\]\((?P<file>[^)\s]+)\)|<img src=\"(?P<source>[^\"]+)\" alt=\"(?P<alt>[^\"]+)\""
)

COMMAND = re.compile(r"^(?:\$ )?(\w(?:\"[^\"]*\"|\\\n|.)*)", re.MULTILINE)
"""A command of a block, with the lines that it goes on in: after a backslash, or within quotes."""


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
    shown = tuple((match["file"] or match["source"]).rpartition("/")[2] for match in PICTURE.finditer(text))
    for match in PICTURE.finditer(text):
        place = resolved(file, match["file"] or match["source"])
        if place is not None and place.endswith(PICTURES):
            name = place.rpartition("/")[2]
            said = match["text"] or match["alt"]
            before = [block["code"] for block in blocks if block.end() < match.start()]
            made = re.findall(r"`([^`]+)`", said) or _made(name, before, shown)
            yield Picture(place, re.sub(r"[:,] `[^`]+`", "", said), tuple(made))


def _made(name: str, blocks: list[str], shown: tuple[str, ...]) -> list[str]:
    """Return the command that writes a picture, or else the last before it, unless that writes another one shown."""
    commands = [line for block in blocks for line in COMMAND.findall(block) if not line.startswith("python -c")]
    naming = [line for line in commands if re.search(rf"[ /]{re.escape(name)}\b", line)]
    last = [line for line in commands[-1:] if not line.endswith(shown)]
    return [re.sub(r" +#.*", "", line) for line in (naming or last)[-1:]]


def folded(command: str) -> str:
    """Return a command in lines that fit below a picture: broken before options, where a browser breaks within them."""
    words = re.sub(r" *\\\n *", " ", command)
    options = re.sub(r"( -\S+) (?!-)", "\\1\N{NO-BREAK SPACE}", words)
    lines = textwrap.wrap(options, 34, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)
    return " \\\n".join(lines).replace("\N{NO-BREAK SPACE}", " ")


def page(pages: Pages) -> str:
    """Return the gallery."""
    lines = ["# Gallery", "", "The pictures of these pages, each with the command that drew it where its page has one."]
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
                lines += ["", fenced("bash", "\n".join(map(folded, one.commands)))] if one.commands else []
                lines += [":::"]
            lines += ["::::"]
    return "\n".join(lines) + "\n"
