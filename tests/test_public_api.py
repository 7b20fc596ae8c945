"""What plugins and scripts rely on, as text in public_api.txt: it changes only on purpose.

Run this file to write the text anew: `python tests/test_public_api.py`. An addition is that and no more. Where a line
goes or changes, plugins may break: raise `API_VERSION` in difftool/version.py and tell the changelog what to do then.
"""

from __future__ import annotations

import dataclasses
import difflib
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import difftool
import difftool.testing
from difftool import hookspecs

RECORD = Path(__file__).with_name("public_api.txt")


def described() -> str:
    """Every public name with its signature, fields and methods; the hooks; the version that they belong to."""
    lines = [f"API version {difftool.API_VERSION}", ""]
    for module in (difftool, difftool.testing):
        for name in sorted(module.__all__):
            if not name.startswith("__"):
                lines += [*_described(f"{module.__name__}.{name}", getattr(module, name)), ""]
    for name, hook in sorted(vars(hookspecs).items()):
        if name.startswith("difftool_"):
            lines.append(f"hook {name}{inspect.signature(hook)}")
    return re.sub(r"<dataclasses\._MISSING_TYPE object at 0x\w+>", "MISSING", "\n".join(lines)) + "\n"


def _described(name: str, value: Any) -> Iterator[str]:
    if inspect.isclass(value):
        bases = ", ".join(base.__name__ for base in value.__bases__ if base is not object)
        yield f"class {name}{f'({bases})' if bases else ''}"
        yield from (f"    {line}" for line in _members(value))
    elif callable(value):
        ours = getattr(value, "__module__", "").startswith("difftool")
        yield f"def {name}{inspect.signature(value) if ours else '(...)'}"
    else:
        yield f"{name}: {type(value).__name__} = {value!r}"


def _members(cls: type) -> Iterator[str]:
    """Fields in their order, then class variables, properties and methods by name; what others brought is left out."""
    if dataclasses.is_dataclass(cls):
        for f in dataclasses.fields(cls):
            default = "" if f.default is dataclasses.MISSING else f" = {f.default!r}"
            if not f.name.startswith("_"):
                yield f"{f.name}: {f.type}{default}"
    ours = [base for base in cls.__mro__ if base.__module__.startswith("difftool")]
    known = {f.name for f in dataclasses.fields(cls)} if dataclasses.is_dataclass(cls) else set()
    found: dict[str, Any] = {}
    for base in reversed(ours):
        found |= {n: v for n, v in vars(base).items() if not n.startswith("_") or n == "__call__"}
    for name, value in sorted(found.items()):
        if name in known:
            continue
        if isinstance(value, property):
            yield f"property {name} -> {inspect.signature(value.fget).return_annotation}"  # type: ignore[arg-type]
        elif isinstance(value, (classmethod, staticmethod)):
            yield f"{type(value).__name__} {name}{inspect.signature(value.__func__)}"
        elif inspect.isfunction(value):
            yield f"def {name}{inspect.signature(value)}"
        elif not callable(value):
            yield f"{name} = {value!r}"


def test_the_public_api_is_what_was_recorded() -> None:
    before, now = RECORD.read_text(encoding="utf-8"), described()
    changes = "\n".join(
        difflib.unified_diff(before.splitlines(), now.splitlines(), "recorded", "now", lineterm="", n=0)
    )
    assert now == before, f"{changes}\n{__doc__}"


if __name__ == "__main__":
    RECORD.write_text(described(), encoding="utf-8")
