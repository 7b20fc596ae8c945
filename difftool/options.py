"""Options: how a record declares them, and how values for them are checked.

A command may have resources beside them, such as a component or a model, which are checked when they are set. Values
come from the command line, from a TOML file, or from the metadata of a stranger's file. They all pass through
`make`, where pydantic checks them strictly, as JSON; it is imported only when there is something to check.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import json
import math
import os
import types
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import (
    TYPE_CHECKING,
    Any,
    ClassVar,
    Literal,
    TypeVar,
    Union,
    dataclass_transform,
    get_args,
    get_origin,
    get_type_hints,
)

from difftool.errors import InvalidOption
from difftool.resources import Resource, resources

if TYPE_CHECKING:
    from pydantic import TypeAdapter

LARGEST_SHOWN = 10**5
"""Upper bounds from here on only guard against absurd sizes in files, so help does not show them."""
LONGEST_TUPLE = 64


@dataclasses.dataclass(frozen=True)
class Details:
    """The facts about an option beyond its type and default, kept in the metadata of its dataclass field."""

    help: str = ""
    ge: float | None = None
    gt: float | None = None
    le: float | None = None
    lt: float | None = None
    short: str = ""
    otherwise: str = ""
    positional: bool = False
    path: Literal["read", "write"] | None = None

    @property
    def bounds(self) -> dict[str, Any]:
        """The bounds that are set, by the names that pydantic gives them."""
        bounds = {"ge": self.ge, "gt": self.gt, "le": self.le, "lt": self.lt}
        return {name: bound for name, bound in bounds.items() if bound is not None}

    @property
    def range(self) -> str:
        """The bounds in the notation of the help: `0<=x<=1`, `x>0`, or nothing."""
        shown = {name: f"{bound:g}" for name, bound in self.bounds.items() if name[0] == "g" or bound < LARGEST_SHOWN}
        low = next((f"{shown[name]}{sign}" for name, sign in (("ge", "<="), ("gt", "<")) if name in shown), "")
        high = next((f"{sign}{shown[name]}" for name, sign in (("le", "<="), ("lt", "<")) if name in shown), "")
        if low and not high:
            return f"x>={shown['ge']}" if "ge" in shown else f"x>{shown['gt']}"
        return f"{low}x{high}" if high else ""


def option(
    *,
    default: Any = dataclasses.MISSING,
    help: str = "",
    ge: float | None = None,
    gt: float | None = None,
    le: float | None = None,
    lt: float | None = None,
    short: str = "",
    otherwise: str = "",
    positional: bool = False,
    path: Literal["read", "write"] | None = None,
) -> Any:
    """Declare an option of a component. Without a default, the user has to give it.

    The bounds hold for each entry of a tuple. `otherwise` tells the help what a default of None stands for. Only
    options of commands can have a `short` flag such as `-n`, or be `positional`, which means given without a flag.
    `path` says that the option names a file or folder to read or to write; see `difftool.paths`. One of type `Path`
    needs it only if it is used in another way than its kind's, which is to write for loggers and to read for others.
    """
    details = Details(help, ge, gt, le, lt, short, otherwise, positional, path)
    return dataclasses.field(default=default, metadata={Details: details})


@dataclass_transform(frozen_default=True, kw_only_default=True, field_specifiers=(option,))
class Options:
    """A frozen, keyword-only record of options. Subclasses need no decorator."""

    path_use: ClassVar[Literal["read", "write"]] = "read"
    """The use of options of type `Path` that declare none."""

    def __init_subclass__(cls, **keywords: Any) -> None:
        super().__init_subclass__(**keywords)
        dataclasses.dataclass(frozen=True, kw_only=True)(cls)


T = TypeVar("T", bound=Options)


@dataclasses.dataclass(frozen=True)
class Field:
    """One option of a record.

    Its type is a scalar (bool, int, float, str, Path), a `Literal` of texts, a tuple of either, or a number that a word
    can stand for (`int | Literal["auto"]`); `| None` makes any of them optional.
    """

    name: str
    type: Any
    default: Any
    details: Details

    @property
    def required(self) -> bool:
        return self.default is dataclasses.MISSING

    @property
    def optional(self) -> bool:
        """Return whether None is a value."""
        return type(None) in alternatives(self.type)

    @property
    def inner(self) -> Any:
        """The type without `| None` and without the words."""
        kinds = [kind for kind in alternatives(self.type) if kind is not type(None)]
        return ([kind for kind in kinds if get_origin(kind) is not Literal] or kinds)[0]

    @property
    def words(self) -> tuple[str, ...]:
        """The words that can stand for a number, such as `auto`."""
        kinds = (kind for kind in alternatives(self.type) if kind is not self.inner)
        return tuple(word for kind in kinds for word in get_args(kind))

    @property
    def scalar(self) -> Any:
        """The type of one entry of a tuple, or the type itself."""
        return get_args(self.inner)[0] if get_origin(self.inner) is tuple else self.inner

    def use_in(self, record: type[Options]) -> Literal["read", "write"] | None:
        """Return how a record uses the path that the option names; None for an option that names none."""
        return self.details.path or (record.path_use if self.scalar is Path else None)

    @property
    def flag(self) -> str:
        """The name on the command line: `dim-mults` for `dim_mults`, `kind` for `kind_`."""
        return dashed(self.name)


def alternatives(kind: Any) -> tuple[Any, ...]:
    """The members of a union, or the type by itself."""
    return get_args(kind) if get_origin(kind) in (Union, types.UnionType) else (kind,)


def dashed(name: str) -> str:
    """A Python name as the command line spells it."""
    return name.rstrip("_").replace("_", "-")


def fields(record: type[Options]) -> tuple[Field, ...]:
    """The options of a record in the order of their definition."""
    key: Any = record  # classes are hashable, whatever mypy makes of a dataclass
    return _fields(key)


@functools.cache
def _fields(record: Any) -> tuple[Field, ...]:
    options = [f for f in dataclasses.fields(record) if Resource not in f.metadata]
    kinds = hints(record, {f.name for f in options})
    return tuple(Field(f.name, kinds[f.name], f.default, f.metadata.get(Details, Details())) for f in options)


def hints(record: type, names: Collection[str]) -> dict[str, Any]:
    """Return the types of these attributes. Those of others may be imported for type checkers alone."""
    found: dict[str, Any] = {}
    for base in reversed(record.__mro__):
        own = {name: kind for name, kind in inspect.get_annotations(base).items() if name in names}
        found |= get_type_hints(type(base.__name__, (), {"__annotations__": own, "__module__": base.__module__}))
    return found


def make(record: type[T], values: Mapping[str, object]) -> T:
    """Return the record with these values; options that are left out keep their defaults. Raises `InvalidOption`."""
    by_name, others = {f.name: f for f in fields(record)}, resources(record)
    for name in values:
        if name not in by_name and name not in others:
            raise InvalidOption(name, f"there is no such option{suggestion(name, [*by_name, *others])}")
    given = {name: value for name, value in values.items() if name in others}
    values = {name: value for name, value in values.items() if name not in others}
    pairs = (f"{json.dumps(name)}: {_to_json(name, _normalised(by_name[name], v))}" for name, v in values.items())
    text = "{" + ", ".join(pairs) + "}"
    from pydantic import ValidationError

    try:
        key: Any = record
        checked = _adapter(key).validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        name = str(first["loc"][0]) if first["loc"] else next(iter(values), "")
        raise InvalidOption(name, _reason(first, by_name.get(name))) from None
    for name, value in checked.items():
        try:
            checked[name] = value.expanduser() if isinstance(value, Path) else value
        except RuntimeError:
            raise InvalidOption(name, f"{value}: the home folder is not known") from None
    try:
        return record(**checked, **given)
    except ValueError as error:  # from the record's own __post_init__: "name: reason"
        name, _, reason = str(error).partition(": ")
        raise (InvalidOption(name, reason) if name in by_name else InvalidOption("", str(error))) from None


def plain(record: Options) -> dict[str, Any]:
    """Return the values of a record as JSON and TOML hold them; options that are None are left out.

    Paths to read become absolute. A relative path to write belongs to a run folder, so it stays relative.
    """
    values = ((f, getattr(record, f.name)) for f in fields(type(record)))
    return {f.name: _to_plain(value, f.use_in(type(record))) for f, value in values if value is not None}


def options_of(record: type[Options], values: Mapping[str, object]) -> dict[str, object]:
    """Return those of the values that are options of the record."""
    names = {f.name for f in fields(record)}
    return {name: value for name, value in values.items() if name in names}


def number_in(text: str) -> float | None:
    """Return the finite number that a text is, or None."""
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def suggestion(name: str, known: Iterable[str]) -> str:
    """Return `; did you mean 'x'?`, or nothing if no known name is similar."""
    import difflib

    near = difflib.get_close_matches(name, sorted(known), n=3, cutoff=0.6)
    return f"; did you mean {' or '.join(repr(n) for n in near)}?" if near else ""


@functools.cache
def _adapter(record: Any) -> TypeAdapter[dict[str, Any]]:
    """Return pydantic's checker of a record: a TypedDict, so that a field may be called `copy` or `schema`."""
    from typing import NotRequired

    import pydantic
    from typing_extensions import TypedDict

    annotations = {f.name: _annotation(f) if f.required else NotRequired[_annotation(f)] for f in fields(record)}
    make_shape: Any = TypedDict  # called with a name and a dictionary, which type checkers do not follow
    config = pydantic.ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)
    return pydantic.TypeAdapter(pydantic.with_config(config)(make_shape("Options", annotations)))


def _annotation(f: Field) -> Any:
    """Return the type of an option with its bounds, for pydantic."""
    from typing import Annotated

    import pydantic

    bounds = f.details.bounds
    kind: Any = Annotated[f.scalar, pydantic.Field(**bounds)] if bounds else f.scalar
    if get_origin(f.inner) is tuple:
        entries = get_args(f.inner)
        kind = types.GenericAlias(tuple, (kind, ...) if Ellipsis in entries else (kind,) * len(entries))
        kind = Annotated[kind, pydantic.Field(max_length=LONGEST_TUPLE)] if Ellipsis in entries else kind
    if f.words:
        kind = kind | Literal[f.words]
    return kind | None if f.optional else kind


_REASONS: Mapping[str, str] = {
    "missing": "must be given",
    "finite_number": "must be a finite number",
    "int_type": "must be a whole number",
    "int_from_float": "must be a whole number",
    "float_type": "must be a number",
    "bool_type": "must be true or false",
    "string_type": "must be text",
    "tuple_type": "must be a list",
}


def _reason(error: Any, f: Field | None) -> str:
    """Return the reason of a pydantic error in the words of the command line."""
    text = _REASONS.get(error["type"]) or error["msg"].replace("Input should be", "must be", 1)
    if error["type"] == "missing":
        return text
    if error["type"] == "too_long":
        return f"must have at most {error['ctx']['max_length']} entries"
    if f is not None and f.words:
        text = f"{text} or {' or '.join(f.words)}"
    value = error["input"]
    return f"{text}, not {value if isinstance(value, (int, float)) else json.dumps(value)[:80]}"


def _normalised(f: Field, value: object) -> object:
    """Turn a scalar into a list of one (`size = 32`), and a number into a text (`preview_every = 200`).

    Numbers of NumPy and torch become plain ones.
    """
    value = value.tolist() if hasattr(value, "tolist") else value
    if get_origin(f.inner) is tuple and isinstance(value, (bool, int, float, str)):
        return [value]
    return str(value) if f.inner is str and type(value) is int else value


def _to_json(name: str, value: object) -> str:
    try:
        text = json.dumps(value, default=_to_plain_json, ensure_ascii=False)
        text.encode()
        return text
    except UnicodeEncodeError:  # a file name that is not UTF-8, which neither a config file nor a model can hold
        raise InvalidOption(name, "must be UTF-8 text; rename the file or folder") from None
    except (TypeError, ValueError) as error:
        raise InvalidOption(name, f"not a plain value ({error})") from None


def _to_plain_json(value: object) -> Any:
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if hasattr(value, "tolist"):  # a number of NumPy or torch in a list
        return value.tolist()
    raise TypeError(f"{type(value).__name__} is not a plain value")


def _to_plain(value: Any, use: str | None) -> Any:
    if isinstance(value, tuple):
        return [_to_plain(v, use) for v in value]
    return str(value if use == "write" else value.absolute()) if isinstance(value, Path) else value
