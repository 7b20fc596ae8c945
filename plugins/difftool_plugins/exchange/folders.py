"""The folder that an export writes, whole or not at all."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from difftool import DifftoolError, UsageError, printable
from difftool_plugins.commands.whole_folders import whole_folder

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
"""The number formats of exported weights."""


@dataclass(frozen=True)
class Use:
    """The words of the card on how to use an exported model."""

    library: str
    """The library, by its name on the hub."""
    text: str
    """How to run the model, in Markdown."""


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """Yield a folder that becomes `out` at the end, or vanishes after an error.

    Raises `UsageError` for a name that no new folder can have, and `DifftoolError` if it is taken.
    """
    if out.name in ("", ".."):
        raise UsageError("--out: must name a new folder")
    if out.exists() or out.is_symlink():
        raise DifftoolError(f"--out: {printable(str(out))} already exists; choose another name, or remove it")
    with whole_folder(out) as folder:
        yield folder


def rounded(network: nn.Module, dtype: str) -> nn.Module:
    """Return a copy of a network on the CPU, with weights of a number format.

    Raises `UsageError` for a weight that the format cannot hold, such as one above 65,504 in fp16.
    """
    copied = nn.Module.to(copy.deepcopy(network).cpu(), DTYPES[dtype])
    for (name, tensor), old in zip(copied.state_dict().items(), network.state_dict().values(), strict=True):
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()) and bool(old.isfinite().all()):
            raise UsageError(f"--dtype: {dtype} cannot hold {name}; choose bf16 or fp32")
    return copied
