"""The weights of a run beside those in its model file."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from difftool.errors import BadFile
from difftool.runs import averages, states
from difftool.runs.folder import RunFolder, step_of

if TYPE_CHECKING:
    from torch import Tensor

BEST = "best"
"""The name of the weights in best.safetensors."""


def files_of(run: RunFolder) -> dict[str, Path]:
    """Return the files of other weights by their names: of the best model, and of averages."""
    files = {file.name: file.path for file in averages.files_in(run.averages) if file.step is None}
    return {BEST: run.best, **files} if run.best.is_file() else files


@dataclass(frozen=True, eq=False)
class RawWeights:
    """The network of a training state."""

    tensors: dict[str, Tensor]
    path: Path
    digest: str


def newest_weights(run: RunFolder) -> RawWeights:
    """Return the network of the newest readable state of a run. Raises `BadFile` if there is none."""
    reasons = []
    for path in run.saved_states():
        try:
            tensors, document, digest = states.load_with_digest(path)
            if document.get("kind") != "state" or document.get("step") != step_of(path):
                raise BadFile(f"{path} is not the training state that its name says")
        except BadFile as error:
            if not os.path.lexists(path):  # the run that is being trained has just replaced it
                return newest_weights(run)
            reasons.append(str(error))
            continue
        raw = {name.removeprefix("network."): t for name, t in tensors.items() if name.startswith("network.")}
        return RawWeights(raw, path, digest)
    raise BadFile(reasons[0] if reasons else f"run {run.path} has no training state, so its raw weights are gone")
