"""`difftool list`: the components there are, with their options, and where they come from."""

from __future__ import annotations

import inspect
from typing import Annotated, Any, Literal, get_args, get_origin

import typer
from rich.markup import escape
from rich.table import Table

from difftool.cli.console import note, result_json, stdout
from difftool.cli.flags import text_of
from difftool.components import KINDS, Component
from difftool.errors import UsageError, printable
from difftool.options import Field, fields, suggestion
from difftool.plugins.registry import Registry, registry


def listing(
    kind: Annotated[
        str | None,
        typer.Argument(metavar="[KIND]", help=f"One of {', '.join(_plurals())}.", autocompletion=lambda: _plurals()),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """List the components that commands can be given, with their options."""
    kinds = [_singular(kind)] if kind else list(KINDS)
    found = registry()
    if json:
        result_json(
            {KINDS[k].plural(): {n: _component_json(found, found.get(k, n)) for n in found.names(k)} for k in kinds}
        )
        return
    console = stdout()
    for k in kinds:
        table = Table(
            title=KINDS[k].plural(), title_justify="left", title_style="bold", box=None, pad_edge=False, expand=False
        )
        table.add_column("name", style="cyan", no_wrap=True)
        table.add_column("what it is")
        table.add_column("options")
        table.add_column("package", no_wrap=True)
        for name in found.names(k):
            component = found.get(k, name)
            options = ", ".join(f"{f.flag}={_default(f)}" for f in fields(component))
            row = (name, _summary(component), options, _package(found, component))
            table.add_row(*(escape(printable(cell)) for cell in row))
        console.print(table)
        console.print()
    if found.set_aside:
        note(found.missing_note().removeprefix("; "))


def add_to(app: typer.Typer) -> None:
    app.command("list")(listing)


def _plurals() -> list[str]:
    return [base.plural() for base in KINDS.values()]


def _singular(kind: str) -> str:
    for known, base in KINDS.items():
        if kind in (known, base.plural()):
            return known
    plurals = _plurals()
    raise UsageError(f"there is no kind {kind!r}{suggestion(kind, plurals)}; the kinds are {', '.join(plurals)}")


def _summary(component: type[Component]) -> str:
    return (inspect.getdoc(component) or "").partition("\n")[0]


def _package(found: Registry, component: type[Component]) -> str:
    owner = found.owner(component)
    assert owner is not None
    return f"{owner.distribution} {owner.version}"


def _default(f: Field) -> str:
    if f.required:
        return "required"
    return "auto" if f.default is None else text_of(f.default)


def _type(f: Field) -> str:
    word = "|".join(get_args(f.scalar)) if get_origin(f.scalar) is Literal else f.scalar.__name__
    return f"list of {word}" if get_origin(f.inner) is tuple else word


def _component_json(found: Registry, component: type[Component]) -> dict[str, Any]:
    owner = found.owner(component)
    assert owner is not None
    return {
        "summary": _summary(component),
        "package": owner.distribution,
        "version": owner.version,
        "options": {
            f.flag: {
                "type": _type(f),
                "default": None if f.required else f.default,
                "required": f.required,
                "range": f.details.range or None,
                "help": f.details.help,
            }
            for f in fields(component)
        },
    }
