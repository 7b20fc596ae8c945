"""A Typer command whose options depend on the components that its own command line names.

`parse_args` parses twice: leniently, with a context of its own, to learn which components are named, and then strictly
with their options. Help and completion go the same way. Typer calls such customisation of commands unsupported, so all
of it stays in this file, and Typer's version is capped and tested.
"""

from __future__ import annotations

import functools
import os
import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, TypeVar

import typer
from typer.core import TyperCommand

from difftool.cli.console import results_alone
from difftool.cli.flags import (
    Choice,
    Group,
    choices_of,
    compile_names,
    compile_options,
    make_from_flags,
    take_names,
    take_values,
)
from difftool.cli.help import whole_names
from difftool.components import KINDS, Component, kinds_of
from difftool.errors import UsageError, printable
from difftool.options import fields, suggestion
from difftool.plugins.registry import registry

OPTIONS, VALUES, NAMES = "difftool.options", "difftool.values", "difftool.names"

C = TypeVar("C", bound=Component)

Choose = Callable[[Any, dict[str, Any], list[str]], Sequence[Group]]
"""(context, leniently parsed parameters with component names by kind, arguments) -> the groups of options."""


class ComponentCommand(TyperCommand):
    """The base of the classes that `component_command` makes."""

    choose: Choose
    choices: ClassVar[Sequence[Choice]]
    """The components that the command takes by `--KEY NAME`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        groups = self._groups(ctx, args)
        ctx.meta[OPTIONS] = compile_options(groups)
        try:
            if not ctx.resilient_parsing:
                refuse_repeated(self.make_parser(ctx).parse_args(list(args))[2])
            rest = super().parse_args(ctx, args)
        except typer.TyperException as error:
            raise _advised(error, ctx.info_name) or explained(error, self.get_params(ctx), self.choices) from None
        ctx.meta[VALUES], ctx.meta[NAMES] = take_values(groups, ctx.params), take_names(self.choices, ctx.params)
        return rest

    def invoke(self, ctx: Any) -> Any:
        with results_alone():
            return super().invoke(ctx)

    def format_help(self, ctx: Any, formatter: Any) -> None:
        with whole_names():
            super().format_help(ctx, formatter)

    def get_params(self, ctx: Any) -> list[Any]:
        *own, help_option = super().get_params(ctx)
        return [*self.names, *own, *ctx.meta.get(OPTIONS, ()), help_option]

    @functools.cached_property
    def names(self) -> list[Any]:
        """The options that choose components by their names. Parsing asks for them several times."""
        return compile_names(self.choices)

    def _groups(self, ctx: Any, args: list[str]) -> Sequence[Group]:
        """Return the options of the components that the lenient pass finds. Help and completion ignore a wrong name."""
        lenient = self.context_class(
            self,
            info_name=ctx.info_name,
            parent=ctx.parent,
            resilient_parsing=True,
            ignore_unknown_options=True,
            allow_extra_args=True,
        )
        with lenient:
            if not ctx.resilient_parsing:  # before files that the command line names are read
                refuse_repeated(self.make_parser(lenient).parse_args(list(args))[2])
            super().parse_args(lenient, list(args))
        names = take_names(self.choices, lenient.params)
        try:
            return type(self).choose(ctx, {**lenient.params, **names}, args)
        except UsageError:
            if ctx.resilient_parsing:
                return ()
            raise


def component_command(
    choose: Choose, *, command: str = "", panels: Mapping[str, str] | None = None, choices: Sequence[Choice] = ()
) -> type[ComponentCommand]:
    """Return the command class to pass as `cls=`.

    It takes the names of the kinds that are declared for `command`, in their panels of the help, and other choices.
    """
    body = {"choose": staticmethod(choose), "choices": (*choices_of(kinds_of(command), panels), *choices)}
    return type("ChosenComponentCommand", (ComponentCommand,), body)


def given_values(ctx: typer.Context) -> dict[str, dict[str, Any]]:
    """Return the component options and settings given on the command line, by group."""
    values: dict[str, dict[str, Any]] = ctx.meta[VALUES]
    return values


def given_names(ctx: typer.Context) -> dict[str, Any]:
    """Return the components named on the command line, by kind."""
    names: dict[str, Any] = ctx.meta[NAMES]
    return names


def given_component(ctx: typer.Context, base: type[C]) -> C:
    """Return the component that the command line names, or the kind's default. Raises `UsageError`."""
    component: C = make_from_flags(named(base, given_names(ctx)), given_values(ctx)[base.kind])
    return component


def named(base: type[C], names: Mapping[str, Any]) -> type[C]:
    """Return the component class that the command line names, or the kind's default. Raises `UsageError`."""
    return registry().of_kind(base, names.get(base.kind, base.default))


def _advised(error: typer.TyperException, command: str | None) -> UsageError | None:
    """Return an error that says what `difftool train WORD` may have meant: a folder, a run, or a name."""
    found = re.search(r"unexpected extra argument\S* \((\S+)\)", str(error))
    if command != "train" or found is None:
        return None
    word = printable(found[1])
    if os.path.isfile(os.path.join(found[1], "config.toml")):
        meaning = f"to continue this run: --resume {shlex.quote(word)}"
    elif os.path.isdir(found[1]):
        meaning = f"to learn a folder of images: --dataset image-folder --dataset.path {shlex.quote(word)}"
    elif word.endswith(".toml"):
        meaning = f"to take the settings of this file: --config {shlex.quote(word)}"
    elif kinds := [base for base in KINDS.values() if word in registry().names(base.kind) and base.flag]:
        meaning = f"did you mean {kinds[0].flag} {word}?"
    else:
        return None
    return UsageError(f"got unexpected extra argument {word!r}; {meaning}")


def refuse_repeated(given: Sequence[Any]) -> None:
    """Refuse an option that takes one value and is given more often, since only the last value would count.

    `given` are the parameters as often as they were given. Flags without an opposite may be repeated. Raises
    `UsageError`.
    """
    for param in set(given):
        takes_one = param.param_type_name == "option" and not param.multiple
        if takes_one and given.count(param) > 1 and (param.secondary_opts or not param.is_flag):
            flags = " or ".join((*param.opts, *param.secondary_opts))
            raise UsageError(f"{flags}: given {given.count(param)} times, but it takes one value")


def explained(error: typer.TyperException, params: Sequence[Any], choices: Sequence[Choice] = ()) -> Exception:
    """Return an error about an unknown option that names similar ones or the option's owner; others as they are."""
    name = getattr(error, "option_name", None)
    if name is None or "no such option" not in str(error).lower():
        return error
    if owner := _owner(name, choices):
        return UsageError(owner)
    flags = [flag for p in params for flag in (*p.opts, *p.secondary_opts)]
    kind, dot, rest = name.removeprefix("--").partition(".")
    if same := [flag for flag in flags if not dot and flag.partition(".")[2] == kind]:
        return UsageError(f"there is no option {name}; did you mean {' or '.join(same)}?")
    start, tail = (f"--{kind}.", rest) if dot else ("--", kind)  # beside their common start, whole flags look alike
    own = sorted(flag for flag in flags if flag.startswith(start))
    similar = re.sub(r"'(\S+)'", rf"{start}\1", suggestion(tail, [flag.removeprefix(start) for flag in own]))
    options = f"; {kind} takes {', '.join(own)}" if dot and own else ""
    return UsageError(f"there is no option {name}{similar or options}")


def _owner(option: str, choices: Sequence[Choice]) -> str | None:
    """Return a message on the owner of an option such as `--backbone.depth` if another backbone is chosen."""
    key, dot, rest = option.removeprefix("--").partition(".")
    base = next((choice.base for choice in choices if choice.key == key), KINDS.get(key))
    if not dot or base is None:
        return None
    spellings = {rest, rest.removeprefix("no-")}
    owners = [c for c in registry().all_of(base) if any(f.flag in spellings for f in fields(c))]
    if not owners:
        return None
    kind, names = f"{base.kind}s" if len(owners) > 1 else base.kind, ", ".join(map(registry().reference, owners))
    way = owners[0].chosen_by() if key == base.kind else f"--{key} {owners[0].name}"
    return f"{option} is an option of the {kind} {names}; choose it with {way}"
