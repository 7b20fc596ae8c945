"""Commands of plugins, loaded when they are called."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping, Sequence
from os import PathLike

import typer

from difftool.cli.command import component_command, given_values
from difftool.cli.console import help_text, result, result_json
from difftool.cli.flags import Group, make_from_flags
from difftool.components import Command
from difftool.errors import DifftoolError, PluginFailure, UnknownComponent, UsageError, blaming, describe, one_line
from difftool.options import suggestion
from difftool.plugins.discovery import Announced
from difftool.plugins.registry import registry


def unknown_command(name: str, known: Sequence[str]) -> DifftoolError:
    """Return the error for an unknown command, which mentions a plugin that was set aside if it may be the cause."""
    text = f"there is no command {name!r}"
    if similar := suggestion(name, known):
        return UsageError(f"{text}{similar} (see 'difftool --help')")
    try:
        registry().get(Command.kind, name)
    except PluginFailure as failure:
        return failure
    except UnknownComponent:
        pass
    return UsageError(f"{text}{registry().missing_note()} (see 'difftool --help')")


def add_to(app: typer.Typer, name: str, announced: Announced) -> None:
    """Add the command that a package announces. Raises `PluginFailure` if the package does not provide it."""
    try:
        cls = registry().of_kind(Command, f"{announced.distribution}:{announced.command}")
    except UnknownComponent:
        raise PluginFailure(
            f"{announced.distribution} {announced.version} announces the command {announced.command!r} but does not "
            "provide it; see 'difftool plugins'"
        ) from None
    group = Group.of_command(cls)

    @app.command(name, cls=component_command(lambda *_: [group]), help=help_text(inspect.getdoc(cls) or ""))
    def run(ctx: typer.Context) -> None:
        component, what = make_from_flags(cls, given_values(ctx)[cls.kind], group), f"command {cls.name}"
        try:
            with blaming(what, OSError, refusal=UsageError):
                _print_result(component.run(), what)
        except OSError as error:
            if error.strerror or isinstance(error, BrokenPipeError):
                raise
            raise DifftoolError(f"{what} failed: {describe(error)}") from error  # a library's own, which names no file


def _print_result(value: object, what: str) -> None:
    """Print what `Command.run` returned on stdout: a mapping as JSON, other iterables one entry a line."""
    if isinstance(value, Mapping):
        try:
            result_json(value)
        except ValueError as error:  # NaN, or a mapping that holds itself
            raise DifftoolError(f"{what}: its result cannot be written as JSON: {one_line(error)}") from error
    elif isinstance(value, Iterable) and not isinstance(value, (str, bytes, PathLike)):
        for line in value:
            result(str(line))
    elif value is not None:
        result(str(value))
