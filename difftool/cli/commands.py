"""Commands of plugins: named in the help, loaded when they are called."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping, Sequence
from os import PathLike
from typing import Any

import typer
from typer.core import TyperGroup

from difftool.cli.command import component_command, given_values
from difftool.cli.console import result, result_json
from difftool.components import Command
from difftool.errors import DifftoolError, PluginFailure, UnknownComponent, UsageError, blaming, said, told
from difftool.loading import BUILT_IN
from difftool.options import Group, help_text, make_from_flags
from difftool.plugins import Announced, announced, registry

PANEL = "Commands of plugins"


class Commands(TyperGroup):
    """difftool's own commands, and those that packages announce."""

    def list_commands(self, ctx: Any) -> list[str]:
        return [*super().list_commands(ctx), *announced(self.commands)]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        own = super().get_command(ctx, cmd_name)
        if own is not None or cmd_name not in (others := announced(self.commands)):
            return own
        return _typer_command(cmd_name, _announcement, help=help_text(_words(others[cmd_name])), rich_help_panel=PANEL)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        try:
            name, command, rest = super().resolve_command(ctx, args)
        except typer.TyperException as error:
            raise _unknown(args[0], error) from None
        if name is None or name in self.commands or command is None:
            return name, command, rest
        return name, _loaded(name, announced(self.commands)[name]), rest


def _unknown(name: str, error: typer.TyperException) -> Exception:
    """Why there is no such command, where a plugin that was set aside is the reason, or may be."""
    if name.startswith("-"):
        return error
    found = registry()
    try:
        found.get(Command.kind, name)
    except PluginFailure as failure:
        return failure
    except UnknownComponent:
        pass
    if (missing := found.missing_too()) and hasattr(error, "message"):
        error.message = f"{str(error.message).rstrip('.')}{missing}"
    return error


def _announcement() -> None:
    """Stands for a command that is not loaded."""


def _words(one: Announced) -> str:
    if one.distribution == BUILT_IN:
        return "Built in; its --help says more."
    package = f"{one.distribution} {one.version}".rstrip()
    return f"{one.summary or 'Of a package'} ({package})"


def _loaded(name: str, one: Announced) -> Any:
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
            with blaming(what, OSError):
                _print(component.run(), what)
        except ValueError as error:
            raise UsageError(f"{what}: {said(error)}") from None
        except OSError as error:
            if error.strerror or isinstance(error, BrokenPipeError):
                raise
            raise DifftoolError(f"{what} failed: {told(error)}") from error  # a library's, which names no file

    def choose(_params: dict[str, Any], _args: list[str]) -> Sequence[Group]:
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
            raise DifftoolError(f"{what}: its result is no JSON: {said(error)}") from error
    elif isinstance(value, Iterable) and not isinstance(value, (str, bytes, PathLike)):
        for line in value:
            result(str(line))
    elif value is not None:
        result(str(value))
