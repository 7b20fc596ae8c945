"""Commands of plugins, loaded when they are called."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from os import PathLike
from typing import Any

import typer

from difftool.cli.command import component_command, given_values
from difftool.cli.console import help_text, result, result_json
from difftool.cli.flags import Group, make_from_flags
from difftool.cli.outputs import Output, check_different
from difftool.cli.resources import resources_of
from difftool.components import Command
from difftool.errors import DifftoolError, PluginFailure, UnknownComponent, UsageError, blaming, describe, one_line
from difftool.options import dashed, suggestion
from difftool.plugins.discovery import Announced
from difftool.plugins.registry import registry
from difftool.resources import resources


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
    add_class(app, name, cls)


def add_class(
    app: typer.Typer, name: str, cls: type[Command], called: Callable[[Command], object] | None = None
) -> None:
    """Add a command, which calls `called` with the instance of its class instead of running it, if that is given."""
    group, extra = Group.of_command(cls), resources_of(cls)

    def choose(_ctx: typer.Context, params: Mapping[str, Any], _args: Sequence[str]) -> list[Group]:
        return [group, *(one for resource in extra for one in resource.groups(cls, params))]

    def run(ctx: typer.Context, **_: Any) -> None:
        values = {resource.name: resource.value(cls, ctx) for resource in extra}
        command: Command = make_from_flags(cls, {**given_values(ctx)[cls.kind], **values}, group)
        if called is not None:
            called(command)
            return
        for resource in extra:
            resource.check(cls, ctx)
        check_different({f"--{dashed(k)}": value for k, value in values.items() if isinstance(value, Output)})
        _run(command, as_json=ctx.params.get("json"))

    choices = [choice for resource in extra for choice in resource.choices(cls)]
    parameters = {name: one for resource in extra for name, one in resource.parameters(cls).items()}
    context = inspect.Parameter("ctx", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=typer.Context)
    run.__signature__ = inspect.Signature([context, *parameters.values()])  # type: ignore[attr-defined]
    run.__annotations__ = {"ctx": typer.Context, **{name: one.annotation for name, one in parameters.items()}}
    app.command(name, cls=component_command(choose, choices=choices), help=help_text(inspect.getdoc(cls) or ""))(run)


def _run(command: Command, *, as_json: bool | None) -> None:
    """Run a command and print its result. `as_json` is None for a command that writes no files of its own."""
    what = f"command {command.name}"
    try:
        with blaming(what, OSError, refusal=UsageError):
            _print_result(_with_files(command, command.run(), as_json=as_json), what)
    except OSError as error:
        if error.strerror or isinstance(error, BrokenPipeError):
            raise
        raise DifftoolError(f"{what} failed: {describe(error)}") from error  # a library's own, which names no file


def _with_files(command: Command, value: object, *, as_json: bool | None) -> object:
    """Return a result as it is to be printed, if the command has outputs: the files written, or with --json all facts.

    A result that is no mapping is printed in place of the files.
    """
    if as_json is None or not (as_json or value is None or isinstance(value, Mapping)):
        return value
    values = [vars(command)[name] for name in resources(type(command))]
    files = [str(one.path) for one in values if isinstance(one, Output) and one.written]
    if not as_json:
        return files
    return {"files": files, **(value if isinstance(value, Mapping) else {} if value is None else {"result": value})}


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
