"""`difftool list`: the components that commands take, with their options and packages."""

from __future__ import annotations

import inspect
from typing import Annotated, Any, Literal, get_args, get_origin

import typer
from rich.table import Column

from difftool.cli.console import add_row, new_table, note, result_json, stdout
from difftool.cli.flags import text_of
from difftool.cli.parameters import AsJson
from difftool.cli.resources import resources_of
from difftool.components import KINDS, Component
from difftool.errors import UsageError
from difftool.options import Field, fields, suggestion
from difftool.plugins.loading import Plugin
from difftool.plugins.registry import registry
from difftool.runs.config import installed_configs, summary_of

CONFIGS = "configs"
"""The word that lists the configs that come with difftool, beside the kinds of components."""


def _plurals() -> list[str]:
    return [*(base.plural() for base in KINDS.values()), CONFIGS]


def listing(
    kind: Annotated[
        str | None,
        typer.Argument(metavar="[KIND]", help=f"One of {', '.join(_plurals())}.", autocompletion=_plurals),
    ] = None,
    json: AsJson = False,
) -> None:
    """List the components that commands can be given, with their options, or the installed configs."""
    if kind == CONFIGS:
        _list_configs(json=json)
        return
    kinds = [base for base in KINDS.values() if kind in (None, base.kind, base.plural())]
    if not kinds:
        plurals = _plurals()
        similar = suggestion(str(kind), plurals)
        raise UsageError(f"there is no kind {kind!r}{similar}; the kinds are {', '.join(plurals)}")
    found = {
        base.plural(): {name: registry().get(base.kind, name) for name in registry().names(base.kind)} for base in kinds
    }
    if json:
        result_json({plural: {n: _as_json(cls) for n, cls in classes.items()} for plural, classes in found.items()})
        return
    console = stdout()
    for plural, classes in found.items():
        name_column, package = Column("name", style="cyan", no_wrap=True), Column("package", no_wrap=True)
        table = new_table(name_column, "what it is", "options", package, title=plural)
        for name, cls in classes.items():
            others = (one.flag + (f"={one.default_name}" if one.default_name else "") for one in resources_of(cls))
            options = ", ".join((*others, *(f.flag + _default(f) for f in fields(cls))))
            owner = _owner(cls)
            add_row(table, name, _summary(cls), options, owner.label)
        console.print(table, "")
    if registry().set_aside:
        note(registry().missing_note().removeprefix("; "))


def _list_configs(*, json: bool) -> None:
    summaries = {name: summary_of(path) for name, path in installed_configs().items()}
    if json:
        result_json({CONFIGS: summaries})
        return
    table = new_table(Column("name", style="cyan", no_wrap=True), "what it is", title=CONFIGS)
    for name, summary in summaries.items():
        add_row(table, name, summary)
    stdout().print(table, "")
    note("train one by its name: difftool train --config NAME")


def add_to(app: typer.Typer) -> None:
    app.command("list")(listing)


def _summary(component: type[Component]) -> str:
    return (inspect.getdoc(component) or "").partition("\n")[0]


def _owner(component: type[Component]) -> Plugin:
    owner = registry().owner(component)
    assert owner is not None
    return owner


def _default(f: Field) -> str:
    """Return `=` and the default of an option; nothing for one that is off, or worked out, unless it is given."""
    if f.required:
        return "=required"
    return "" if f.default is None else f"={text_of(f.default)}"


def _type(f: Field) -> str:
    word = "|".join(get_args(f.scalar)) if get_origin(f.scalar) is Literal else f.scalar.__name__
    return f"list of {word}" if get_origin(f.inner) is tuple else word


def _as_json(component: type[Component]) -> dict[str, Any]:
    owner = _owner(component)
    return {
        "summary": _summary(component),
        "package": owner.distribution,
        "version": owner.version,
        "options": {
            one.flag: {
                "type": one.what,
                "default": one.default_name,
                "otherwise": None,
                "required": False,
                "range": None,
                "help": one.help,
            }
            for one in resources_of(component)
        }
        | {
            f.flag: {
                "type": _type(f),
                "default": None if f.required else f.default,
                "otherwise": f.details.otherwise or None,
                "required": f.required,
                "range": f.details.range or None,
                "help": f.details.help,
            }
            for f in fields(component)
        },
    }
