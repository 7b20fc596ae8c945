"""The guidances that `--guidance` names: scales and names joined by commas, such as `1,2,4` or `cfg,autoguidance`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import typer

from difftool.cli.command import given_names, given_values
from difftool.cli.flags import Group, make_from_flags
from difftool.components import Guidance
from difftool.errors import UsageError, printable
from difftool.options import options_of
from difftool.plugins.registry import given_guidance, registry


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
    scales = [word for word in words if _number_in(word) is not None]
    if scales and "scale" in values:
        raise UsageError(f"--guidance.scale: --guidance {scales[0]} is a scale already; give one of the two")
    made = [guidance_of(word, values) for word in words]
    return list(dict.fromkeys(made)) or [None]


def words_of(guidance: Guidance) -> str:
    """Return a guidance in words, such as `guidance 2` or `autoguidance small, scale 2`, for titles and axes."""
    return printable(guidance.words())


def words_in(text: str | None) -> list[str]:
    """Return the words that are joined by commas. Raises `UsageError` if one is empty."""
    words = [] if text is None else [word.strip() for word in text.split(",")]
    if not all(words):
        raise UsageError(f"--guidance: must be scales or names joined by commas, such as 1,2,4, not {text!r}")
    return words


def class_of(word: str) -> type[Guidance]:
    """Return the class of a name, or the one whose scale a number is. Raises `UsageError`."""
    return registry().of_kind(Guidance, word if _number_in(word) is None else Guidance.by_number)


def guidance_of(word: str, values: Mapping[str, Any]) -> Guidance:
    """Return the guidance of a name or a scale, with those of the options that it has. Raises `UsageError`."""
    cls, scale = class_of(word), _number_in(word)
    options = options_of(cls, values)
    made: Guidance = make_from_flags(cls, options) if scale is None else given_guidance(scale, options)
    return made


def _number_in(word: str) -> float | None:
    """Return the number that a word is, which may be NaN or infinite, or None."""
    try:
        return float(word)
    except ValueError:
        return None
