"""Averages of any length, reconstructed after training from snapshots (Karras et al., 2024, section 3.2)."""

from __future__ import annotations

import warnings
from collections.abc import Collection
from pathlib import Path

import torch
from torch import Tensor, nn

from difftool.errors import BadFile, UsageError
from difftool.runs import averages, checkpoint
from difftool.runs.averages import AverageFile
from difftool.runs.folder import RunFolder
from difftool.runs.power import Profile, nearest_sum
from difftool.settings import LONGEST, SHORTEST

ROUGH = 0.01
"""The relative error of a profile above which a reconstruction is called rough."""
NEGLIGIBLE = 1e-9
"""The size of a coefficient below which its snapshot is not read."""


def check_length(length: float) -> None:
    """Raise `UsageError` for a length that no power-function average has."""
    if isinstance(length, bool) or not isinstance(length, (int, float)) or not SHORTEST <= length <= LONGEST:
        raise UsageError(f"--ema-length: must be a number from {SHORTEST:g} to {LONGEST:g}, not {length!r:.80}")


def reconstruct(run: RunFolder, length: float, network: nn.Module) -> tuple[dict[str, Tensor], int, Path]:
    """Return the average of a length at the step of the last save, this step, and the file of the newest part of it.

    `network` is the network of the run. Its weights are summed in double precision, and buffers are those of this
    step. Raises `DifftoolError`.
    """
    files = [file for file in averages.files_in(run.averages) if file.length is not None]
    saved = {file: _read(file, network) for file in files if file.step is None}  # a run that trains replaces these
    found: dict[Profile, AverageFile] = {}
    for file in files:
        assert file.length is not None
        found.setdefault((file.length, saved[file][1] if file in saved else file.step or 0), file)
    last = max((step for _, step in saved.values()), default=max((step for _, step in found), default=0))
    found = {(known, step): file for (known, step), file in found.items() if 0 < step <= last}
    if not found:
        raise UsageError(
            f"--ema-length: {run.path} has no power-function averages; train with --ema-lengths 0.05,0.10 to have them"
        )
    c, error = nearest_sum([*found], (length, last))
    if error > ROUGH:
        _warn(length, error, [known for known, _ in found])
    newest = max(found.items(), key=lambda item: item[0][1])[1]
    total = {name: tensor.clone() for name, tensor in (saved.get(newest) or _read(newest, network))[0].items()}
    buffers = {name for name, _ in network.named_buffers(remove_duplicate=False)}
    sums = {name: torch.zeros_like(t, dtype=double(t)) for name, t in total.items() if name not in buffers}
    for factor, file in zip(c, found.values(), strict=True):
        if abs(factor) >= NEGLIGIBLE:
            tensors = (saved.get(file) or _read(file, network))[0]
            for name, tensor in sums.items():
                tensor.add_(tensors[name], alpha=factor)
    total.update({name: tensor.to(total[name].dtype) for name, tensor in sums.items()})
    return total, last, newest.path


def double(tensor: Tensor) -> torch.dtype:
    """Return the type in which tensors of this type are summed."""
    return torch.promote_types(tensor.dtype, torch.float64)


def _warn(length: float, error: float, known: Collection[float]) -> None:
    """Warn that the snapshots do not come near to the average of a length."""
    lengths = ", ".join(f"{one:g}" for one in sorted(set(known)))
    warnings.warn(
        f"--ema-length {length:g}: the snapshots of lengths {lengths} give this average only to within {error:.1%}; "
        "train with --ema-lengths nearer to it, or a lower --snapshot-every, for a better one",
        stacklevel=3,
    )


def _read(file: AverageFile, network: nn.Module) -> tuple[dict[str, Tensor], int]:
    """Return the tensors of an average of a network, and its step. Raises `BadFile`."""
    stored, document = checkpoint.load(file.path)
    step = document.get("step")
    named = document.get("kind") == "model" and document.get("weights") == file.name
    if not named or type(step) is not int or step < 0 or file.step not in (None, step):
        raise BadFile(f"{file.path} is not the average that its name says")
    try:
        tensors = checkpoint.grouped(stored, ("network", "codec"))["network"]
    except ValueError as error:
        raise BadFile(f"{file.path}: its weights do not fit: {error}") from None
    if rows := checkpoint.differences(network.state_dict(), tensors):
        raise BadFile(f"{file.path}: its weights do not fit: {rows}")
    return tensors, step
