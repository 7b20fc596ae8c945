"""Component options as command-line flags: `--backbone unet` names a component, `--backbone.dim 64` sets its option.

The fields of records become a synthetic signature of `Annotated[T, typer.Option(...)]`, which Typer compiles, since the
constructor of its options is private. Values are only read here; `difftool.options.make` checks them, as it does for
files.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import typer

from difftool.cli.console import help_text
from difftool.components import Command, Component, suggestion_attribute
from difftool.errors import InvalidOption, UsageError
from difftool.options import LONGEST_TUPLE, Field, Options, dashed, fields, make
from difftool.plugins.registry import registry

NOUNS: Mapping[Any, str] = {int: "a whole number", float: "a number"}
METAVARS: Mapping[Any, str] = {int: "INT", float: "FLOAT", str: "TEXT", Path: "PATH"}
OFF = "__off"
"""The end of the parameter name of a switch `--no-x`."""


@dataclass(frozen=True)
class Group:
    """Records whose options a command takes: one component, several of a kind, or the settings of the command."""

    key: str
    """The key of the values on the command line: the kind of the component, or the name of the settings."""
    records: tuple[type[Options], ...]
    panel: str
    """The title of the options in the help."""
    prefix: str = ""
    """The beginning of each flag, such as `backbone.`."""
    defaults: Mapping[str, object] = field(default_factory=dict)
    """Defaults that differ from the fields' own: a config file's, or those that suit a network."""
    positionals: bool = False
    """Whether positional fields are arguments; otherwise they have flags like the others."""

    @classmethod
    def of(cls, *components: type[Component], defaults: Mapping[str, object] | None = None, key: str = "") -> Group:
        """Return the group of one or several components, their flags prefixed by the key, which is the kind unless
        given."""
        key, names = key or components[0].kind, ", ".join(c.name for c in components)
        return cls(key, components, f"{key.capitalize()}: {names}", f"{key}.", defaults or {})

    @classmethod
    def of_command(cls, command: type[Command]) -> Group:
        """Return the arguments of a command that is a component, without a prefix."""
        return cls(command.kind, (command,), "Options", positionals=True)

    def flag(self, name: str) -> str:
        """Return a field as the user types it."""
        matching = (f for record in self.records for f in fields(record) if f.name == name)
        if self.positionals and any(f.details.positional for f in matching):
            return dashed(name).upper()
        return f"--{self.prefix}{dashed(name)}"

    def parameter(self, name: str) -> str:
        """Return the name of an option among the parameters of a command."""
        return f"{self.key.replace('-', '_')}__{name}"


# --- from records to the options of a command ------------------------------------------------------------------------


def compile_options(groups: Iterable[Group]) -> list[Any]:
    """Return the options of all groups as a Typer command can hold them."""
    parameters = []
    for group in groups:
        unique: dict[str, Field] = {}
        for f in (f for record in group.records for f in fields(record)):
            unique.setdefault(f.name, f)
        for f in unique.values():
            parameters += _switches(group, f) if f.inner is bool else [_parameter(group, f)]
    return _typer_options(parameters)


@dataclass(frozen=True)
class Choice:
    """An option `--KEY NAME` that chooses a component by its name."""

    key: str
    """The kind of the component, or the name of the field that it goes to."""
    base: type[Component]
    note: str = ""
    """A note on the component that is taken where none is named, or on the lack of one."""
    help: str = ""
    """The text of the help; if empty, the first line that describes the kind."""
    panel: str = "Components"

    @property
    def parameter(self) -> str:
        """The name of the option among the parameters of a command."""
        return self.key.replace("-", "_") + "__"


def choices_of(kinds: Mapping[str, type[Component]], panels: Mapping[str, str] | None = None) -> list[Choice]:
    """Return the options `--KIND NAME` of these kinds, each in its panel or under "Components"."""
    notes = {kind: _default_name(base, kinds.values()) for kind, base in kinds.items()}
    panels = {kind: (panels or {}).get(kind, Choice.panel) for kind in kinds}
    return [Choice(kind, base, notes[kind], panel=panels[kind]) for kind, base in kinds.items()]


def compile_names(choices: Iterable[Choice]) -> list[Any]:
    """Return the options that choose components by their names as a Typer command can hold them."""
    parameters = []
    for choice in choices:
        base = choice.base
        text = choice.help or (inspect.getdoc(base) or "").partition("\n")[0]
        option = typer.Option(
            f"--{choice.key}",
            metavar="NAME",
            autocompletion=names_of(base.kind),
            help=help_text(f"{text} May be given several times." if base.several else text, choice.note),
            rich_help_panel=choice.panel,
            show_default=False,
        )
        parameters.append(_optional(choice.parameter, list[str] if base.several else str, option))
    return _typer_options(parameters)


def _default_name(base: type[Component], others: Iterable[type[Component]]) -> str:
    """Return a note on the component of a kind that is taken beside those of other kinds."""
    suggesting = [other.kind for other in others if hasattr(other, suggestion_attribute(base))]
    if suggesting:
        return f"default: suits the {' and '.join(suggesting)}"
    return f"default: {base.default}" if base.default else ""


def names_of(kind: str) -> Callable[[str], list[str]]:
    """Return the shell completion of a component's name."""

    def complete(incomplete: str) -> list[str]:
        before, comma, word = incomplete.rpartition(",")  # of names joined by commas, the last one
        return [before + comma + name for name in registry().names(kind) if name.startswith(word)]

    return complete


def _parameter(group: Group, f: Field) -> inspect.Parameter:
    annotation, extra = _typed(f)
    default = _default(group, f)
    positional = f.details.positional and group.positionals
    required = "" if positional else "required"  # Typer notes it at an argument itself
    note = f"default: {default}" if default else required if f.required else ""
    name, text = group.parameter(f.name), help_text(f.details.help, note)
    if not positional:
        flags = [f"--{group.prefix}{f.flag}", *([f.details.short] if f.details.short else [])]
        return _keyword(group, name, annotation, flags, text, **extra)
    argument = typer.Argument(help=text, show_default=False, **{**extra, "metavar": f.flag.upper()})
    if not f.required:
        return _optional(name, annotation, argument)
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=Annotated[annotation, argument])


def _typed(f: Field) -> tuple[Any, dict[str, Any]]:
    """Return the type of an option as Typer knows it, and its metavar and parser."""
    if get_origin(f.inner) is Literal:
        return f.inner, {}
    convert: Any = f.scalar if f.scalar in (int, float, Path) else str
    if get_origin(f.inner) is tuple:
        plural = NOUNS.get(f.scalar, "a word").partition(" ")[2] + "s"
        split, examples = (expanded, "1,2,4 or 0..3") if f.scalar is int else (_split, "1,2,4")
        parser = _parser(
            lambda text: tuple(map(convert, split(text))), f"{plural} joined by commas, such as {examples}"
        )
    elif f.inner in (int, float):
        expected = " or ".join([NOUNS[f.inner], *f.words])
        parser = _parser(lambda text: text if text in f.words else convert(text), expected)
    else:
        return f.inner, {"metavar": _metavar(f)}
    return str, {"metavar": _metavar(f), "parser": parser}


def _split(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def expanded(text: str) -> list[str]:
    """Return the words joined by commas, with all whole numbers of a range such as `0..3`, its ends among them.

    A range has one number more than an option takes at most, if it is longer. Raises `ValueError` for one that falls.
    """
    words = []
    for word in _split(text):
        first, dots, last = word.partition("..")
        if dots:
            a, b = int(first), int(last)
            if b < a:
                raise ValueError(f"{word} falls")
            words += [str(a + i) for i in range(min(b - a, LONGEST_TUPLE) + 1)]
        else:
            words.append(word)
    return words


def _parser(convert: Callable[[str], Any], expected: str) -> Callable[[str], Any]:
    """Return the parser of a value, whose error says what is expected."""

    def parse(text: str) -> Any:
        try:
            return convert(text)
        except ValueError:
            raise typer.BadParameter(f"must be {expected}, not {text!r}") from None

    return parse


def _switches(group: Group, f: Field) -> list[inspect.Parameter]:
    """Return `--x` and `--no-x`. The help shows only the one that changes the default, since both need two columns."""
    default = _default(group, f)
    on, off = (f"--{group.prefix}{f.flag}", f"--{group.prefix}no-{f.flag}")
    text, name = help_text(f.details.help, f"default: {default}" if default else ""), group.parameter(f.name)
    return [
        _keyword(group, name, bool, [on], text, hidden=default == "on"),
        _keyword(group, name + OFF, bool, [off], f"switch off: {text}", hidden=default != "on"),
    ]


def _keyword(group: Group, name: str, annotation: Any, flags: list[str], text: str, **extra: Any) -> inspect.Parameter:
    option = typer.Option(*flags, help=text, rich_help_panel=group.panel, show_default=False, **extra)
    return _optional(name, annotation, option)


def _optional(name: str, annotation: Any, parameter: Any) -> inspect.Parameter:
    kind = inspect.Parameter.KEYWORD_ONLY
    return inspect.Parameter(name, kind, default=None, annotation=Annotated[annotation | None, parameter])


def _default(group: Group, f: Field) -> str:
    """Return the default as the help shows it, one for each record where they differ."""
    if f.name in group.defaults:
        return text_of(group.defaults[f.name])
    found: dict[str, list[str]] = {}
    for record in group.records:
        for other in fields(record):
            if other.name == f.name and not other.required and other.default is not None:
                name = record.name if issubclass(record, Component) else ""
                found.setdefault(text_of(other.default), []).append(name)
    if len(found) == 1:
        return next(iter(found))
    return "; ".join(f"{', '.join(names)}: {value}" for value, names in found.items()) or f.details.otherwise


def text_of(value: object) -> str:
    """Return a value as the command line spells it."""
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, (tuple, list)):
        return ",".join(text_of(v) for v in value)
    return f"{value:g}" if isinstance(value, float) else str(value)


def _metavar(f: Field) -> str:
    word = "|".join(get_args(f.scalar)) if get_origin(f.scalar) is Literal else METAVARS.get(f.scalar, "TEXT")
    if get_origin(f.inner) is tuple:
        word = f"{word},..."
    word = "|".join([word, *f.words])
    return f"{word} {f.details.range}" if f.details.range else word


def _typer_options(parameters: list[inspect.Parameter]) -> list[Any]:
    """Let Typer compile a function of this signature, and return its options."""

    def stub(**_: Any) -> None: ...

    stub.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    stub.__annotations__ = {p.name: p.annotation for p in parameters}
    app = typer.Typer(add_completion=False)
    app.command()(stub)
    return [p for p in typer.main.get_command(app).params if "__" in (p.name or "")]


# --- from the values on a command line back to records ---------------------------------------------------------------


def take_values(groups: Iterable[Group], params: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the values given on the command line, by group, and remove them from `params`.

    Raises `UsageError` for a switch that is given as on and as off.
    """
    values: dict[str, dict[str, Any]] = {}
    for group in groups:
        names = {f.name for record in group.records for f in fields(record)}
        found = {name: value for name in names if (value := params.pop(group.parameter(name), None)) is not None}
        off = {name: False for name in names if params.pop(group.parameter(name) + OFF, None)}
        if both := sorted(found.keys() & off.keys()):
            raise UsageError(f"{group.flag(both[0])}: give it as on or as off, not both")
        values[group.key] = found | off
    return values


def take_names(choices: Iterable[Choice], params: dict[str, Any]) -> dict[str, Any]:
    """Return the names given by `--KEY NAME`, by key, and remove them from `params`."""
    names = {choice.key: params.pop(choice.parameter, None) for choice in choices}
    return {key: name for key, name in names.items() if name not in (None, [], ())}


def split_names(given: Iterable[str], flag: str, example: str) -> list[str]:
    """Return names that were given one by one or joined by commas, each once. Raises `UsageError`."""
    names = [word.strip() for text in given for word in text.split(",")]
    if not all(names):
        raise UsageError(f"{flag}: must be names joined by commas, such as {example}")
    return [*dict.fromkeys(names)]


def flag_of(record: type[Options], name: str) -> str:
    """Return the flag of a field as the user types it; without a field, the kind and name of the component."""
    if not issubclass(record, Component):
        return f"--{dashed(name)}"
    return f"--{record.kind}.{dashed(name)}" if name else f"{record.kind} {record.name}"


def make_from_flags(record: type[Any], values: Mapping[str, object], group: Group | None = None) -> Any:
    """Call `options.make`, and name the option in an error as the user typed it."""
    try:
        return make(record, values)
    except InvalidOption as error:
        where = group.flag(error.field) if group is not None and error.field else flag_of(record, error.field)
        raise InvalidOption(error.field, error.reason, where=where) from None
