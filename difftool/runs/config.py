"""Config files: tables of plain values as TOML, and the line on which a key stands, for error messages."""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from difftool.errors import UsageError
from difftool.files import check_values, read_bounded
from difftool.options import suggestion

LARGEST_CONFIG = 2**20
"""The size in bytes up to which a config file is read."""
ENTRY_END = re.compile(r"\n(?![ \]])")
"""The end of a line, unless the next one goes on with an array, as `dump_toml` writes arrays."""
ENTRIES, LONGEST_ENTRY = 2**14, 2**10
"""The number of lines that are remembered once parsed, and the characters up to which one is."""
RECIPES = Path(__file__).parents[1] / "recipes"
"""The folder of the configs that come with difftool: those of the tutorials."""


def installed_configs() -> dict[str, Path]:
    """Return the config files that come with difftool, by name."""
    return {path.stem: path for path in sorted(RECIPES.glob("*.toml"))}


def find_config(path: Path) -> Path:
    """Return a config file, or one that comes with difftool by its name. A file that exists goes before a name.

    Raises `UsageError` for a word that is neither.
    """
    known = installed_configs()
    if os.path.lexists(path) or len(path.parts) != 1 or path.suffix:
        return path
    if path.name not in known:
        raise UsageError(
            f"config file {path} does not exist, nor a config of this name{suggestion(path.name, known)}; "
            "'difftool list configs' names them"
        )
    return known[path.name]


def summary_of(path: Path) -> str:
    """Return the first sentence of the comment at the top of a config file."""
    line = _text(path).partition("\n")[0].removeprefix("#").strip()
    return line.partition(". ")[0].rstrip(".") + "."


def read_toml(path: Path) -> dict[str, Any]:
    """Return the tables of a config file. Raises `UsageError` with the file and the line."""
    import tomllib

    try:
        text = _text(path)
        if (tables := _plain_tables(text)) is not None:
            return tables
        document = tomllib.loads(text)
    except FileNotFoundError:
        raise UsageError(f"config file {path} does not exist") from None
    except RecursionError:
        raise UsageError(f"config file {path}: values are nested too deeply") from None
    except ValueError as error:
        raise UsageError(f"config file {path} is not valid TOML: {str(error).partition(';')[0]}") from None
    except OSError as error:
        raise UsageError(f"config file {path} cannot be read: {error.strerror}") from None
    try:
        check_values(document)
    except ValueError as error:
        table, _, key = str(error).partition(":")[0].rpartition(".")
        line = line_of(path, table, key) if table else None
        raise UsageError(f"config file {path}{f', line {line}' if line else ''}: {error}") from None
    return document


def _plain_tables(text: str) -> dict[str, Any] | None:
    """Return the tables of a TOML text whose lines stand for themselves, or None for any other, or a wrong, text.

    `dump_toml` writes such texts. Their lines are parsed once in the life of a process, since the configs of many runs
    have most of them in common.
    """
    if '"""' in text or "'''" in text:  # a line may be part of a string then
        return None
    tables: dict[str, Any] = {}
    table = tables
    try:
        for name, value in filter(None, map(_entry, ENTRY_END.split(text))):
            if name in (tables if value is None else table):
                return None
            if value is None:
                table = tables[name] = {}
            else:
                table[name] = [*value] if isinstance(value, tuple) else value
    except ValueError:
        return None
    return tables


@functools.lru_cache(ENTRIES)
def _entry(text: str) -> tuple[str, Any] | None:
    """Return the key and the value of a line of TOML: None for a table, a tuple for an array; or None without any.

    Raises `ValueError` for what needs other lines to be understood, and for values that are refused.
    """
    import tomllib

    if len(text) > LONGEST_ENTRY:
        raise ValueError("the line is too long")
    found = tomllib.loads(text)
    if not found:
        return None
    (name, value), *others = found.items()
    if others or (isinstance(value, dict) and (value or not text.startswith("["))):
        raise ValueError("the line says more than one thing")
    if isinstance(value, list) and any(isinstance(entry, (list, dict)) for entry in value):
        raise ValueError("an array of more than values")
    check_values(value)
    return name, None if isinstance(value, dict) else tuple(value) if isinstance(value, list) else value


def dump_toml(document: Mapping[str, Any]) -> str:
    """Return tables of plain values as TOML, without characters that could steer a terminal. `read_toml` reads them."""
    import tomli_w

    text = tomli_w.dumps(document)
    return "".join(c if c == "\n" or c.isprintable() else f"\\U{ord(c):08x}" for c in text)


def line_of(path: Path, table: str, key: str = "") -> int | None:
    """Return the line of a key, or of the table itself, in a TOML file; None if it cannot be found."""
    current = ""
    for number, line in enumerate(_text(path, "replace").splitlines(), start=1):
        if header := re.match(r"\s*\[([^\]]+)\]", line):
            current = header[1].strip().strip("\"'")
            if current == table and not key:
                return number
        elif current == table and re.match(rf"\s*[\"']?{re.escape(key)}[\"']?\s*=", line):
            return number
    return None


def _text(path: Path, errors: str = "strict") -> str:
    return read_bounded(path, LARGEST_CONFIG).decode("utf-8-sig", errors)
