"""Samples as arrays: images as pixels from 0 to 255, all else in data units; with --raw, model units."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any
from zipfile import ZipFile

from difftool import Writer, option

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from difftool import Drawing


class NPY(Writer, name="npy"):
    """One NumPy array of the samples, or with --trajectory of the states from x_T to the samples."""

    suffixes = (".npy",)
    holds_arrays = True

    def write(self, drawing: Drawing, path: Path) -> None:
        import numpy as np

        arrays = drawing.arrays()
        with open(path, "wb") as file:  # for a name that ends in .NPY, numpy would append .npy
            np.save(file, arrays.get("states", arrays["samples"]))


class NPZ(Writer, name="npz"):
    """NumPy arrays by name: samples, states with --trajectory, labels, what else differs, and names of these."""

    suffixes = (".npz",)
    holds_arrays = True

    compress: bool = option(default=False, help="compress the file, which takes longer to write")

    def write(self, drawing: Drawing, path: Path) -> None:
        import numpy as np

        save = np.savez_compressed if self.compress else np.savez
        with open(path, "wb") as file:
            arrays: Any = drawing.arrays()
            for name, texts in drawing.index_names().items():
                arrays[name] = np.array(texts, dtype=np.str_)
            save(file, **arrays)
        if drawing.record:  # as the comment of the archive, since arrays are what its members are
            with ZipFile(path, "a") as archive:
                archive.comment = drawing.record.encode("ascii")


class SafeTensors(Writer, name="safetensors"):
    """Tensors by name, as in npz, with title, units, and the names of classes, columns and what else differs."""

    suffixes = (".safetensors",)
    holds_arrays = True

    def write(self, drawing: Drawing, path: Path) -> None:
        import numpy as np
        import torch
        from safetensors.torch import save_file

        tensors = {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in drawing.arrays().items()}
        facts: dict[str, Any] = {"title": drawing.title, "units": drawing.units, **drawing.index_names()}
        if drawing.record:  # within the one text, since the order of several would vary
            facts["record"] = json.loads(drawing.record)
        save_file(tensors, path, metadata={"samples": json.dumps(facts)})


class CSV(Writer, name="csv"):
    """One row per sample (x0, x1, ... or the columns of its data, label, class, and what differs), or per state too."""

    suffixes = (".csv",)
    holds_arrays = True
    record_beside = True

    def write(self, drawing: Drawing, path: Path) -> None:
        arrays = drawing.arrays()
        states, last = arrays.get("states"), _last_columns(drawing, arrays)
        rows = arrays["samples"][None] if states is None else states
        width = math.prod(rows.shape[2:])
        header = [*map(_quoted, drawing.column_names)] or [f"x{i}" for i in range(width)]
        if states is not None:
            header = ["state", "sample", *header]
        header += last
        number = "%d" if rows.dtype.kind == "u" else "%.9g" if rows.dtype.itemsize == 4 else "%.17g"
        line = ",".join([number] * width)
        with open(path, "w", encoding="utf-8", newline="\n") as file:
            file.write(",".join(header) + "\n")
            for state, samples in enumerate(rows):
                for i, sample in enumerate(samples):
                    before = "" if states is None else f"{state},{i},"
                    after = "".join(f",{values[i]}" for values in last.values())
                    file.write(f"{before}{line % tuple(sample.ravel())}{after}\n")


def _last_columns(drawing: Drawing, arrays: Mapping[str, Any]) -> dict[str, Sequence[Any]]:
    """Return what a CSV file says of each sample after its numbers, by the name of the column."""
    columns: dict[str, Sequence[Any]] = {}
    names = {name: [*map(_quoted, texts)] for name, texts in drawing.index_names().items()}
    if "labels" in arrays:
        columns["label"] = arrays["labels"]
        if "class_names" in names:
            columns["class"] = [names["class_names"][label] for label in arrays["labels"]]
    for axis in drawing.axes:
        values = arrays[axis.plural]
        columns[axis.name] = values if axis.numbers else [names[f"{axis.name}_names"][index] for index in values]
    return columns


def _quoted(text: str) -> str:
    """Return a text as a field of a CSV file, in quotes if it needs them (RFC 4180)."""
    plain = text == text.strip() and not any(c in ',"' or not c.isprintable() for c in text)
    return text if text and plain else '"' + text.replace('"', '""') + '"'
