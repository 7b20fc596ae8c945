"""Texts of the code as Markdown."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Sequence

FLAG = re.compile(r"(?<![\w-])--[a-z][\w.-]*\w|(?<!\S)-[a-z]\b")


def plain(text: str) -> str:
    """Return a text as Markdown that shows it as it stands, but for code in backticks and flags, which become code."""
    parts = re.split(r"(`[^`\n]+`)", text)
    return "".join(part if i % 2 else _escaped(part) for i, part in enumerate(parts))


def _escaped(text: str) -> str:
    words, end = [], 0
    for match in FLAG.finditer(text):
        words += [re.sub(r"([\\*_<>\[\]`~$])", r"\\\1", text[end : match.start()]), f"`{match[0]}`"]
        end = match.end()
    return "".join([*words, re.sub(r"([\\*_<>\[\]`~$])", r"\\\1", text[end:])])


def paragraphs(doc: str | None) -> str:
    """Return a docstring as Markdown: paragraphs, lists, and indented lines as code."""
    blocks = re.split(r"\n\s*\n", inspect.cleandoc(doc or "").rstrip())
    return "\n\n".join(fenced("text", inspect.cleandoc(b)) if b.startswith("    ") else plain(b) for b in blocks)


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(map(_cell, line)) + " |" for line in lines)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def fenced(language: str, text: str) -> str:
    return f"```{language}\n{text.strip()}\n```"
