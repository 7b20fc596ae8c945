"""`difftool schema`: the JSON schema of config files, for editors."""

from __future__ import annotations

import json
from typing import Any, Literal, get_args, get_origin

import typer

from difftool.cli.console import result
from difftool.components import Component
from difftool.options import LONGEST_TUPLE, Field, Options, fields
from difftool.plugins.registry import registry
from difftool.runs.recipe import NOT_READ_BACK, companion_kinds, recipe_kinds
from difftool.settings import Training

DIALECT = "https://json-schema.org/draft/2020-12/schema"
BOUNDS = {"ge": "minimum", "gt": "exclusiveMinimum", "le": "maximum", "lt": "exclusiveMaximum"}
TYPES: dict[Any, str] = {bool: "boolean", int: "integer", float: "number"}


def schema() -> None:
    """Print the JSON schema of config files, with the options of every component that is installed.

    Editors complete and check config.toml with it: save it beside the file, and name it on the first line,
    #:schema ./difftool.schema.json
    """
    result(json.dumps(config_schema(), indent=2, ensure_ascii=False))


def add_to(app: typer.Typer) -> None:
    app.command("schema")(schema)


def config_schema() -> dict[str, Any]:
    """Return the JSON schema of the tables of a config file."""
    tables: dict[str, Any] = {kind: _component_table(base) for kind, base in recipe_kinds().items()}
    tables["training"] = _table("The settings of training.", fields(Training))
    for plural, base in companion_kinds().items():
        each = {name: _table(_summary(cls), fields(cls)) for name, cls in _classes(base).items()}
        tables[plural] = {"type": "object", "properties": each}
    recorded = {name: {"description": "A record that is not read back."} for name in NOT_READ_BACK}
    return {
        "$schema": DIALECT,
        "title": "A config file of difftool",
        "type": "object",
        "properties": {**tables, **recorded},
        "additionalProperties": False,
    }


def _component_table(base: type[Component]) -> dict[str, Any]:
    """Return the schema of a table that names one component of a kind, and holds options of this one alone."""
    cases = [
        {
            "if": {"properties": {"name": {"const": name}}, "required": ["name"]},
            "then": _table(_summary(cls), fields(cls), name={"const": name}),
        }
        for name, cls in _classes(base).items()
    ]
    names = {"description": f"The name of the {base.kind}.", "examples": list(_classes(base)), "type": "string"}
    return {"type": "object", "properties": {"name": names}, "allOf": cases}


def _classes(base: type[Component]) -> dict[str, type[Component]]:
    return {name: registry().get(base.kind, name) for name in registry().names(base.kind)}


def _summary(cls: type[Options]) -> str:
    return (cls.__doc__ or "").strip().partition("\n")[0]


def _table(summary: str, options: tuple[Field, ...], **others: Any) -> dict[str, Any]:
    table: dict[str, Any] = {
        "type": "object",
        "description": summary,
        "properties": {**others, **{f.name: _option(f) for f in options}},
        "additionalProperties": False,
    }
    if required := [f.name for f in options if f.required]:
        table["required"] = required
    return table


def _option(f: Field) -> dict[str, Any]:
    """Return the schema of an option. As everywhere, one value may stand for a list, and a number for a text."""
    one = _scalar(f)
    if get_origin(f.inner) is tuple:
        entries = get_args(f.inner)
        count = (
            {"maxItems": LONGEST_TUPLE} if Ellipsis in entries else {"minItems": len(entries), "maxItems": len(entries)}
        )
        kind: dict[str, Any] = {"anyOf": [{"type": "array", "items": one, **count}, one]}
    elif f.words:
        kind = {"anyOf": [one, {"enum": list(f.words)}]}
    else:
        kind = {"type": ["string", "integer"]} if f.inner is str else one
    if f.details.help:
        kind["description"] = f.details.help
    if not f.required and f.default is not None:
        kind["default"] = list(f.default) if isinstance(f.default, tuple) else f.default
        if not isinstance(kind["default"], (bool, int, float, str, list)):
            kind["default"] = str(kind["default"])
    return kind


def _scalar(f: Field) -> dict[str, Any]:
    if get_origin(f.scalar) is Literal:
        return {"enum": list(get_args(f.scalar))}
    bounds = {BOUNDS[name]: bound for name, bound in f.details.bounds.items()}
    return {"type": TYPES.get(f.scalar, "string"), **bounds}
