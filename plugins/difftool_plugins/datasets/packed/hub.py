"""Hugging Face data sets: open them from the hub, its cache or files, and choose their columns."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import socket
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

from difftool import printable
from difftool_plugins.datasets.folders import listed
from difftool_plugins.datasets.packed.cells import digest

HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")
READERS = {".parquet": "parquet", ".csv": "csv", ".tsv": "csv", ".json": "json", ".jsonl": "json", ".arrow": "arrow"}
"""The readers of single files by suffix."""
LOOKED_AT = 256
"""The rows, evenly spread, that the fingerprint holds whole."""


@dataclass(frozen=True)
class HubColumn:
    """The cells of one column, read from memory-mapped Arrow files."""

    table: Any
    column: str
    place: str

    def __len__(self) -> int:
        return len(self.table)

    def name(self, i: int) -> str:
        return f"{self.place}, row {i}, column {self.column}"

    def content(self, i: int) -> Any:
        cell = self.table[int(i)][self.column]
        if not isinstance(cell, dict):
            return cell
        return cell["path"] if cell.get("bytes") is None else cell["bytes"]  # an image that stays encoded

    def block(self, rows: Sequence[int]) -> Any:
        """Return the arrays of rows as one, or as an array of objects where they differ in shape."""
        table = self.table if len(rows) == len(self.table) else self.table.select(rows)
        return table.with_format("numpy")[:][self.column]


def open_table(path: str, subset: str | None, split: str, revision: str | None) -> Any:
    """Return the `datasets.Dataset` of a hub name, a folder or a file. Raises `ValueError`."""
    if find_spec("datasets") is None:
        raise ValueError("needs the library datasets, which is not installed; pip install 'difftool[hf]'")
    place = printable(path)
    local = os.path.exists(path)
    if not local and not HUB_NAME.fullmatch(path):
        raise ValueError(f"path: {place} does not exist, and is not a name on the hub, such as ylecun/mnist")
    if not local:
        _go_offline_without_network()
    with _quiet():
        import datasets

        try:
            table = _opened(path, subset, split, revision)
        except datasets.exceptions.DatasetNotFoundError:
            raise ValueError(
                f"path: {place} is neither a file here nor a public data set on the hub; see "
                f"https://huggingface.co/datasets, and log in (hf auth login) for a private one"
            ) from None
        except ConnectionError:
            raise ValueError(
                f"path: {place} is not a file here, is not in the cache of datasets, and the hub cannot be reached; "
                "connect to the network once, or name a folder or file"
            ) from None
        except ImportError as error:
            raise ValueError(f"path: {place} cannot be opened ({error})") from None
        except Exception as error:  # datasets and pyarrow raise many kinds for damaged files
            cause = error.__cause__ or error
            raise ValueError(f"path: {place} cannot be opened ({' '.join(str(cause).split()):.300})") from None
    if not isinstance(table, datasets.Dataset):
        raise ValueError(f"path: {place} holds no table of rows, but {type(table).__name__}")
    if len(table) == 0:
        raise ValueError(f"path: {place} has no rows in the split {printable(split)}")
    return with_images(table.with_format(None))


def _opened(path: str, subset: str | None, split: str, revision: str | None) -> Any:
    import datasets

    if os.path.isfile(path):
        suffix = os.path.splitext(path)[1].lower()
        if suffix not in READERS:
            raise ValueError(f"not one of {' '.join(READERS)}; name a folder for images")
        more = {"sep": "\t"} if suffix == ".tsv" else {}
        return datasets.load_dataset(READERS[suffix], data_files=path, split=split, **more)
    if not any(os.path.isfile(os.path.join(path, name)) for name in ("state.json", "dataset_dict.json")):
        return datasets.load_dataset(path, name=subset, split=split, revision=revision)
    saved = datasets.load_from_disk(path)
    if isinstance(saved, datasets.Dataset):  # saved alone, whatever split it was
        saved = {"train": saved, str(saved.split or "train"): saved}
    try:
        wanted = datasets.ReadInstruction.from_spec(split)
        parts = wanted.to_absolute({name: len(table) for name, table in saved.items()})
    except (ValueError, AssertionError):
        names = ", ".join(map(str, saved))
        raise ValueError(f"it has no split {split!r}, but {names}; see --dataset.split") from None
    return datasets.concatenate_datasets([saved[p.splitname].select(range(p.from_, p.to)) for p in parts])


def _go_offline_without_network() -> None:
    """Let the cache be used at once where the name of the hub cannot be resolved, for each of many tries waits."""
    if any(name in os.environ for name in ("HF_HUB_OFFLINE", "HF_ENDPOINT", "HTTPS_PROXY", "https_proxy")):
        return
    try:
        socket.getaddrinfo("huggingface.co", 443)
    except OSError:
        os.environ["HF_HUB_OFFLINE"] = "1"  # the library reads it when it is imported


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the bars and log lines of the library from the terminal."""
    import datasets

    loggers = [logging.getLogger(name) for name in ("datasets", "huggingface_hub")]
    levels, bars = [logger.level for logger in loggers], datasets.are_progress_bars_disabled()
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        if not bars:
            datasets.enable_progress_bars()


def encoded(table: Any, column: str, place: str) -> HubColumn:
    """Return the cells of a column of images that stay encoded."""
    import datasets

    return HubColumn(table.select_columns([column]).cast_column(column, datasets.Image(decode=False)), column, place)


def cells(table: Any, column: str, place: str) -> HubColumn:
    """Return the cells of a column."""
    return HubColumn(table.select_columns([column]), column, place)


def check_column(table: Any, option: str, column: str) -> None:
    """Raise `ValueError` for a column that does not exist."""
    if column not in table.features:
        raise ValueError(f"{option}: there is no column {printable(column)}; choose from {listed([*table.features])}")


def image_columns(table: Any) -> list[str]:
    """Return the names of the columns of images."""
    import datasets

    return [name for name, feature in table.features.items() if isinstance(feature, datasets.Image)]


def with_images(table: Any) -> Any:
    """Return a table whose structs of bytes and path, as other software stores images, are columns of images."""
    import datasets

    for name, feature in table.features.items():
        if isinstance(feature, dict) and feature.keys() == {"bytes", "path"} and feature["bytes"].dtype == "binary":
            table = table.cast_column(name, datasets.Image())
    return table


def array_columns(table: Any) -> list[str]:
    """Return the names of the columns of arrays or lists of numbers."""
    import datasets

    def is_array(feature: Any) -> bool:
        inner = getattr(feature, "feature", None)
        if type(feature).__name__ in ("Array2D", "Array3D", "Array4D", "Array5D"):
            return True
        return inner is not None and (is_array(inner) or is_number(inner))

    def is_number(feature: Any) -> bool:
        return isinstance(feature, datasets.Value) and feature.dtype.startswith(("int", "uint", "float"))

    return [name for name, feature in table.features.items() if is_array(feature)]


def class_columns(table: Any) -> list[str]:
    """Return the names of the columns of class labels."""
    import datasets

    return [name for name, feature in table.features.items() if isinstance(feature, datasets.ClassLabel)]


def class_names(table: Any, column: str) -> tuple[str, ...]:
    """Return the names of the classes that the feature of a column declares, or none."""
    return tuple(getattr(table.features[column], "names", None) or ())


def values(table: Any, column: str) -> list[Any]:
    """Return all values of a column as Python has them."""
    return list(table.select_columns([column])[:][column])


def fingerprint(table: Any, columns: Sequence[str]) -> str:
    """Return a text that changes with the columns: their types, the number of rows, and some rows whole.

    The fingerprint of the library depends on the times of files, so a copy has another.
    """
    import datasets

    chosen = table.select_columns([*dict.fromkeys(columns)])
    for name in image_columns(chosen):
        chosen = chosen.cast_column(name, datasets.Image(decode=False))
    rows = chosen.select(range(0, len(chosen), -(-len(chosen) // LOOKED_AT)))
    parts = [
        part
        for row in rows
        for cell in row.values()
        for part in (
            [cell["bytes"] or os.path.basename(cell["path"] or "")]
            if isinstance(cell, dict) and "bytes" in cell
            else [repr(cell)]
        )
    ]
    return digest(str(chosen.features), str(len(chosen)), *parts)
