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
from difftool.errors import PluginFailure, UnknownComponent, UsageError, blaming
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
        name, command, rest = super().resolve_command(ctx, args)
        if name is None or name in self.commands or command is None:
            return name, command, rest
        return name, _loaded(name, announced(self.commands)[name]), rest


def _announcement() -> None:
    """Stands for a command that is not loaded."""


def _words(one: Announced) -> str:
    if one.distribution == BUILT_IN:
        return "Built in; its --help says more."
    return f"{one.summary or 'Of a package'} ({one.distribution} {one.version})"


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
        component = make_from_flags(cls, given_values(ctx)[cls.kind], group)
        try:
            with blaming(f"command {cls.name}", OSError):
                _print(component.run())
        except ValueError as error:
            raise UsageError(f"command {cls.name}: {error}") from None

    def choose(_params: dict[str, Any], _args: list[str]) -> Sequence[Group]:
        return [group]

    return _typer_command(name, run, cls=component_command(choose), help=help_text(inspect.getdoc(cls) or ""))


def _typer_command(name: str, function: Any, **settings: Any) -> Any:
    app = typer.Typer(add_completion=False, rich_markup_mode="rich", pretty_exceptions_enable=False)
    app.command(name, **settings)(function)
    return typer.main.get_command(app)


def _print(value: object) -> None:
    """A result of `Command.run` on stdout."""
    if isinstance(value, Mapping):
        result_json(value)
    elif isinstance(value, Iterable) and not isinstance(value, (str, bytes, PathLike)):
        for line in value:
            result(str(line))
    elif value is not None:
        result(str(value))
