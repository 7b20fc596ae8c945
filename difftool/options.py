"""Option values, wherever they come from: command line, TOML, or the metadata of a stranger's file.

pydantic does the checking, once and strictly, over JSON; it is imported when there is something to check.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import types
from collections.abc import Mapping
from pathlib import Path
from typing import (
    TYPE_CHECKING,
    Any,
    TypeVar,
    dataclass_transform,
    get_args,
    get_origin,
    get_type_hints,
)

from difftool.errors import InvalidOption

if TYPE_CHECKING:
    from pydantic import TypeAdapter

LONGEST_TUPLE = 64

LARGEST_SHOWN = 10**5
"""Upper bounds from here on only guard against absurd sizes in files; help does not show them."""


@dataclasses.dataclass(frozen=True)
class Details:
    """What a field says beyond its type, kept in the field's metadata: help, range, short flag, what None means, ..."""

    help: str = ""
    ge: float | None = None
    gt: float | None = None
    le: float | None = None
    lt: float | None = None
    short: str = ""
    otherwise: str = ""
    positional: bool = False
    zero: str = ""

    @property
    def range(self) -> str:
        """The range as a reader expects it: `0<=x<=1`, `x>0`, or nothing."""
        low = f"{self.ge:g}<=" if self.ge is not None else f"{self.gt:g}<" if self.gt is not None else ""
        guard = self.le is not None and self.le >= LARGEST_SHOWN
        high = f"<={self.le:g}" if self.le is not None and not guard else f"<{self.lt:g}" if self.lt is not None else ""
        if low and not high:
            return f"x>={self.ge:g}" if self.ge is not None else f"x>{self.gt:g}"
        return f"{low}x{high}" if low or high else ""


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
    zero: str = "",
) -> Any:
    """An option of a component. Without a default the user must give it; bounds hold for each item of a tuple.

    `short` is a flag such as `-n`; a `positional` one is given without a flag; only commands have these two.
    `otherwise` says in the help what happens where the default is None. `zero` is a word for 0, such as `auto`, where
    the number itself is out of bounds.
    """
    details = Details(help, ge, gt, le, lt, short, otherwise, positional, zero)
    return dataclasses.field(default=default, metadata={Details: details})


@dataclass_transform(frozen_default=True, kw_only_default=True, field_specifiers=(option,))
class Options:
    """A frozen, keyword-only record of options; subclasses need no decorator."""

    def __init_subclass__(cls, **keywords: Any) -> None:
        super().__init_subclass__(**keywords)
        dataclasses.dataclass(frozen=True, kw_only=True)(cls)


T = TypeVar("T", bound=Options)


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
