"""Models that other software trained, as models of difftool."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from difftool.components import Dataset
from difftool.errors import BadFile, DifftoolError
from difftool.runs import checkpoint
from difftool.runs.recipe import build_recipe
from difftool.sampling.model import Model

SOURCE = "imported"
"""The name of the dataset of a model whose data are not known here."""


def model_of(
    tables: Mapping[str, Mapping[str, Any]],
    data: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
) -> Model:
    """Return the model of components, facts about its data, and the weights of its network.

    `tables` are those of a config file: `{"backbone": {"name": "unet", "dim": 64}, "training": {"timesteps": 1000}}`;
    what they leave out gets its default. `data` has at least the shape, shift, scale and form of the items, and may
    have bounds, class_names and std, all in the fields of `Samples`. `tensors` are the state of the network that the
    backbone builds. All is checked as in a model file. Raises `DifftoolError`.
    """
    recipe = build_recipe({kind: table for kind, table in tables.items() if kind != Dataset.kind})
    document = {
        **recipe.shared_document(),
        Dataset.kind: {"name": SOURCE},
        "kind": "model",
        "data": dict(data),
        "plugins": {},
        "weights": "raw",
        "step": 0,
    }
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        checkpoint.save(path, checkpoint.ungrouped({"network": tensors}), document)
        try:
            return Model.read(path)
        except DifftoolError as error:
            raise BadFile(str(error).removeprefix(f"{path}: ").replace(str(path), "the model")) from None
