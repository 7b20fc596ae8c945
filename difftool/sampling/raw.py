"""The weights that were being trained, which only the training states of a run hold."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from difftool.errors import BadFile
from difftool.runs import checkpoint
from difftool.runs.folder import RunFolder, step_of


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
            tensors, document, digest = checkpoint.load_with_digest(path)
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
