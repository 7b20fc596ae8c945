"""Options of a record -> options of a command: `--backbone.dim`, in a help panel of their own.

The fields of the chosen components become a synthetic signature of `Annotated[T, typer.Option(...)]`, which Typer
compiles; options are never built by hand, since their constructor is private to Typer. Values are checked by
`difftool.options`, as they are for files: here they are only read.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import typer

from difftool.cli.console import help_text
from difftool.components import Command, Component
from difftool.errors import InvalidOption
from difftool.options import Field, Options, fields, make, spelled

NOUNS: Mapping[Any, str] = {int: "a whole number", float: "a number"}
OFF = "__off"
"""Ends the parameter name of the switch `--no-x`."""
WORDS: Mapping[Any, str] = {int: "INT", float: "FLOAT", str: "TEXT", Path: "PATH"}


@dataclass(frozen=True)
class Group:
    """Records whose options a command takes: one chosen component, several of a kind, or the command's settings."""

    key: str
    """Where the values given are found afterwards: the kind of a component, or the name of the settings."""
    records: tuple[type[Options], ...]
    panel: str
    prefix: str = ""
    defaults: Mapping[str, object] = field(default_factory=dict)
    """Defaults that differ from the fields' own: a config file's, or those that suit a network."""
    positionals: bool = False
    """Whether positional fields are arguments; else they have flags like the others."""

    @classmethod
    def of(cls, *components: type[Component], defaults: Mapping[str, object] | None = None) -> Group:
        """The group of one or several components of a kind, their flags behind the kind."""
        kind, names = components[0].kind, ", ".join(c.name for c in components)
        return cls(kind, components, f"{kind.capitalize()}: {names}", f"{kind}.", defaults or {})

    @classmethod
    def of_command(cls, command: type[Command]) -> Group:
        """The arguments of a command that is a component: its own, without the kind before them."""
        return cls(command.kind, (command,), "Options", positionals=True)

    def flag(self, name: str) -> str:
        """A field as the user types it."""
        taken = (f for record in self.records for f in fields(record) if f.name == name)
        positional = self.positionals and any(f.details.positional for f in taken)
        return spelled(name).upper() if positional else f"--{self.prefix}{spelled(name)}"


def identifier(group: Group, name: str) -> str:
    """The parameter name of an option inside a command."""
    return f"{group.key}__{name}"


def compile_options(groups: Iterable[Group]) -> list[Any]:
    """The options of all groups as parameters that a Typer command can hold."""
    parameters = []
    for group in groups:
        seen: set[str] = set()
        for record in group.records:
            for f in fields(record):
                if f.name not in seen:
                    seen.add(f.name)
                    parameters += _switches(group, f) if f.inner is bool else [_parameter(group, f)]
    return _typer_parameters(parameters)


def given(groups: Iterable[Group], params: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The values given on the command line, by group; they are taken out of `params`."""
    values: dict[str, dict[str, Any]] = {}
    for group in groups:
        names = {f.name for record in group.records for f in fields(record)}
        found = {name: params.pop(identifier(group, name), None) for name in names}
        found |= {name: False for name in names if params.pop(identifier(group, name) + OFF, None)}
        values[group.key] = {name: value for name, value in found.items() if value is not None}
    return values


def flag_of(record: type[Options], field_name: str) -> str:
    """The flag of a field as the user types it; without a field, the component's kind and name."""
    if not issubclass(record, Component):
        return f"--{spelled(field_name)}"
    return f"--{record.kind}.{spelled(field_name)}" if field_name else f"{record.kind} {record.name}"


def own(record: type[Options], values: Mapping[str, object]) -> dict[str, object]:
    """Those of the values that are options of the record: several components of a kind share theirs by name."""
    names = {f.name for f in fields(record)}
    return {name: value for name, value in values.items() if name in names}


def make_from_flags(record: type[Any], values: Mapping[str, object], group: Group | None = None) -> Any:
    """`validation.make`, its error named as the user typed the option: with a group, as that spells it."""
    try:
        return make(record, values)
    except InvalidOption as error:
        where = group.flag(error.field) if group is not None and error.field else flag_of(record, error.field)
        raise InvalidOption(error.field, error.reason, where=where) from None


def _parameter(group: Group, f: Field) -> inspect.Parameter:
    flag, default = f"--{group.prefix}{f.flag}", _default(group, f)
    flags = [flag, f.details.short] if f.details.short else [flag]
    annotation: Any = f.inner
    extra: dict[str, Any] = {"metavar": _metavar(f)}
    if get_origin(f.inner) is tuple:
        annotation, extra["parser"] = str, _tuple_parser(f)
    elif f.inner in (int, float):
        annotation, extra["parser"] = str, _number_parser(f)
    elif get_origin(f.inner) is Literal:
        del extra["metavar"]
    fallback = "required" if f.required and not default else f"default: {default}" if default else ""
    name, text = identifier(group, f.name), help_text(f.details.help, fallback)
    if f.details.positional and group.positionals:
        return _positional(name, annotation, f, text, **extra)
    return _keyword(group, name, annotation, flags, text, **extra)


def _switches(group: Group, f: Field) -> list[inspect.Parameter]:
    """`--x` and `--no-x`; the help shows the one that changes something, for both take the room of two columns."""
    default = _default(group, f)
    on, off = (f"--{group.prefix}{f.flag}", f"--{group.prefix}no-{f.flag}")
    text, name = help_text(f.details.help, f"default: {default}" if default else ""), identifier(group, f.name)
    return [
        _keyword(group, name, bool, [on], text, hidden=default == "on"),
        _keyword(group, name + OFF, bool, [off], f"switch off: {text}", hidden=default != "on"),
    ]


def _keyword(group: Group, name: str, annotation: Any, flags: list[str], text: str, **extra: Any) -> inspect.Parameter:
    option = typer.Option(*flags, help=text, rich_help_panel=group.panel, show_default=False, **extra)
    return _optional(name, annotation, option)


def _positional(name: str, annotation: Any, f: Field, text: str, **extra: Any) -> inspect.Parameter:
    """A parameter without a flag; one that must be given is asked for by Typer, whose usage line then says so."""
    extra["metavar"] = f.flag.upper()
    argument = typer.Argument(help=text, show_default=False, **extra)
    if not f.required:
        return _optional(name, annotation, argument)
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=Annotated[annotation, argument])


def _optional(name: str, annotation: Any, parameter: Any) -> inspect.Parameter:
    kind = inspect.Parameter.KEYWORD_ONLY
    return inspect.Parameter(name, kind, default=None, annotation=Annotated[annotation | None, parameter])


def _default(group: Group, f: Field) -> str:
    """The default as the help shows it; one for each record where they differ."""
    if f.name in group.defaults:
        return shown(group.defaults[f.name])
    found: dict[str, list[str]] = {}
    for record in group.records:
        for other in fields(record):
            if other.name == f.name and not other.required and other.default is not None:
                name = record.name if issubclass(record, Component) else ""
                found.setdefault(shown(other.default), []).append(name)
    if len(found) == 1:
        return next(iter(found))
    return "; ".join(f"{', '.join(names)}: {value}" for value, names in found.items()) or f.details.otherwise


def shown(value: object) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, (tuple, list)):
        return ",".join(shown(v) for v in value)
    return f"{value:g}" if isinstance(value, float) else str(value)


def _metavar(f: Field) -> str:
    word = "|".join(get_args(f.scalar)) if get_origin(f.scalar) is Literal else WORDS.get(f.scalar, "TEXT")
    if get_origin(f.inner) is tuple:
        word = f"{word},..."
    if f.details.zero:
        word = f"{word}|{f.details.zero}"
    return f"{word} {f.details.range}" if f.details.range else word


def _number_parser(f: Field) -> Callable[[str], Any]:
    convert, zero = f.inner, f.details.zero

    def parse(text: str) -> Any:
        try:
            return text if zero and text == zero else convert(text)
        except ValueError:
            raise typer.BadParameter(f"must be {NOUNS[convert]}{zero and f' or {zero}'}, not {text!r}") from None

    return parse


def _tuple_parser(f: Field) -> Callable[[str], Any]:
    convert: Any = f.scalar if f.scalar in (int, float, Path) else str
    each = NOUNS.get(f.scalar, "a word").partition(" ")[2] + "s"

    def parse(text: str) -> Any:
        try:
            return tuple(convert(part.strip()) for part in text.split(",") if part.strip())
        except ValueError:
            raise typer.BadParameter(f"must be {each} joined by commas, such as 1,2,4, not {text!r}") from None

    return parse


def _typer_parameters(parameters: list[inspect.Parameter]) -> list[Any]:
    """Let Typer compile a function of this signature, and take its options."""

    def stub(**_: Any) -> None: ...

    stub.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    stub.__annotations__ = {p.name: p.annotation for p in parameters}
    app = typer.Typer(add_completion=False)
    app.command()(stub)
    return [p for p in typer.main.get_command(app).params if "__" in (p.name or "")]
