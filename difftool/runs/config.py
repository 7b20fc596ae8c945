"""Config files: tables of plain values as TOML, and the line on which a key stands, for error messages."""

from __future__ import annotations

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
        document = tomllib.loads(_text(path))
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
