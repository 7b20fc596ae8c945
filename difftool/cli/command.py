"""A Typer command whose options depend on the components chosen on its own command line.

`parse_args` parses twice: once leniently, with a throw-away context, to learn the choices (a command's `choose`), and
once strictly with the options of what was chosen. Help and completion go through the same door. Typer calls such
command-level customisation unsupported, so all of it stays in this file and Typer's version is capped and tested.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import typer
from typer.core import TyperCommand

from difftool.cli.console import help_text, results_alone
from difftool.cli.flags import Group, compile_options, given
from difftool.components import KINDS, Component
from difftool.errors import UsageError
from difftool.options import fields, suggestion
from difftool.plugins.registry import registry

GROUPS, OPTIONS, GIVEN = "difftool.groups", "difftool.cli.flags", "difftool.given"

C = TypeVar("C", bound=Component)

Choose = Callable[[dict[str, Any], list[str]], Sequence[Group]]
"""(leniently parsed parameters, leftover arguments) -> the groups of options the command takes."""


class ComponentCommand(TyperCommand):
    """Base of the classes that `component_command` makes."""

    choose: Choose

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        groups = self._groups(ctx, args)
        ctx.meta[GROUPS], ctx.meta[OPTIONS] = groups, compile_options(groups)
        try:
            rest = super().parse_args(ctx, args)
        except typer.TyperException as error:
            raise explained(error, self.get_params(ctx)) from None
        ctx.meta[GIVEN] = given(groups, ctx.params)
        return rest

    def invoke(self, ctx: Any) -> Any:
        with results_alone():
            return super().invoke(ctx)

    def get_params(self, ctx: Any) -> list[Any]:
        *own, help_option = super().get_params(ctx)
        return [*own, *ctx.meta.get(OPTIONS, ()), help_option]

    def _groups(self, ctx: Any, args: list[str]) -> Sequence[Group]:
        """What the lenient first pass finds chosen. Under --help and completion a wrong choice is no error yet."""
        peek = self.context_class(
            self,
            info_name=ctx.info_name,
            parent=ctx.parent,
            resilient_parsing=True,
            ignore_unknown_options=True,
            allow_extra_args=True,
        )
        with peek:
            super().parse_args(peek, list(args))
        try:
            return type(self).choose(peek.params, args)
        except UsageError:
            if ctx.resilient_parsing:
                return ()
            raise


def component_command(choose: Choose) -> type[ComponentCommand]:
    """The command class to pass as `cls=`."""
    return type("ChosenComponentCommand", (ComponentCommand,), {"choose": staticmethod(choose)})


def given_values(ctx: typer.Context) -> dict[str, dict[str, Any]]:
    """The component options and settings given on this command line, by group."""
    values: dict[str, dict[str, Any]] = ctx.meta[GIVEN]
    return values


def explained(error: typer.TyperException, params: Sequence[Any]) -> Exception:
    """An unknown option, told with the nearest ones or with the component it belongs to; other errors unchanged."""
    name = getattr(error, "option_name", None)
    if name is None or "no such option" not in str(error).lower():
        return error
    if owner := _owner(name):
        return UsageError(owner)
    known = [flag for p in params for flag in (*p.opts, *p.secondary_opts)]
    prefix, dot, _ = name.partition(".")
    if dot:  # compare what follows the dot, or every `--backbone.x` looks alike
        tails = {k.partition(".")[2]: k for k in known if k.startswith(prefix + ".")}
        near = suggestion(name.partition(".")[2], tails)
        for tail, full in tails.items():
            near = near.replace(f"'{tail}'", full)
        return UsageError(f"there is no option {name}{near or _offer(prefix, tails)}")
    return UsageError(f"there is no option {name}{_near(name, known)}")


def _near(name: str, known: Sequence[str]) -> str:
    """The nearest options, or those of components that are called so; the dashes that all begin with say nothing."""
    if same := [flag for flag in known if flag.partition(".")[2] == name.lstrip("-")]:
        return f"; did you mean {' or '.join(same)}?"
    near = suggestion(name.lstrip("-"), [flag.lstrip("-") for flag in known if flag.startswith("--")])
    return re.sub(r"'(\S+)'", r"--\1", near)


def _offer(prefix: str, tails: dict[str, str]) -> str:
    return f"; {prefix.removeprefix('--')} takes {', '.join(sorted(tails.values()))}" if tails else ""


def _owner(option: str) -> str | None:
    """`--backbone.depth` while another backbone is chosen: say whose option it is."""
    kind, dot, rest = option.removeprefix("--").partition(".")
    if not dot or kind not in KINDS:
        return None
    spellings = {rest, rest.removeprefix("no-")}
    owners = [c for c in registry().all_of(KINDS[kind]) if any(f.flag in spellings for f in fields(c))]
    if not owners:
        return None
    names, kinds = ", ".join(map(registry().reference, owners)), f"{kind}s" if len(owners) > 1 else kind
    return f"{option} is an option of the {kinds} {names}; choose it with {owners[0].chosen_by()}"


def names_of(kind: str) -> Callable[[str], list[str]]:
    """Shell completion of a component's name."""

    def complete(incomplete: str) -> list[str]:
        return [name for name in registry().names(kind) if name.startswith(incomplete)]

    return complete


def name_option(kind: str, text: str, default: str, *, panel: str | None = None) -> Any:
    """The option that names a component; `default` says in the help what is taken without it."""
    return typer.Option(
        f"--{kind}",
        metavar="NAME",
        autocompletion=names_of(kind),
        help=help_text(text, f"default: {default}"),
        rich_help_panel=panel,
    )


def named(base: type[C], name: str | None, default: str) -> type[C]:
    """The component class of that name, or the default where none is given; an empty name is no name."""
    return registry().of_kind(base, default if name is None else name)
