"""Samples as numbers: pixels 0..255, or floats with --raw; points in data units."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

from difftool import Writer, option

if TYPE_CHECKING:
    from pathlib import Path

    from difftool import Drawing


class NPY(Writer, name="npy"):
    """One numpy array: the samples, or with --trajectory the states of their walk, x_T first."""

    suffixes = (".npy",)
    holds_arrays = True

    def write(self, drawing: Drawing, path: Path) -> None:
        import numpy as np

        arrays = drawing.arrays()
        with open(path, "wb") as file:  # given a name, numpy would append .npy to one that ends in .NPY
            np.save(file, arrays.get("states", arrays["samples"]))


class NPZ(Writer, name="npz"):
    """Named numpy arrays: samples, labels where there are classes, states with --trajectory."""

    suffixes = (".npz",)
    holds_arrays = True

    compress: bool = option(default=False, help="smaller, and slower to write")

    def write(self, drawing: Drawing, path: Path) -> None:
        import numpy as np

        save = np.savez_compressed if self.compress else np.savez
        with open(path, "wb") as file:
            arrays: Any = drawing.arrays()
            save(file, **arrays)


class SafeTensors(Writer, name="safetensors"):
    """Named tensors as in npz; title and units are in the metadata."""

    suffixes = (".safetensors",)
    holds_arrays = True

    def write(self, drawing: Drawing, path: Path) -> None:
        import numpy as np
        import torch
        from safetensors.torch import save_file

        tensors = {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in drawing.arrays().items()}
        save_file(tensors, path, metadata={"samples": json.dumps({"title": drawing.title, "units": drawing.units})})


class CSV(Writer, name="csv"):
    """One row a sample: x0, x1, ..., its label; with --trajectory one row a state and sample, both numbered."""

    suffixes = (".csv",)
    holds_arrays = True

    def write(self, drawing: Drawing, path: Path) -> None:
        arrays = drawing.arrays()
        states, labels = arrays.get("states"), arrays.get("labels")
        rows = arrays["samples"][None] if states is None else states
        width = math.prod(rows.shape[2:])
        header = [f"x{i}" for i in range(width)]
        if states is not None:
            header = ["state", "sample", *header]
        if labels is not None:
            header.append("label")
        line = ",".join(["%d" if rows.dtype.kind == "u" else "%.9g"] * width)
        with open(path, "w", encoding="utf-8", newline="\n") as file:
            file.write(",".join(header) + "\n")
            for state, samples in enumerate(rows):
                for i, sample in enumerate(samples):
                    before = "" if states is None else f"{state},{i},"
                    after = "" if labels is None else f",{labels[i]}"
                    file.write(f"{before}{line % tuple(sample.ravel())}{after}\n")
