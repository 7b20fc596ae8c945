"""The weights that a run had at earlier steps: training states, snapshots of averages, and the best ones."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from difftool.errors import BadFile, UsageError, listed
from difftool.runs import averages, checkpoint, states
from difftool.runs.averages import canonical
from difftool.runs.folder import RunFolder, step_of
from difftool.runs.weights import BEST
from difftool.sampling.model import Model
from difftool.sampling.source import Source

ALL = "all"
"""The word for all steps."""
LISTED = 12
"""The number of steps that a refusal names."""


@dataclass(frozen=True)
class Checkpoint:
    """The weights of a run at a step."""

    name: str
    """The step as a text, or `best`."""
    path: Path
    group: str
    """The beginning of the names of the tensors in the file: `network.`, or `averages.0.` for an average in a state."""
    step: int | None = None
    """The step that the file must hold; None for any."""
    weights: str | None = None
    """The weights that a model file must hold, or those that a state holds in this group."""

    def into(self, model: Source) -> Model:
        """Put the weights into the network of a model, and return the model that it then is. Raises `BadFile`."""
        assert isinstance(model, Model)
        tensors, document, digest = states.load_with_digest(self.path)
        kind, step = document.get("kind"), document.get("step")
        is_model = kind == "model"
        weights = document.get("weights") if is_model else self.weights
        if kind not in ("model", "state") or type(step) is not int or self.step not in (None, step):
            raise BadFile(f"{self.path} is not the checkpoint that its name says")
        if not isinstance(weights, str) or (is_model and self.weights not in (None, weights)):
            raise BadFile(f"{self.path} holds {weights}, not {self.weights}")
        found = {name.removeprefix(self.group): t for name, t in tensors.items() if name.startswith(self.group)}
        try:
            found = checkpoint.widened(found, document.get("dtype"))
        except ValueError as error:
            raise BadFile(f"{self.path}: its weights do not fit: {error}") from None
        if rows := checkpoint.differences(model.network.state_dict(), found):
            raise BadFile(f"{self.path}: its weights do not fit: {rows}")
        model.network.load_state_dict(found)
        return replace(model, weights=weights, step=step, source=self.path, digest=digest)


def find(digest: str, runs: Iterable[RunFolder]) -> tuple[RunFolder, Path] | None:
    """Return the first file of weights in these runs that carries a digest, and its run; None without any."""
    for run in runs:
        files = [run.model, run.best, *(one.path for one in averages.files_in(run.averages))]
        for path in [*files, *run.saved_states()]:
            with contextlib.suppress(BadFile):
                if states.load_digest(path) == digest:
                    return run, path
    return None


def checkpoint_in(model: Model, path: Path, weights: str) -> Checkpoint:
    """Return the weights of this name in a file of a model's run, whatever their step. Raises `BadFile`."""
    if model.run is None or path.parent != model.run.states:
        return Checkpoint(path.stem, path, "network.", None, weights)
    if (group := _group(model, weights)) is None:
        raise BadFile(f"{path} holds no {weights} weights")
    return Checkpoint(path.stem, path, group, None, weights)


def _group(model: Model, weights: str) -> str | None:
    """Return the beginning of the names of the tensors of these weights in a training state, or None without any."""
    kept = averages.names_of(model.recipe.training)
    return "network." if weights == "raw" else f"averages.{kept.index(weights)}." if weights in kept else None


def checkpoints_of(source: Source, text: str, weights: str | None) -> list[Checkpoint]:
    """Return the checkpoints of a text such as `all`, `500,1000` or `500,best`, in its order, `all` by their steps.

    `weights` names those of a run as `load_model` does. Raises `UsageError`.
    """
    if not isinstance(source, Model):
        raise UsageError("--checkpoints: an oracle has none")
    if source.run is None:
        raise UsageError(f"--checkpoints: {source.source} is one file; name a run folder, which has checkpoints")
    known = _known(source, weights)
    words = [*known] if text == ALL else list(dict.fromkeys(word.strip() for word in text.split(",")))
    if missing := [word for word in words if word not in known]:
        kept = [*known]
        more = f" and {len(kept) - LISTED} more" if len(kept) > LISTED else ""
        has = f"has {listed([*kept[:LISTED]])}{more}" if kept else "has none"
        raise UsageError(
            f"--checkpoints: {source.run.path} {has} of {source.weights} weights, and no {missing[0]!r}; "
            "train with a higher --keep to keep more"
        )
    return [known[word] for word in words]


def _known(model: Model, weights: str | None) -> dict[str, Checkpoint]:
    """Return the checkpoints of a run that hold these weights, by name: those of steps in their order, then `best`."""
    run = model.run
    assert run is not None
    name = model.weights if weights in (None, "ema") else canonical(str(weights)) or weights
    found: dict[int, Checkpoint] = {}
    if run.model.is_file() and model.source == run.model:
        found[model.step] = Checkpoint(str(model.step), run.model, "network.", model.step, model.weights)
    for file in averages.files_in(run.averages):
        if file.name == name and file.step is not None:
            found[file.step] = Checkpoint(str(file.step), file.path, "network.", file.step, name)
    if (group := _group(model, name)) is not None:
        for path in run.saved_states():
            step = step_of(path)
            found.setdefault(step, Checkpoint(str(step), path, group, step, name))
    named = {str(step): found[step] for step in sorted(found)}
    if run.best.is_file():
        named[BEST] = Checkpoint(BEST, run.best, "network.")
    return named
