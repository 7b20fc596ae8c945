"""Option values, wherever they come from: command line, TOML, or the metadata of a stranger's file.

pydantic does the checking, once and strictly, over JSON; it is imported when there is something to check.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
import math
import os
import re
import types
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from difftool.components import Backbone, Command, Component, Details, Options, Sampler, Writer
from difftool.errors import InvalidOption, said
from difftool.plugins.discovery import is_name

if TYPE_CHECKING:
    from pydantic import TypeAdapter

T = TypeVar("T", bound=Options)

SCALARS = (bool, int, float, str, Path)
LONGEST_TUPLE = 64


@dataclasses.dataclass(frozen=True)
class Field:
    """One option of a record: its name, type, default and details."""

    name: str
    type: Any
    default: Any
    details: Details

    @property
    def required(self) -> bool:
        return self.default is dataclasses.MISSING

    @property
    def optional(self) -> bool:
        """Whether None is a value (`int | None`)."""
        return type(None) in get_args(self.type)

    @property
    def inner(self) -> Any:
        """The type without `| None`."""
        if not self.optional:
            return self.type
        (inner,) = (arg for arg in get_args(self.type) if arg is not type(None))
        return inner

    @property
    def scalar(self) -> Any:
        """The type of one item: of a tuple's members, or the type itself."""
        return get_args(self.inner)[0] if get_origin(self.inner) is tuple else self.inner

    @property
    def flag(self) -> str:
        return spelled(self.name)


def spelled(name: str) -> str:
    """A field's name as the command line has it: `dim-mults` for `dim_mults`, `kind` for `kind_`."""
    return name.rstrip("_").replace("_", "-")


def fields(record: type[Options]) -> tuple[Field, ...]:
    """The options of a record in the order of their definition."""
    key: Any = record  # classes are hashable, whatever mypy makes of a dataclass
    return _fields(key)


@functools.cache
def _fields(record: Any) -> tuple[Field, ...]:
    hints = get_type_hints(record)
    return tuple(
        Field(f.name, hints[f.name], f.default, f.metadata.get(Details, Details())) for f in dataclasses.fields(record)
    )


def make(record: type[T], values: Mapping[str, object]) -> T:
    """The record with these values; what is left out keeps its default. Raises `InvalidOption`."""
    known = {f.name for f in fields(record)}
    for name in values:
        if name not in known:
            raise InvalidOption(name, f"there is no such option{suggestion(name, known)}")
    by_name = {f.name: f for f in fields(record)}
    words = {f.name: f.details.zero for f in fields(record) if f.details.zero}
    zeros = [name for name, value in values.items() if name in words and value == words[name]]
    checked = {name: _as_written(by_name[name], value) for name, value in values.items() if name not in zeros}
    pairs = (f"{json.dumps(name)}: {_dumped(name, value)}" for name, value in checked.items())
    text = "{" + ", ".join(pairs) + "}"
    from pydantic import ValidationError

    try:
        key: Any = record
        clean = _adapter(key).validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        name = str(first["loc"][0]) if first["loc"] else next(iter(values), "")
        raise InvalidOption(name, _reason(first)) from None
    clean = {name: _at_home(name, value) for name, value in clean.items()}
    try:
        return record(**clean, **dict.fromkeys(zeros, 0))
    except ValueError as error:  # the record's own __post_init__
        name, _, reason = str(error).partition(": ")
        raise (InvalidOption(name, reason) if name in known else InvalidOption("", str(error))) from None


def plain(record: Options) -> dict[str, Any]:
    """The values of a record as JSON and TOML can hold them; options that are None are left out."""
    values = ((f.name, getattr(record, f.name)) for f in fields(type(record)))
    return {name: _as_plain(value) for name, value in values if value is not None}


def suggestion(name: str, known: Any) -> str:
    """`; did you mean 'x'?`, or nothing where no known name is near."""
    import difflib

    near = difflib.get_close_matches(name, sorted(known), n=3, cutoff=0.6)
    return f"; did you mean {' or '.join(repr(n) for n in near)}?" if near else ""


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
        return f"its annotations do not resolve ({said(error)})"
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


PROGRAM = ("--help", "--debug", "--no-plugins")
"""Flags that every command of difftool has."""


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


@functools.cache
def _adapter(record: Any) -> TypeAdapter[dict[str, Any]]:
    """A checker of the record's values. A TypedDict, so that a field may be called `copy` or `schema`."""
    from typing import Annotated, NotRequired

    import pydantic
    from typing_extensions import TypedDict

    def annotation(f: Field) -> Any:
        limits = {
            k: v for k, v in dataclasses.asdict(f.details).items() if k in ("ge", "gt", "le", "lt") and v is not None
        }
        scalar: Any = f.scalar
        item: Any = Annotated[scalar, pydantic.Field(**limits)] if limits else scalar
        if get_origin(f.inner) is tuple:
            args = get_args(f.inner)
            item = types.GenericAlias(tuple, (item, ...) if Ellipsis in args else (item,) * len(args))
            item = Annotated[item, pydantic.Field(max_length=LONGEST_TUPLE)] if Ellipsis in args else item
        if f.optional:
            item = item | None
        return item if f.required else NotRequired[item]

    make_shape: Any = TypedDict  # built by name and dictionary, which no checker follows
    shape = make_shape("Options", {f.name: annotation(f) for f in fields(record)})
    config = pydantic.ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)
    return pydantic.TypeAdapter(pydantic.with_config(config)(shape))


_WORDS: Mapping[str, str] = {
    "missing": "must be given",
    "finite_number": "must be a finite number",
    "int_type": "must be a whole number",
    "int_from_float": "must be a whole number",
    "float_type": "must be a number",
    "bool_type": "must be true or false",
    "string_type": "must be text",
    "tuple_type": "must be a list",
}


def _reason(error: Any) -> str:
    """pydantic's finding in the words of the command line."""
    text = _WORDS.get(error["type"]) or error["msg"].replace("Input should be", "must be", 1)
    if error["type"] == "missing":
        return text
    if error["type"] == "too_long":
        return f"must have at most {error['ctx']['max_length']} entries"
    value = error["input"]
    return f"{text}, not {value if isinstance(value, (int, float)) else json.dumps(value)[:80]}"


def _as_written(f: Field, value: object) -> object:
    """What people write in a file where they mean a list of one (`size = 32`), or text (`preview_every = 200`)."""
    if get_origin(f.inner) is tuple and isinstance(value, (bool, int, float, str)):
        return [value]
    return str(value) if f.inner is str and type(value) is int else value


def _dumped(name: str, value: object) -> str:
    try:
        text = json.dumps(value, default=_as_json, ensure_ascii=False)
        text.encode()
        return text
    except UnicodeEncodeError:  # a name of a file, as the system gave it; no config or model could keep it
        raise InvalidOption(name, "must be UTF-8 text; rename the file or folder") from None
    except (TypeError, ValueError) as error:
        raise InvalidOption(name, f"not a plain value ({error})") from None


def _as_json(value: object) -> Any:
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    raise TypeError(f"{type(value).__name__} is not a plain value")


def _as_plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_as_plain(v) for v in value]
    return str(value.absolute()) if isinstance(value, Path) else value


def _at_home(name: str, value: Any) -> Any:
    """A path with its ~ resolved."""
    try:
        return value.expanduser() if isinstance(value, Path) else value
    except RuntimeError:
        raise InvalidOption(name, f"{value}: the folder that ~ stands for is not known") from None
