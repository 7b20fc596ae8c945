"""Tables of options, as the help of the command line has them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from rich.text import Text

from website.markdown import plain, table

DEFAULT = re.compile(r"\s*(?:\[dim\])?\\?\[(?:default: (?P<default>.*?)|(?P<required>required))\](?:\[/dim\])?")
RANGE = re.compile(r"\s+\[(?P<range>[^\[\]]*x[^\[\]]*)\]$")


def options_table(parameters: Iterable[Any], context: Any, links: Mapping[str, str] | None = None) -> str:
    """Return the table of parameters as Typer has them. `links` has pages about options by their flags."""
    rows = [row for one in parameters if (row := _row(one, context, links or {}))]
    shown = table(("option", "meaning", "default"), rows)
    return f":::{{container}} options\n{shown}\n:::" if rows else ""


def _row(parameter: Any, context: Any, links: Mapping[str, str]) -> tuple[str, ...] | None:
    if parameter.hidden or (record := parameter.get_help_record(context)) is None:
        return None
    flags, text = record
    value = parameter.display_type_rich(ctx=context) or ""
    default, required = "", ""
    if (found := DEFAULT.search(text)) is not None:
        default, required = found["default"] or "", found["required"] or ""
        text = text[: found.start()] + text[found.end() :]
    if (found := RANGE.search(text)) is not None:
        value, text = f"{value} {found['range']}", text[: found.start()]
    if parameter.param_type_name == "argument":
        names, value = [flags.partition(" ")[0]], "PATH" if value == "<path>" else ""
        required = "required" if parameter.required else required
    else:
        names = [*parameter.opts, *parameter.secondary_opts]
    shown = ", ".join(f"[`{name}`]({links[name]})" if name in links else f"`{name}`" for name in names)
    typed = f"{shown}<br>{of}" if (of := _value(value)) else shown
    meaning = plain(Text.from_markup(text).plain)
    return typed, f"{meaning} **required**" if required else meaning, _default(default)


def _default(text: str) -> str:
    """Return a default: a value as code, and words as they are."""
    return plain(text) if " " in text or not text else f"`{text}`"


def _value(text: str) -> str:
    """Return the type of an option: the words to choose from, or its kind, and its range."""
    if text in ("", "<bool>"):
        return ""
    text = re.sub(r"^<(\w+)(?: range)?>", lambda match: match[1].upper(), text)  # of an option that Typer describes
    words, _, bounds = text.partition(" ")
    choices = [f"`{choice}`" for choice in words.removesuffix(",...").strip("<>").split("|")]
    shown = (" or " if len(choices) < 3 else ", ").join(choices)
    several = ", joined by commas" if words.endswith(",...") else ""
    for sign, name in (("<=", "≤"), (">=", "≥"), ("<", "<"), (">", ">")):
        bounds = bounds.replace(sign, f"\u00a0{name}\u00a0")
    return shown + several + (f", {plain(bounds)}" if bounds else "")
