"""A model file of difftool, with a card."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from difftool import Model
from difftool_plugins.exchange.folders import Use, rounded

TEXT = """\
```
difftool sample model.safetensors
difftool info model.safetensors
```
"""


def check(model: Model) -> None:
    """Accept every model."""


def write(model: Model, folder: Path, dtype: str) -> Use:
    """Write the model file, with weights of another number format if asked."""
    replace(model, network=rounded(model.network, dtype)).save(folder / "model.safetensors")
    return Use("difftool", TEXT)
