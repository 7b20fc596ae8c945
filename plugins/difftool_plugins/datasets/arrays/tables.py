"""Tables of named columns: `.csv` files, and `.parquet` files by the extra `parquet`."""

from __future__ import annotations

import csv
import itertools
import os
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from difftool import printable

SUFFIXES = (".csv", ".tsv", ".parquet")
DELIMITERS = ",;\t"
UNNAMED = "(unnamed)"
"""The name of a column without one, such as the row numbers that pandas writes; its numbers are left out."""
CHUNK = 4096
"""The number of rows of a CSV file that are held as texts."""
LOOKED_AT = 100
"""The rows that decide which columns hold numbers."""


class Table(Protocol):
    """The columns of a file, of which only those that are needed are read."""

    path: Path
    names: list[str]
    numbers: set[str]
    """The columns that hold numbers."""

    @property
    def size_in_bytes(self) -> int:
        """The size of what the columns hold, about."""

    def read(self, names: Sequence[str]) -> dict[str, np.ndarray[Any, Any]]:
        """Return columns by name: numbers (N, ...), or texts (N,) of type `str`. Raises `ValueError`."""


def open_table(path: Path) -> Table:
    """Open a table and look at its columns. Raises `ValueError`."""
    return ParquetTable.open(path) if path.suffix.lower() == ".parquet" else CSVTable.open(path)


@dataclass
class CSVTable:
    """A CSV file in UTF-8: fields between commas, semicolons or tabs, in quotes where they need them (RFC 4180)."""

    path: Path
    names: list[str]
    numbers: set[str]
    has_header: bool
    delimiter: str

    @property
    def size_in_bytes(self) -> int:
        return os.path.getsize(self.path)

    @classmethod
    def open(cls, path: Path) -> CSVTable:
        """Read the header, or name the columns x0, x1, ... if the first row holds numbers."""
        with open(path, encoding="utf-8-sig", newline="") as file:
            try:
                first = file.readline(2**20)
            except UnicodeDecodeError:
                raise ValueError(f"{printable(str(path))} is not UTF-8 text") from None
        delimiter = max(DELIMITERS, key=first.count)
        table = cls(path, [], set(), False, delimiter)
        head = [row for _, row in itertools.islice(table._rows(), LOOKED_AT + 1)]
        if not head:
            raise ValueError(f"{printable(str(path))} is empty")
        table.has_header = not all(map(_is_number, head[0]))
        table.names = [name.strip() for name in head[0]] if table.has_header else [f"x{i}" for i in range(len(head[0]))]
        if unnamed := [i for i, name in enumerate(table.names) if not name]:
            if len(unnamed) > 1:
                raise ValueError(f"{printable(str(path))} has {len(unnamed)} columns without a name")
            table.names[unnamed[0]] = UNNAMED
        for name in table.names:
            if table.names.count(name) > 1:
                raise ValueError(f"{printable(str(path))} has two columns called {printable(name)}")
        if len(head) == table.has_header:
            raise ValueError(f"{printable(str(path))} has no rows below its header")
        for i, name in enumerate(table.names):
            values = [row[i] for row in head[table.has_header :] if i < len(row) and row[i].strip()]
            if values and _is_number(values[0]) and name != UNNAMED:
                table.numbers.add(name)
        return table

    def read(self, names: Sequence[str]) -> dict[str, np.ndarray[Any, Any]]:
        places = {name: self.names.index(name) for name in names}
        parts: dict[str, list[np.ndarray[Any, Any]]] = {name: [] for name in names}
        rows = self._rows()
        if self.has_header:
            next(rows)
            if odd := next(filter(_is_number, self.names), None):
                warnings.warn(
                    f"the first row of {printable(str(self.path))} counts as names of columns, {odd} among them; if it "
                    "is data, add a row of names",
                    stacklevel=2,
                )
        while chunk := list(itertools.islice(rows, CHUNK)):
            for line, row in chunk:
                if len(row) != len(self.names):
                    raise ValueError(
                        f"{printable(str(self.path))}, line {line}: {len(row)} fields, but there are "
                        f"{len(self.names)} columns"
                    )
            columns = list(zip(*(row for _, row in chunk), strict=True))
            lines = [line for line, _ in chunk]
            for name, i in places.items():
                column = columns[i]
                numbers = name in self.numbers
                parts[name].append(self._numbers(name, column, lines) if numbers else np.array(column, dtype=np.str_))
        return {name: np.concatenate(arrays) for name, arrays in parts.items()}

    def _numbers(self, name: str, column: Sequence[str], lines: Sequence[int]) -> np.ndarray[Any, Any]:
        try:
            return np.array([float(text) for text in column], dtype=np.float64)
        except ValueError:
            at = next(i for i, text in enumerate(column) if not _is_number(text))
        found = (
            f"{printable(column[at])[:40]!r} is not a number"
            if column[at].strip()
            else "a number is missing; fill it in, or leave the row out"
        )
        raise ValueError(f"{printable(str(self.path))}, line {lines[at]}, column {printable(name)}: {found}")

    def _rows(self) -> Iterator[tuple[int, list[str]]]:
        """Yield each row that is not blank, with the number of its line. Raises `ValueError`."""
        with open(self.path, encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, delimiter=self.delimiter, strict=True)
            try:
                for row in reader:
                    if row:
                        yield reader.line_num, row
            except (csv.Error, UnicodeDecodeError) as error:
                reason = "is not UTF-8 text" if isinstance(error, UnicodeDecodeError) else f"cannot be read: {error}"
                raise ValueError(f"{printable(str(self.path))}, line {reader.line_num}: {reason}") from None


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


@dataclass
class ParquetTable:
    """A Parquet file: columns of numbers, texts, and lists of numbers that are all of one length."""

    path: Path
    names: list[str]
    numbers: set[str]
    size_in_bytes: int

    @classmethod
    def open(cls, path: Path) -> ParquetTable:
        if find_spec("pyarrow") is None:
            raise ValueError(
                f"{printable(str(path))} needs pyarrow, which is not installed; pip install 'difftool[parquet]'"
            )
        import pyarrow as pa
        import pyarrow.parquet as pq

        with _parquet(path), pq.ParquetFile(path) as file:
            schema, meta = file.schema_arrow, file.metadata
            size = sum(meta.row_group(i).total_byte_size for i in range(meta.num_row_groups))
        if len(set(schema.names)) < len(schema.names):
            raise ValueError(f"{printable(str(path))} has two columns of one name")
        if meta.num_rows == 0:
            raise ValueError(f"{printable(str(path))} has no rows")
        types = pa.types
        numbers, texts = set(), set()
        for column in schema:
            kind = column.type
            while types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
                kind = kind.value_type
            if types.is_integer(kind) or types.is_floating(kind) or types.is_boolean(kind):
                numbers.add(column.name)
            elif column.type == kind and (types.is_string(kind) or types.is_large_string(kind) or _is_category(kind)):
                texts.add(column.name)
        return cls(path, [name for name in schema.names if name in numbers | texts], numbers, size)

    def read(self, names: Sequence[str]) -> dict[str, np.ndarray[Any, Any]]:
        import pyarrow.parquet as pq

        with _parquet(self.path):
            table = pq.read_table(self.path, columns=list(names), partitioning=None)
        return {name: self._array(name, table.column(name).combine_chunks()) for name in names}

    def _array(self, name: str, column: Any) -> np.ndarray[Any, Any]:
        """Return a column as an array, with an axis for each level of lists. Raises `ValueError`."""
        import pyarrow as pa

        where = f"{printable(str(self.path))}, column {printable(name)}"
        if isinstance(column, pa.ChunkedArray):
            column = pa.concat_arrays(column.chunks)
        shape = [len(column)]
        while True:
            if column.null_count:
                raise ValueError(f"{where}: {column.null_count} of {len(column):,} values are missing")
            if not hasattr(column, "flatten") or not hasattr(column.type, "value_type") or _is_category(column.type):
                break
            lengths = set(column.value_lengths().to_pylist()) if hasattr(column, "value_lengths") else set()
            if len(lengths) > 1:
                raise ValueError(f"{where}: lists differ in length, from {min(lengths)} to {max(lengths)} values")
            before, column = len(column), column.flatten()
            shape.append(len(column) // max(1, before))
        if name not in self.numbers:
            return np.array([str(text) for text in column.to_pylist()], dtype=np.str_)
        array: np.ndarray[Any, Any] = column.to_numpy(zero_copy_only=False)
        return array.reshape(shape)


def _is_category(kind: Any) -> bool:
    """Return whether a type of pyarrow is that of categories, which are texts."""
    import pyarrow as pa

    return bool(pa.types.is_dictionary(kind)) and bool(pa.types.is_string(kind.value_type))


class _parquet:
    """The context of reading a file by pyarrow, whose errors then name the file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> None:
        """Change nothing."""

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        import pyarrow as pa

        if isinstance(error, (pa.ArrowException, OSError)):
            text = printable(" ".join(str(error).split()))[:200]
            raise ValueError(f"{printable(str(self.path))} is not a Parquet file, or is damaged ({text})") from None
