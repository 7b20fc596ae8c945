"""The guidances that `--guidance` names: scales and names joined by commas, such as `1,2,4` or `cfg,autoguidance`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import typer

from difftool.cli.command import given_names, given_values
from difftool.cli.flags import Group, make_from_flags
from difftool.components import Guidance
from difftool.errors import UsageError, counted, listed, printable
from difftool.options import options_of
from difftool.plugins.discovery import is_number
from difftool.plugins.registry import given_guidance, registry

NAMED = 4
"""The largest number of guidances that words name."""


def guidance_groups(names: Mapping[str, Any]) -> list[Group]:
    """Return the options of the guidances that the command line names, if it names any. Raises `UsageError`."""
    classes = [class_of(word) for word in words_in(names.get(Guidance.kind))]
    return [Group.of(*dict.fromkeys(classes))] if classes else []


def guidances(ctx: typer.Context) -> list[Guidance | None]:
    """Return a guidance for each word of `--guidance`, or None alone without the flag. Raises `UsageError`.

    The options on the command line apply to all guidances that have them.
    """
    words = words_in(given_names(ctx).get(Guidance.kind))
    values = given_values(ctx).get(Guidance.kind, {})
    scales = [word for word in words if is_number(word)]
    if scales and "scale" in values:
        raise UsageError(f"--guidance.scale: --guidance {scales[0]} is a scale already; give one of the two")
    made = [guidance_of(word, values) for word in words]
    return list(dict.fromkeys(made)) or [None]


def words_of(guidance: Guidance) -> str:
    """Return a guidance in words, such as `guidance 2` or `autoguidance small, scale 2`, for titles and axes."""
    return printable(guidance.words())


def name_of(guidance: Guidance | None) -> str:
    """Return the name of a guidance under the heading `guidance`: `2`, `autoguidance small, scale 2` or `none`."""
    return "none" if guidance is None else words_of(guidance).removeprefix("guidance ")


def words_of_several(guidances: Sequence[Guidance | None]) -> str:
    """Return guidances in words: `guidance 2`, `guidance 1, 2 and 4` or `5 guidances`; "" for none."""
    several = len(guidances) > 1
    if not several:
        return "".join(words_of(guidance) for guidance in guidances if guidance is not None)
    names = [name_of(guidance) for guidance in guidances]
    if len(names) > NAMED or any("," in name for name in names):
        return counted(len(names), "guidance")
    return f"guidance {listed(names)}"


def words_in(text: str | None) -> list[str]:
    """Return the words that are joined by commas. Raises `UsageError` if one is empty."""
    words = [] if text is None else [word.strip() for word in text.split(",")]
    if not all(words):
        raise UsageError(f"--guidance: must be scales or names joined by commas, such as 1,2,4, not {text!r}")
    return words


def class_of(word: str) -> type[Guidance]:
    """Return the class of a name, or the one whose scale a number is. Raises `UsageError`."""
    return registry().of_kind(Guidance, Guidance.by_number if is_number(word) else word)


def guidance_of(word: str, values: Mapping[str, Any]) -> Guidance:
    """Return the guidance of a name or a scale, with those of the options that it has. Raises `UsageError`."""
    cls = class_of(word)
    options = options_of(cls, values)
    made: Guidance = given_guidance(float(word), options) if is_number(word) else make_from_flags(cls, options)
    return made
