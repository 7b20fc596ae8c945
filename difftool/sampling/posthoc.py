"""Averages of any length, reconstructed after training from snapshots (Karras et al., 2024, section 3.2)."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

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


@dataclass(frozen=True)
class Reconstruction:
    """An average put together from snapshots."""

    tensors: Mapping[str, Tensor]
    step: int
    error: float
    """The error of its profile, relative to the profile wanted."""
    path: Path
    """The newest file that it was made from."""


def check_length(length: float) -> None:
    """Raise `UsageError` for a length that no power-function average has."""
    if isinstance(length, bool) or not isinstance(length, (int, float)) or not SHORTEST <= length <= LONGEST:
        raise UsageError(f"--ema-length: must be a number from {SHORTEST:g} to {LONGEST:g}, not {length!r:.80}")


def reconstruct(run: RunFolder, length: float, weights: Collection[str]) -> Reconstruction:
    """Return the average of a length after the run's newest step. Raises `DifftoolError`.

    The tensors named `weights` are summed, in double precision, and the others, which are buffers, are the newest.
    """
    files = [file for file in averages.files_in(run.averages) if file.length is not None]
    if not files:
        raise UsageError(
            f"--ema-length: {run.path} has no power-function averages; train with --ema-lengths 0.05,0.10 to have them"
        )
    read = {file: _read(file) for file in files if file.step is None}  # these change while the run is trained
    found: dict[Profile, AverageFile] = {}
    for file in files:
        step = read[file][1] if file in read else file.step
        assert file.length is not None
        assert step is not None
        found.setdefault((file.length, step), file)
    last = max(step for _, step in found)
    c, error = nearest_sum([*found], (length, last))
    if error > ROUGH:
        lengths = ", ".join(f"{known:g}" for known in sorted({known for known, _ in found}))
        warnings.warn(
            f"--ema-length {length:g}: the snapshots of lengths {lengths} give this average only to within "
            f"{error:.1%}; train with --ema-lengths nearer to it, or a lower --snapshot-every, for a better one",
            stacklevel=2,
        )
    newest = next(file for (_, step), file in found.items() if step == last)
    expected = read[newest][0] if newest in read else _read(newest)[0]
    total = {name: tensor.double().zero_() if name in weights else tensor for name, tensor in expected.items()}
    for factor, file in zip(c, found.values(), strict=True):
        if abs(factor) < NEGLIGIBLE:
            continue
        tensors = read[file][0] if file in read else _read(file)[0]
        if rows := checkpoint.differences(expected, tensors):
            raise BadFile(f"{file.path}: its weights do not fit those of {newest.path.name}: {rows}")
        for name in weights:
            total[name].add_(tensors[name], alpha=factor)
    return Reconstruction(
        {name: tensor.to(expected[name].dtype) for name, tensor in total.items()}, last, error, newest.path
    )


def _read(file: AverageFile) -> tuple[dict[str, Tensor], int]:
    """Return the tensors of an average, and its step. Raises `BadFile`."""
    tensors, document = checkpoint.load(file.path)
    step = document.get("step")
    named = document.get("kind") == "model" and document.get("weights") == file.name
    if not named or type(step) is not int or step < 1 or file.step not in (None, step):
        raise BadFile(f"{file.path} is not the average that its name says")
    return tensors, step
