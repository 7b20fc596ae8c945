"""Checks of component classes, before they are offered. They run no code of the component and import nothing heavy."""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args, get_origin, get_type_hints

from difftool.components import KINDS, Command, Component
from difftool.errors import one_line
from difftool.options import Details, Field, alternatives, fields
from difftool.plugins.discovery import is_name, is_number
from difftool.resources import resources

PROGRAM_FLAGS = ("help", "debug", "no-plugins", "plugin")
"""Flags that every command of difftool has."""
SHARED = frozenset(("device", "overwrite", "json"))
"""Flags that several fields of a command may bring, which then stand for all of them."""
SCALARS = (bool, int, float, str, Path)


def problem(component: Any) -> str | None:
    """Return why a class cannot be offered as a component, or None."""
    if not isinstance(component, type) or not issubclass(component, Component):
        return f"{component!r} is not a component class"
    base = next((base for base in KINDS.values() if issubclass(component, base)), None)
    if base is None:
        return f"{component.__name__} derives from none of {', '.join(b.__name__ for b in KINDS.values())}"
    if not is_name(component.name):
        return f"{component.__name__}: name must be lower-case words joined by '-', not {component.name!r}"
    if is_number(component.name):
        return f"{component.__name__}: name must not be a number, as {component.name!r} is"
    if component.kind != base.kind:
        return f"{component.__name__}: kind must stay {base.kind!r}, as {base.__name__} declares it"
    reason = _unfinished(component) or _wrong_option(component, base) or _wrong_attribute(component, base)
    return f"{component.kind} {component.name!r}: {reason}" if reason else None


def abstract_methods(component: type[Component]) -> list[str]:
    """Return the names of the methods that a class still has to define."""
    return sorted(
        name
        for base in component.__mro__
        for name, value in vars(base).items()
        if getattr(value, "__isabstractmethod__", False) and getattr(component, name) is value
    )


def _unfinished(component: type[Component]) -> str | None:
    missing = abstract_methods(component)
    return f"{missing[0]}() is not defined" if missing else None


def _wrong_attribute(component: type[Component], base: type[Component]) -> str | None:
    """Compare class attributes, such as the suffixes of a writer, with the types that the base class declares."""
    key: Any = base
    for name, kind in _hints(key).items():
        if get_origin(kind) is ClassVar:
            (declared,), value = get_args(kind), getattr(component, name)
            if not _fits(value, declared, Details()):
                return f"{name} must be {_type_name(declared)}, not {value!r}"
    return None


def _wrong_option(component: type[Component], base: type[Component]) -> str | None:
    try:
        options = fields(component)
    except Exception as error:
        return f"its annotations do not resolve ({one_line(error)})"
    reasons = [(f.name, _option_problem(f, component, base)) for f in options]
    reasons += [(one.name, _resource_problem(one, component, base)) for one in resources(component).values()]
    return next((f"option {name!r} {reason}" for name, reason in reasons if reason), None)


def _resource_problem(one: Any, component: type[Component], base: type[Component]) -> str | None:
    """Return why a component cannot have this field for a component, a model or a file, or None."""
    if component.kind != Command.kind:
        return "holds a component, a model, a device or a file to write, which only commands can"
    if hasattr(base, one.name) or one.flag == Command.kind:
        return f"hides {base.__name__}.{one.name}"
    others = [f.flag for f in fields(component) if not f.details.positional]
    others += [flag for other in resources(component).values() if other is not one for flag in (other.flags - SHARED)]
    taken = next((flag for flag in sorted(one.flags) if flag in (*others, *PROGRAM_FLAGS)), None)
    return f"brings the flag --{taken}, which another option has" if taken else one.problem(component)


def _option_problem(f: Field, component: type[Component], base: type[Component]) -> str | None:
    if hasattr(base, f.name):
        return f"hides {base.__name__}.{f.name}"
    if not re.fullmatch(r"\w[\w-]*", f.flag):
        return "has a name from which no flag can be made"
    if not _is_option_type(f.type):
        return f"has a type that options cannot have: {f.type}{_hint(f.type)}"
    if not f.required and not _fits(f.default, f.type, f.details):
        return f"has a default that it refuses: {f.default!r}{f' ({f.details.range})' if f.details.range else ''}"
    if component.kind == Command.kind:
        return f"has the flag --{f.flag}, which belongs to difftool" if f.flag in PROGRAM_FLAGS else None
    if f.details.positional or f.details.short:
        return f"{'is positional' if f.details.positional else 'has a short flag'}, which only options of commands can"
    return None


def _is_option_type(kind: Any) -> bool:
    """Return whether an option can have the type; see `difftool.options.Field`."""
    kinds = [k for k in alternatives(kind) if k is not type(None)]
    words = [k for k in kinds if get_origin(k) is Literal]
    if not all(isinstance(word, str) for k in words for word in get_args(k)) or len(kinds) > 2:
        return False
    if len(kinds) == 2:  # a number, or a word that stands for one
        return len(words) == 1 and any(k in (int, float) for k in kinds)
    (kind,) = kinds
    if get_origin(kind) is tuple:
        entries = {k for k in get_args(kind) if k is not Ellipsis}
        return len(entries) == 1 and all(k in SCALARS or get_origin(k) is Literal for k in entries)
    return bool(words) or kind in SCALARS


def _hint(kind: Any) -> str:
    """Name the type to write instead of one that comes close."""
    if get_origin(kind) in (list, set, frozenset, Sequence) and get_args(kind):
        return f"; write tuple[{getattr(get_args(kind)[0], '__name__', get_args(kind)[0])}, ...]"
    if any(isinstance(k, type) and issubclass(k, Component) for k in alternatives(kind)):
        return "; a command declares a component by = component_option()"
    return ""


def _fits(value: Any, kind: Any, details: Details) -> bool:
    """Return whether a value has a type and keeps the bounds. It spares pydantic, since it runs for every component."""
    origin, args = get_origin(kind), get_args(kind)
    if len(kinds := alternatives(kind)) > 1:
        return any(_fits(value, k, details) for k in kinds)
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
        is_number = isinstance(value, (int, kind)) and not isinstance(value, bool) and math.isfinite(value)
        return is_number and (
            (details.ge is None or value >= details.ge)
            and (details.gt is None or value > details.gt)
            and (details.le is None or value <= details.le)
            and (details.lt is None or value < details.lt)
        )
    return isinstance(value, kind)


@functools.cache
def _hints(record: Any) -> dict[str, Any]:
    return get_type_hints(record)


def _type_name(kind: Any) -> str:
    return kind.__name__ if isinstance(kind, type) and not get_args(kind) else str(kind).replace("collections.abc.", "")
