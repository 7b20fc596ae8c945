"""Commands of plugins, loaded when they are called."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping, Sequence
from os import PathLike
from typing import Any

import typer

from difftool.cli.command import component_command, given_values
from difftool.cli.console import help_text, result, result_json
from difftool.cli.flags import Group, make_from_flags
from difftool.components import Command
from difftool.errors import DifftoolError, PluginFailure, UnknownComponent, UsageError, blaming, describe, one_line
from difftool.options import suggestion
from difftool.plugins.discovery import Announced
from difftool.plugins.registry import registry


def unknown(name: str, known: Sequence[str]) -> DifftoolError:
    """That there is no such command, and why, where a plugin that was set aside is the reason, or may be."""
    text = f"there is no command {name!r}"
    if near := suggestion(name, known):
        return UsageError(f"{text}{near} (see 'difftool --help')")
    found = registry()
    try:
        found.get(Command.kind, name)
    except PluginFailure as failure:
        return failure
    except UnknownComponent:
        pass
    return UsageError(f"{text}{found.missing_note()} (see 'difftool --help')")


def loaded(name: str, one: Announced) -> Any:
    """The command itself. Raises `PluginFailure` where its package does not provide it."""
    try:
        cls = registry().of_kind(Command, f"{one.distribution}:{one.command}")
    except UnknownComponent:
        raise PluginFailure(
            f"{one.distribution} {one.version} announces the command {one.command!r} and does not provide it; "
            "see 'difftool plugins'"
        ) from None

    group = Group.of_command(cls)

    def run(ctx: typer.Context) -> None:
        component, what = make_from_flags(cls, given_values(ctx)[cls.kind], group), f"command {cls.name}"
        try:
            with blaming(what, OSError, refusal=UsageError):
                _print(component.run(), what)
        except OSError as error:
            if error.strerror or isinstance(error, BrokenPipeError):
                raise
            raise DifftoolError(f"{what} failed: {describe(error)}") from error  # a library's, which names no file

    def choose(_ctx: Any, _params: dict[str, Any], _args: list[str]) -> Sequence[Group]:
        return [group]

    return _typer_command(name, run, cls=component_command(choose), help=help_text(inspect.getdoc(cls) or ""))


def _typer_command(name: str, function: Any, **settings: Any) -> Any:
    app = typer.Typer(add_completion=False, rich_markup_mode="rich", pretty_exceptions_enable=False)
    app.command(name, **settings)(function)
    return typer.main.get_command(app)


def _print(value: object, what: str) -> None:
    """A result of `Command.run` on stdout; `what` is the command."""
    if isinstance(value, Mapping):
        try:
            result_json(value)
        except ValueError as error:  # NaN, or a mapping that holds itself
            raise DifftoolError(f"{what}: its result is no JSON: {one_line(error)}") from error
    elif isinstance(value, Iterable) and not isinstance(value, (str, bytes, PathLike)):
        for line in value:
            result(str(line))
    elif value is not None:
        result(str(value))
