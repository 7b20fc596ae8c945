"""May this class be offered as a component? Runs no code of the component's, and imports nothing heavy."""

from __future__ import annotations

import functools
import itertools
import math
import re
import types
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import (
    TYPE_CHECKING,
    Any,
    ClassVar,
    Literal,
    Union,
    get_args,
    get_origin,
    get_type_hints,
)

from difftool.components import Backbone, Command, Component, Sampler, Writer
from difftool.errors import one_line
from difftool.options import Details, Field, _as_written, fields, suggestion
from difftool.plugins.discovery import is_name

if TYPE_CHECKING:
    pass

PROGRAM = ("--help", "--debug", "--no-plugins")
"""Flags that every command of difftool has."""

SCALARS = (bool, int, float, str, Path)


def problem(component: Any) -> str | None:
    """Why a component cannot be offered, or None. Runs no code of the component's, and imports nothing heavy."""
    if not isinstance(component, type) or not issubclass(component, Component):
        return f"{component!r} is not a component class"
    if not is_name(component.name):
        return f"{component.__name__}: name must be lower-case words joined by '-', not {component.name!r}"
    base = next(c for c in component.__mro__ if issubclass(c, Component) and c.__module__ == Component.__module__)
    if component.kind != base.kind:
        return f"{component.__name__}: kind must be left as {base.__name__} has it, {base.kind!r}"
    reasons = (reason for law in (_unfinished, _misclaimed, _misdeclared) if (reason := law(component, base)))
    return next((f"{component.kind} {component.name!r}: {reason}" for reason in reasons), None)


def _unfinished(component: type[Component], base: type[Component]) -> str | None:
    missing = sorted(_abstract(component))
    return f"{missing[0]}() is not defined" if missing else None


def _misclaimed(component: type[Component], base: type[Component]) -> str | None:
    """What the class says of itself, such as its suffixes, has the type that its base gives it."""
    key: Any = base
    for name, kind in _hints(key).items():
        if get_origin(kind) is not ClassVar:
            continue
        (due,), value = get_args(kind), getattr(component, name)
        if not _fits(value, due, Details()):
            return f"{name} must be {_worded(due)}, not {value!r}"
    return _missaid(component)


def _missaid(component: type[Component]) -> str | None:
    """What types alone do not say of a class's claims."""
    if issubclass(component, Writer):
        for suffix in component.suffixes:
            if suffix and not (re.fullmatch(r"\.[^./\\\s]+", suffix) and suffix == suffix.lower()):
                return f"suffixes must be such as '.jpg', in lower case, or '' for a folder, not {suffix!r}"
    if issubclass(component, Sampler) and component.default_steps is not None and component.default_steps < 1:
        return f"default_steps must be at least 1, not {component.default_steps}"
    if issubclass(component, Backbone):
        from difftool.settings import Training

        settings = {f.name: f for f in fields(Training)}
        for name, value in component.training_defaults.items():
            if name not in settings:
                return f"training_defaults: there is no setting {name!r}{suggestion(name, settings)}"
            written = _as_written(settings[name], value)
            given = tuple(written) if isinstance(written, list) else written
            if not _fits(given, settings[name].type, settings[name].details):
                return f"training_defaults: {name!r} cannot be {value!r}"
    return None


def _misdeclared(component: type[Component], base: type[Component]) -> str | None:
    """The options: their names, types, defaults and details are such that all commands can take them."""
    try:
        options = fields(component)
    except Exception as error:
        return f"its annotations do not resolve ({one_line(error)})"
    for f in options:
        if reason := _misoption(f, component, base):
            return f"option {f.name!r} {reason}"
    return _misarranged(options, component)


def _misoption(f: Field, component: type[Component], base: type[Component]) -> str | None:
    """What is wrong with one option by itself."""
    details = f.details
    for name, due in _hints(Details).items():
        if not _fits(getattr(details, name), due, Details()):
            return f"has {name}={getattr(details, name)!r}, which must be {_worded(due)}"
    if hasattr(base, f.name):
        return f"hides {base.__name__}.{f.name}"
    if not re.fullmatch(r"\w[\w-]*", f.flag):
        return "has no name that a flag can be made of"
    if not _allowed(f.type):
        return f"has a type that options cannot have: {f.type}{_instead(f.type)}"
    if not f.required and not _fits(f.default, f.type, details):
        due = f" ({details.range})" if details.range else ""
        return f"has a default that it refuses: {f.default!r}{due}"
    if component.kind != Command.kind and (details.positional or details.short):
        had = "is positional" if details.positional else f"has the short flag {details.short!r}"
        return f"{had}, and only commands have {'positional options' if details.positional else 'short flags'}"
    if details.short and (not re.fullmatch(r"-[A-Za-z]", details.short) or details.short == "-h"):
        return f"has the short flag {details.short!r}; it must be a dash and a letter, and -h asks for help"
    if details.positional and f.inner is bool:
        return "is positional and true or false; it must have a flag"
    return None


def _misarranged(options: Sequence[Field], component: type[Component]) -> str | None:
    """What is wrong with options beside each other, or beside those of the program."""
    owners = dict.fromkeys(PROGRAM if component.kind == Command.kind else (), "difftool")
    for f in options:
        for flag in _flags(f):
            if flag in owners:
                return f"option {f.name!r} has the flag {flag}, which {owners[flag]} has"
            owners[flag] = f"option {f.name!r}"
    positionals = [f for f in options if f.details.positional]
    for before, after in itertools.pairwise(positionals):
        if after.required and not before.required:
            return f"option {after.name!r} must be given and stands behind {before.name!r}, which need not"
    return None


def _flags(f: Field) -> Iterator[str]:
    """The flags of an option, but for the component's name before it."""
    if not f.details.positional:
        yield f"--{f.flag}"
        if f.inner is bool:
            yield f"--no-{f.flag}"
        if f.details.short:
            yield f.details.short


@functools.cache
def _hints(record: Any) -> dict[str, Any]:
    return get_type_hints(record)


def _worded(kind: Any) -> str:
    """A type as a reader of its error knows it."""
    return kind.__name__ if isinstance(kind, type) and not get_args(kind) else str(kind).replace("collections.abc.", "")


def _instead(kind: Any) -> str:
    """What to write instead of a type that somebody meant."""
    if get_origin(kind) in (list, set, frozenset, Sequence) and get_args(kind):
        return f"; write tuple[{getattr(get_args(kind)[0], '__name__', get_args(kind)[0])}, ...]"
    return ""


def _abstract(component: type[Component]) -> set[str]:
    return {
        name
        for base in component.__mro__
        for name, value in vars(base).items()
        if getattr(value, "__isabstractmethod__", False) and getattr(component, name) is value
    }


def _allowed(kind: Any) -> bool:
    origin, args = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        return len(args) == 2 and type(None) in args and all(a is type(None) or _allowed(a) for a in args)
    if origin is tuple:
        scalars = [a for a in args if a is not Ellipsis]
        return bool(scalars) and len(set(scalars)) == 1 and get_origin(scalars[0]) is not tuple and _allowed(scalars[0])
    if origin is Literal:
        return all(isinstance(a, str) for a in args)
    return kind in SCALARS


def _fits(value: Any, kind: Any, details: Details) -> bool:
    """Whether a default has its type and keeps its bounds (no pydantic: this runs for every component)."""
    origin, args = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        return value is None or any(_fits(value, a, details) for a in args if a is not type(None))
    if origin is tuple:
        right_length = Ellipsis in args or (isinstance(value, tuple) and len(value) == len(args))
        return isinstance(value, tuple) and right_length and all(_fits(v, args[0], details) for v in value)
    if origin is Mapping:
        return isinstance(value, Mapping) and all(
            _fits(k, args[0], details) and _fits(v, args[1], details) for k, v in value.items()
        )
    if origin is Literal:
        return value in args
    if kind in (int, float):
        if isinstance(value, bool) or not isinstance(value, (int, kind)) or not math.isfinite(value):
            return False
        return (
            (details.ge is None or value >= details.ge)
            and (details.gt is None or value > details.gt)
            and (details.le is None or value <= details.le)
            and (details.lt is None or value < details.lt)
        )
    return isinstance(value, kind)
