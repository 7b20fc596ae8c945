"""The parts of an array dataset: the arrays or columns of a file that are items, labels and conditions."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from difftool import PIXELS, Samples, moments, printable, some_rows
from difftool_plugins.datasets.arrays.arrangement import (
    PIXEL_FORMS,
    Arranged,
    Arrangement,
    arrangement_of,
    range_of_pixels,
    sound_units,
)
from difftool_plugins.datasets.arrays.choices import Choices, check_computed, is_computed, is_file, matching
from difftool_plugins.datasets.arrays.files import FileRows, Stored, open_arrays, plain_type
from difftool_plugins.datasets.columns.classes import LISTED, classes_of

if TYPE_CHECKING:
    from difftool_plugins.datasets.arrays.tables import Table

Numbers = np.ndarray[Any, Any]
LABELS = ("labels", "label", "class")
"""The keys and columns that are labels without a word."""
BESIDE = {*LABELS, "class_names", "vectors", "images", "tokens", "states", "guidances", "guidance_names"}
BESIDE |= {"guidance", "column_names"}
"""The keys and columns that are no items unless the user says so."""


@dataclass(frozen=True)
class Parts:
    """The arrays or columns that were chosen, each in a file that is not read yet, or in memory."""

    items: Stored | Numbers
    labels: Stored | Numbers | None = None
    class_names: Sequence[str] = ()
    vectors: Stored | Numbers | None = None
    images: Stored | Numbers | None = None
    tokens: Stored | Numbers | None = None
    column_names: tuple[str, ...] = ()

    def form_of_items(self, options: Choices) -> str:
        """Return the form of the items. Raises `ValueError` for options that do not fit them."""
        return self._arrangement(options, self.items).form

    def samples(self, options: Choices, most: float, fingerprint: str) -> Samples:
        """Read what fits into `most` bytes, and return the samples. Raises `ValueError`."""
        if not self.items.shape:
            raise ValueError("items: a single number is no array of items")
        arrangement = self._arrangement(options, self.items)
        columns = {"vectors": self.vectors, "images": self.images, "tokens": self.tokens, "items": self.items}
        read: dict[str, Any] = {}
        for name, stored in sorted(columns.items(), key=lambda entry: _size(entry[1])):
            if stored is not None:
                most -= _size(stored)
                read[name] = _column(name, stored, in_memory=most >= 0)
        items, arrangement = _arranged(read.pop("items"), arrangement)
        if "images" in read:
            read["images"] = self._images(options, read["images"])
        if is_computed(word := options.condition) and word is not None:
            from difftool_plugins.datasets.columns.conditions import function_of

            check_computed(word, arrangement.shape, arrangement.form)
            read["images"] = function_of(word)
            fingerprint += f" {word}"
        labels: Tensor | None = None
        names: tuple[str, ...] = ()
        if self.labels is not None:
            values = self.labels.read() if isinstance(self.labels, Stored) else self.labels
            labels, names = classes_of(values, self.class_names)
        units = {**_units(arrangement.form, items), "form": arrangement.form, "rate": options.rate}
        samples = Samples(
            items=items,
            shape=arrangement.shape,
            labels=labels,
            class_names=names,
            fingerprint=f"{fingerprint} {arrangement}",
            column_names=self.column_names if len(arrangement.shape) == 1 else (),
            **units,
            **read,
        )
        if isinstance(items, Tensor) and items.dtype == torch.float64 and samples.scaling.dtype == torch.float32:
            return replace(samples, items=items.to(torch.float32))
        return samples

    def _arrangement(self, options: Choices, stored: Stored | Numbers) -> Arrangement:
        return arrangement_of(
            stored.shape[1:], str(_storage(stored)), form=options.form, layout=options.layout, shape=options.shape
        )

    def _images(self, options: Choices, images: Any) -> Any:
        """Return condition images: pixels are stored as those of the items are, and floats channels first."""
        stored = self.images
        assert stored is not None
        if str(_storage(stored)) != "uint8":
            return images
        arrangement = arrangement_of(stored.shape[1:], "uint8", form="image", layout=options.layout, shape=None)
        return _arranged(images, arrangement)[0]


def _storage(stored: Stored | Numbers) -> Any:
    return stored.storage if isinstance(stored, Stored) and stored.dtype != "bfloat16" else stored.dtype


def _size(stored: Stored | Numbers | None) -> int:
    """Return the bytes that are still to be read."""
    return stored.size_in_bytes if isinstance(stored, Stored) else 0


def _column(name: str, stored: Stored | Numbers, *, in_memory: bool) -> Tensor | FileRows:
    """Return an array as a tensor, or as a source that reads its rows. Raises `ValueError`."""
    if isinstance(stored, Stored) and not in_memory:
        if not stored.by_row:
            raise ValueError(
                f"{name}: {stored.name} holds {stored.size_in_bytes / 2**30:.3g} GiB, more than --dataset.memory, and "
                f"{'has its columns first' if stored.fortran else 'is compressed'}, so no row can be read alone; save "
                "it again with np.save, or allow more memory"
            )
        return FileRows(stored)
    array = stored.read() if isinstance(stored, Stored) else stored
    return torch.from_numpy(np.require(array, plain_type(array.dtype), ["C", "W"]))


def _arranged(rows: Tensor | FileRows, arrangement: Arrangement) -> tuple[Tensor | Arranged, Arrangement]:
    """Return items, and the arrangement with the range of their pixels."""
    if arrangement.form in PIXEL_FORMS and (rows.is_floating_point() if isinstance(rows, Tensor) else rows.is_floating):
        some = some_rows(rows).float()
        factor, offset = range_of_pixels(float(some.min()), float(some.max()))
        arrangement = replace(arrangement, factor=factor, offset=offset)
    if isinstance(rows, Tensor):
        return arrangement.apply(rows), arrangement
    return Arranged(rows, arrangement), arrangement


def _units(form: str, items: Tensor | Arranged) -> Mapping[str, Any]:
    """Return shift, scale and bounds of items of a form."""
    if form in PIXEL_FORMS:
        return PIXELS
    if form == "sound":
        return sound_units(float(some_rows(items).to(torch.float64).std(correction=0)))
    shift, scale = moments(items)
    return {"shift": shift, "scale": scale}


# ── which arrays ────────────────────────────────────────────────────────────────────────────────


def of_archive(options: Choices, path: Path) -> Parts:
    """Choose among the arrays of a `.npy`, `.npz` or `.safetensors` file. Raises `ValueError`."""
    arrays, facts = open_arrays(path)
    place, numbers = printable(str(path)), {key: one for key, one in arrays.items() if one.is_number}
    is_ours = "samples" in numbers and options.items is None

    def named(text: str | None, flag: str, automatic: Sequence[str]) -> Stored | None:
        if text == "none" and text not in arrays:
            return None
        if is_file(text):
            return open_arrays(Path(str(text)))[0][""]
        if text not in (None, "auto"):
            return arrays[matching([str(text)], [*arrays], place, flag)[0]]
        return next((arrays[key] for key in automatic if key in arrays), None)

    def conditions(name: str, text: str | None) -> Stored | None:
        found = named(text, name, [name] if is_ours else ())
        if found is not None and not found.is_number:
            raise ValueError(f"{name}: {found.name} holds {found.dtype}, not numbers")
        return found

    keys = matching(options.items, [*numbers], place, "items") if options.items else [_only(numbers, place)]
    items: Stored | Numbers = (
        numbers[keys[0]] if len(keys) == 1 else _beside({key: numbers[key].read() for key in keys})
    )
    labels = named(options.labels, "labels", LABELS if not options.labels or options.labels == "auto" else ())
    several = options.vectors if options.vectors and len(options.vectors) > 1 else ()
    vectors = [conditions("vectors", text) for text in several or [options.vectors[0] if options.vectors else None]]
    return Parts(
        items,
        labels,
        class_names=_names("class_names", arrays, facts),
        vectors=_beside({str(i): one.read() for i, one in enumerate(vectors) if one}) if several else vectors[0],
        images=None if is_computed(options.condition) else conditions("images", options.condition),
        tokens=conditions("tokens", options.tokens),
        column_names=_names("column_names", arrays, facts) if len(keys) == 1 else tuple(keys),
    )


def _names(key: str, arrays: Mapping[str, Stored], facts: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the names that a file holds under a key, or none."""
    if key in arrays and arrays[key].is_text and len(arrays[key].shape) == 1:
        return tuple(map(str, arrays[key].read()))
    names = facts.get(key)
    return tuple(names) if isinstance(names, list) and all(isinstance(name, str) for name in names) else ()


def _only(numbers: Mapping[str, Stored], place: str) -> str:
    """Return the key of the items: `samples`, or the only one. Raises `ValueError`."""
    if "samples" in numbers:
        return "samples"
    found = [key for key in numbers if key not in BESIDE] or [key for key in numbers if key == "images"]
    if len(found) == 1:
        return found[0]
    if not found:
        raise ValueError(f"items: {place} holds no array of numbers")
    listed = "; ".join(str(numbers[key]) for key in found[:8]) + ("; ..." if len(found) > 8 else "")
    raise ValueError(f"items: {place} holds several arrays ({listed}); name one of them (--dataset.items KEY)")


def of_table(options: Choices, table: Table, most: float, *, headers_only: bool = False) -> Parts:
    """Choose among the columns of a table, and read them. Raises `ValueError`."""
    place, names = printable(str(table.path)), table.names
    if table.size_in_bytes > most:
        raise ValueError(
            f"{place} holds {table.size_in_bytes / 2**30:.3g} GiB, and tables are held in memory; allow more by "
            "--dataset.memory, or save the numbers as .npy, which is read while training"
        )
    trajectory = names[:2] == ["state", "sample"]
    used = {"state", "sample"} if trajectory else set()
    labels = "" if options.labels == "none" or is_file(options.labels) else options.labels
    if labels == "auto":
        labels = next((name for name in ("label", "labels", "class") if name in names), "")
    elif labels:
        (labels,) = matching([labels], names, place, "labels")[:1]
    texts = "class" if labels == "label" and "class" in names and options.labels == "auto" else ""
    given = [text for text in options.vectors or () if text != "none"]
    vectors = [] if any(map(is_file, given)) else matching(given, names, place, "vectors")
    tokens = [] if options.tokens in (None, "none") or is_file(options.tokens) else [str(options.tokens)]
    tokens = matching(tokens, names, place, "tokens")
    used |= {labels, texts, *vectors, *tokens}
    rest = [name for name in names if name not in used]
    items = matching(options.items, names, place, "items") if options.items else [n for n in rest if n in table.numbers]
    if not options.items:
        items = [name for name in items if name not in BESIDE] or items
        left_out = [name for name in rest if name not in items and name not in BESIDE]
        if left_out and items and not headers_only:
            listed = ", ".join(map(printable, left_out[:LISTED])) + (", ..." if len(left_out) > LISTED else "")
            warnings.warn(f"columns without numbers are left out: {listed}", stacklevel=4)
    if not items:
        raise ValueError(f"items: {place} has no column of numbers for them")
    for name, flag in [
        *((n, "items") for n in items),
        *((n, "vectors") for n in vectors),
        *((n, "tokens") for n in tokens),
    ]:
        if name not in table.numbers:
            raise ValueError(f"{flag}: the column {printable(name)} of {place} holds texts")
    if headers_only:
        return Parts(np.zeros((1, math.prod(options.shape) if options.shape else len(items))))
    columns = table.read(
        list(dict.fromkeys([*items, *vectors, *tokens, *filter(None, [labels, texts])])) + ["state"] * trajectory
    )
    if trajectory:
        last = columns["state"] == columns["state"].max()
        columns = {name: column[last] for name, column in columns.items()}
    plain = all(columns[name].ndim == 1 for name in items) and items != [f"x{i}" for i in range(len(items))]
    return Parts(
        _beside({name: columns[name] for name in items}),
        columns[labels] if labels else _own_file(options.labels),
        class_names=_names_of(columns[labels], columns[texts]) if texts else (),
        vectors=_beside({name: columns[name] for name in vectors}) if vectors else _own_file(*given),
        images=_own_file(options.condition),
        tokens=columns[tokens[0]] if tokens else _own_file(options.tokens),
        column_names=tuple(items) if plain else (),
    )


def _own_file(*texts: str | None) -> Stored | None:
    """Return the array of a `.npy` file, or None if no text names one. Raises `ValueError`."""
    return next((open_arrays(Path(str(text)))[0][""] for text in texts if is_file(text)), None)


def _names_of(numbers: Numbers, texts: Numbers) -> tuple[str, ...]:
    """Return class names by number, as the columns `label` and `class` of a file of difftool pair them."""
    if numbers.dtype.kind not in "iuf" or not len(numbers) or not 0 <= numbers.min() <= numbers.max() < 10**5:
        return ()
    words = [f"{text:.17g}" for text in texts] if texts.dtype.kind == "f" else map(str, texts)
    names = {int(number): word for number, word in zip(numbers, words, strict=True)}
    return tuple(names.get(i, str(i)) for i in range(max(names) + 1))


def _beside(columns: Mapping[str, Numbers]) -> Numbers:
    """Return columns (N,) or (N, D) beside one another, or a single one as it is. Raises `ValueError`."""
    arrays = [*columns.values()]
    if len(arrays) == 1:
        return arrays[0] if arrays[0].ndim > 1 else arrays[0][:, None]
    if len({len(array) for array in arrays}) > 1:
        sizes = ", ".join(f"{printable(name)} {len(array)}" for name, array in columns.items())
        raise ValueError(f"columns differ in length: {sizes}")
    return np.concatenate([array.reshape(len(array), -1) for array in arrays], axis=1)
