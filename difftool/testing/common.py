"""The laws of every component: it is documented and cheap to import, and its options can be typed and stored."""

from __future__ import annotations

import contextlib
import functools
import io
import json
import os
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import typer

from difftool.cli.command import component_command, given_values
from difftool.cli.flags import Group
from difftool.cli.plugin_command import add_class
from difftool.cli.resources import resources_of
from difftool.components import Command, Component
from difftool.errors import InvalidOption, counted
from difftool.options import Details, Field, fields, make, plain
from difftool.plugins.validation import problem
from difftool.runs.config import dump_toml
from difftool.scripts import MODULE
from difftool.testing.laws import Failed, Skipped, require

HEAVY = ("torch", "numpy", "matplotlib")
"""Libraries that a component's module must not import."""
TIMEOUT = 120
"""Seconds that a new Python process may take to import a component."""
LARGEST = 1e6
"""Bounds beyond this only guard against absurd values, so they are not tried."""


def can_be_registered(component: Component) -> str:
    """The plugin loader accepts the component: its name and the types and defaults of its options are valid."""
    if reason := problem(type(component)):
        raise Failed(reason)
    return counted(len(fields(type(component))), "option")


def is_documented(component: Component) -> str:
    """The class has a docstring, whose first line `difftool list` shows, and every option has a help text."""
    summary = (type(component).__dict__.get("__doc__") or "").strip().partition("\n")[0]
    if not summary or summary.startswith(f"{type(component).__name__}("):  # the signature that dataclasses write
        raise Failed("it has no docstring")
    if undocumented := [f.name for f in fields(type(component)) if not f.details.help]:
        raise Failed(f"no help for {', '.join(undocumented)}: option(..., help=...)")
    return summary


def imports_nothing_heavy(component: Component) -> str:
    """A new Python process that imports the component's module has not imported torch, numpy or matplotlib."""
    module = type(component).__module__
    if module == "__main__" or module.startswith(MODULE):
        raise Skipped("it is defined in a script, which may import what it needs")
    done = _import_in_new_process(module, tuple(sys.path))
    if done.returncode:
        last_line = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise Skipped(f"{module} cannot be imported on its own ({last_line})")
    if heavy := [name for name in HEAVY if name in done.stdout.split()]:
        raise Failed(f"importing {module} imports {', '.join(heavy)}; import inside the methods that need it")
    return module


@functools.cache  # the components of a package often share a module
def _import_in_new_process(module: str, path: tuple[str, ...]) -> subprocess.CompletedProcess[str]:
    """Import a module in a new Python process, which prints the names of all imported modules.

    The current folder is on its path only if the module lies there, and then comes last, so that no file there takes
    the place of another module.
    """
    here = os.getcwd()
    others = [os.path.abspath(entry) for entry in path if entry and os.path.abspath(entry) != here]
    top = module.partition(".")[0]
    place = os.path.dirname(os.path.abspath(getattr(sys.modules.get(top), "__file__", None) or os.devnull))
    lies_here = place in (here, os.path.join(here, top))
    code = f"import sys, importlib; sys.path += {[here] if lies_here else []}; importlib.import_module({module!r})"
    return subprocess.run(
        [sys.executable, "-P", "-c", f"{code}; print(*sys.modules)"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(others)},
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
    )


def options_survive_the_command_line(component: Component) -> str:
    """The component's options, as they are and with each one changed in turn, are unchanged after they were typed as
    flags and parsed."""
    return _check_round_trip(component, _through_flags)


def options_survive_a_config_file(component: Component) -> str:
    """The component's options, as they are and with each one changed in turn, are unchanged after they were written to
    and read from the TOML of a run's `config.toml`."""
    return _check_round_trip(
        component, lambda one: make(type(one), tomllib.loads(dump_toml({"table": plain(one)}))["table"])
    )


def options_survive_a_model_file(component: Component) -> str:
    """The component's options, as they are and with each one changed in turn, are unchanged after they were written to
    and read from JSON, as the metadata of `model.safetensors` hold all but paths."""
    return _check_round_trip(
        component, lambda one: make(type(one), json.loads(json.dumps(plain(one), allow_nan=False)))
    )


LAWS = (
    can_be_registered,
    is_documented,
    imports_nothing_heavy,
    options_survive_the_command_line,
    options_survive_a_config_file,
    options_survive_a_model_file,
)


def _check_round_trip(component: Component, round_trip: Callable[[Component], Component]) -> str:
    choices = list(variants(component))
    for choice in choices:
        try:
            result = round_trip(choice)
        except InvalidOption as error:
            raise Failed(f"{choice} is refused: {error}") from None
        require(_comparable(result) == _comparable(choice), f"{choice} came back as {result}")
    return f"{counted(len(choices), 'choice')} unchanged"


def _comparable(component: Component) -> dict[str, Any]:
    """Return the values of all options, with absolute paths."""
    values = {f.name: getattr(component, f.name) for f in fields(type(component))}
    return {name: value.absolute() if isinstance(value, Path) else value for name, value in values.items()}


def variants(component: Component) -> Iterator[Component]:
    """Yield the component, then copies of it with one option changed, for every valid value that is tried."""
    yield component
    record = type(component)
    current = {f.name: getattr(component, f.name) for f in fields(record)}
    for f in fields(record):
        # no flag and no file can express None, unless it is the default
        examples = [*_examples(f, f.inner), *([None] if f.optional and f.default is not None else [])]
        for value in examples:
            try:
                if value != current[f.name]:
                    yield make(record, {**current, f.name: value})
            except InvalidOption:  # out of range, or in conflict with another option
                continue


def _examples(f: Field, kind: Any) -> list[Any]:
    """Return some values of a type that options can have."""
    if get_origin(kind) is Literal:
        return list(get_args(kind))
    if get_origin(kind) is tuple:
        items = _examples(f, f.scalar)
        length = 2 if Ellipsis in get_args(kind) else len(get_args(kind))
        return [tuple(items[i % len(items)] for i in range(length))]
    if kind in (int, float):
        return [kind(number) for number in (*_numbers_in_range(f.details), 0.1 if kind is float else 7)]
    examples: dict[Any, list[Any]] = {bool: [True, False], str: ["a b", "ü"], Path: [Path("a b/c").absolute()]}
    return examples[kind]


def _numbers_in_range(details: Details) -> list[float]:
    """Return a number inside the range of an option, and those of its ends that belong to it."""
    low = details.ge if details.ge is not None else details.gt
    high = details.le if details.le is not None else details.lt
    ends = [end for end in (details.ge, details.le) if end is not None and abs(end) < LARGEST]
    if high is None:
        return [(low or 0) + 3, *ends]
    return [high - 3 if low is None else (low + high) / 2, *ends]


def _through_flags(component: Component) -> Component:
    """Return what the command line makes of the flags that stand for the component's options. Raises `Failed`."""
    if isinstance(component, Command):
        return parsed(component)
    record, values = type(component), dict[str, Any]()

    group = Group.of(record)

    def command(ctx: typer.Context) -> None:
        values.update(given_values(ctx)[record.kind])

    app = typer.Typer(add_completion=False)
    app.command(cls=component_command(lambda *_: [group]))(command)
    _main(app, _typed(component, group))
    return make(record, values)


def parsed(command: Command, *arguments: str) -> Command:
    """Return what the command line makes of the options of a command and of further arguments, without running it.

    Raises `Failed`.
    """
    record, made = type(command), list[Command]()
    app = typer.Typer(add_completion=False)
    add_class(app, record.name, record, made.append)
    needed = [word for one in resources_of(record) for word in one.example(record)]
    _main(app, [*needed, *_typed(command, Group.of_command(record)), *arguments])
    return made[0]


def shown_help(record: type[Command]) -> str:
    """Return the help of a command. Raises `Failed`."""
    app = typer.Typer(add_completion=False, rich_markup_mode="rich")
    add_class(app, record.name, record)
    with contextlib.redirect_stdout(io.StringIO()) as out:
        _main(app, ["--help"])
    return out.getvalue()


def _main(app: typer.Typer, arguments: Sequence[str]) -> None:
    try:
        typer.main.get_command(app).main(list(arguments), prog_name="check", standalone_mode=False)
    except typer.TyperException as error:
        raise Failed(f"{' '.join(arguments)} is refused: {error.format_message()}") from None


def _typed(component: Component, group: Group) -> list[str]:
    """Return the command-line arguments that set all options of a component."""
    return [word for f in fields(type(component)) for word in _as_typed(group, f, getattr(component, f.name))]


def _as_typed(group: Group, f: Field, value: Any) -> list[str]:
    """Return the command-line arguments that set an option to a value."""
    if value is None:
        return []
    if f.inner is bool:
        return [f"--{group.prefix}{'' if value else 'no-'}{f.flag}"]
    flag, text = group.flag(f.name), ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
    return [f"{flag}={text}"] if flag.startswith("--") else [text]
