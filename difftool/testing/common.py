"""Laws of every component: it is found, says what it is, costs nothing to import, and its options survive every way."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import typer

from difftool.cli.command import component_command, given_values
from difftool.cli.flags import Group
from difftool.components import Command, Component
from difftool.errors import InvalidOption
from difftool.options import Field, fields, make, plain
from difftool.plugins.validation import problem
from difftool.runs.config import dump_toml
from difftool.testing.laws import Broken, NotAsked

HEAVY = ("torch", "numpy", "matplotlib")
"""What importing a component must leave unimported."""
PATIENCE = 120
LARGE = 1e6
"""Bounds beyond this are no values that somebody would give."""


def can_be_offered(component: Component) -> str:
    """Its name, options, types and defaults are such that it is not set aside when the plugin is loaded."""
    if reason := problem(type(component)):
        raise Broken(reason)
    return counted(len(fields(type(component))), "option")


def says_what_it_is(component: Component) -> str:
    """It has a docstring, whose first line is shown by `difftool list`, and every option has a help text."""
    summary = (type(component).__dict__.get("__doc__") or "").strip().partition("\n")[0]
    if not summary or summary.startswith(f"{type(component).__name__}("):  # what dataclasses write
        raise Broken("it has no docstring")
    if silent := [f.name for f in fields(type(component)) if not f.details.help]:
        raise Broken(f"no help for {', '.join(silent)}: option(..., help=...)")
    return summary


def imports_nothing_heavy(component: Component) -> str:
    """A fresh Python that imports its module has not imported torch, numpy or matplotlib."""
    module = type(component).__module__
    if module == "__main__":
        raise NotAsked("it is defined in a script")
    code = f"import sys, importlib; importlib.import_module({module!r}); print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["it ended"])[-1]
        raise NotAsked(f"{module} cannot be imported by itself ({last})")
    if heavy := [name for name in HEAVY if name in done.stdout.split()]:
        raise Broken(f"importing {module} imports {', '.join(heavy)}; import inside the methods that need them")
    return module


def options_survive_the_command_line(component: Component) -> str:
    """It, and it with each option changed, comes back from the flags that a user would type."""
    return _survive(component, _through_flags)


def options_survive_a_config_file(component: Component) -> str:
    """It, and it with each option changed, comes back from the TOML of a run's `config.toml`."""
    return _survive(component, lambda one: _again(one, tomllib.loads(dump_toml({"table": plain(one)}))["table"]))


def options_survive_a_model_file(component: Component) -> str:
    """It, and it with each option changed, comes back from the JSON in the metadata of `model.safetensors`."""
    return _survive(component, lambda one: _again(one, json.loads(json.dumps(plain(one), allow_nan=False))))


LAWS = (
    can_be_offered,
    says_what_it_is,
    imports_nothing_heavy,
    options_survive_the_command_line,
    options_survive_a_config_file,
    options_survive_a_model_file,
)


def counted(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"


def variants(component: Component) -> Iterator[Component]:
    """The component, and it with one option changed at a time, as far as it takes the value."""
    yield component
    record = type(component)
    now = {f.name: getattr(component, f.name) for f in fields(record)}
    for f in fields(record):
        for value in _others(f, now[f.name]):
            try:
                yield make(record, {**now, f.name: value})
            except InvalidOption:  # out of its range, or refused together with the other options
                continue


def _survive(component: Component, way: Any) -> str:
    ones = list(variants(component))
    for one in ones:
        try:
            back = way(one)
        except InvalidOption as error:
            raise Broken(f"{one} is refused: {error}") from None
        if _settled(back) != _settled(one):
            raise Broken(f"{one} came back as {back}")
    return f"{counted(len(ones), 'choice')} came back"


def _settled(component: Component) -> dict[str, Any]:
    """Its values; a path is the same whichever folder it is seen from."""
    values = {f.name: getattr(component, f.name) for f in fields(type(component))}
    return {name: value.absolute() if isinstance(value, Path) else value for name, value in values.items()}


def _again(component: Component, values: dict[str, Any]) -> Component:
    return make(type(component), values)


def _others(f: Field, value: Any) -> list[Any]:
    """Values of its type other than its own; also None, which no flag and no file can say unless it is the default."""
    values = [*_values(f, f.inner), *([None] if f.optional and f.default is not None else [])]
    return [other for other in values if other != value]


def _values(f: Field, kind: Any) -> list[Any]:
    if get_origin(kind) is tuple:
        one = _values(f, f.scalar)
        length = 2 if Ellipsis in get_args(kind) else len(get_args(kind))
        return [tuple(one[i % len(one)] for i in range(length))] if one else []
    if get_origin(kind) is Literal:
        return list(get_args(kind))
    if kind in (int, float):
        d = f.details
        low = d.ge if d.ge is not None else d.gt
        high = d.le if d.le is not None else d.lt
        ends = [end for end in (d.ge, d.le) if end is not None and abs(end) < 1e6]
        middle = (
            (low + high) / 2 if low is not None and high is not None else (low or 0) + 3 if high is None else high - 3
        )
        return [kind(v) for v in (middle, *ends, 0.1 if kind is float else 7)]
    examples: dict[Any, list[Any]] = {bool: [True, False], str: ["a b", "ü"], Path: [Path("a b/c").absolute()]}
    return examples[kind]


def _through_flags(component: Component) -> Component:
    """What the command line makes of the flags that stand for the component's options."""
    record = type(component)
    group = Group.of_command(record) if issubclass(record, Command) else Group.of(record)
    given: dict[str, Any] = {}

    def command(ctx: typer.Context) -> None:
        given.update(given_values(ctx)[record.kind])

    app = typer.Typer(add_completion=False)
    app.command(cls=component_command(lambda *_: [group]))(command)
    arguments = [word for f in fields(record) for word in _typed(group, f, getattr(component, f.name))]
    try:
        typer.main.get_command(app).main(arguments, prog_name="check", standalone_mode=False)
    except typer.TyperException as error:
        raise Broken(f"{' '.join(arguments)} is refused: {error.format_message()}") from None
    return make(record, given)


def _typed(group: Group, f: Field, value: Any) -> list[str]:
    """The words that give an option this value."""
    if value is None:
        return []
    if f.inner is bool:
        return [f"--{group.prefix}{'' if value else 'no-'}{f.flag}"]
    flag, text = group.flag(f.name), ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
    return [f"{flag}={text}"] if flag.startswith("--") else [text]
