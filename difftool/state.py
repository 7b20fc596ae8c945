"""Training states: all that a run goes on from, as safetensors files."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from difftool import checkpoint
from difftool.errors import BadFile, DifftoolError, UsageError
from difftool.model import Model
from difftool.recipe import PARTS, Recipe
from difftool.runs import RunFolder
from difftool.training import TrainState


def save(path: Path, state: TrainState, recipe: Recipe, elapsed: float) -> None:
    """All that training goes on from: weights, average, optimizer, counters."""
    tensors = {f"model.{name}": t for name, t in state.network.state_dict().items()}
    if state.ema is not None:
        tensors |= {f"ema.{name}": t for name, t in state.ema.network.state_dict().items()}
    for index, slots in state.optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{slot}": t for slot, t in slots.items()}
    document = {
        **recipe.document(),
        "kind": "state",
        "step": state.step,
        "ema_updates": state.ema.updates if state.ema else 0,
        "scaler": state.scaler.state_dict(),
        "elapsed": float(elapsed),
    }
    checkpoint.save(path, tensors, document)


def restore(folder: RunFolder, state: TrainState, recipe: Recipe) -> float | None:
    """Take up the newest valid state of a run; older ones serve where it is damaged. Returns its elapsed seconds, or
    None where no state was saved yet.

    Raises `BadFile` when states are there and none is valid, for training never restarts in silence, and
    `DifftoolError` when they were trained as other components than the recipe's.
    """
    reasons: list[str] = []
    refused: list[Path] = []
    for path in folder.saved_states():
        try:
            elapsed = _restore_from(path, state, recipe)
        except BadFile as error:
            reasons.append(str(error))
            refused.append(path)
            continue
        if reasons:
            warnings.warn(f"{reasons[0]}; going on from {path.name}", stacklevel=2)
        for damaged in refused:  # set aside, or it would count as the newest state, to be kept before valid ones
            damaged.rename(damaged.with_name(f"{damaged.name}.damaged"))
        return elapsed
    if reasons:
        raise BadFile(f"no valid state in {folder.states}: {reasons[0]}")
    return None


def _restore_from(path: Path, state: TrainState, recipe: Recipe) -> float:
    tensors, document = checkpoint.load(path)
    if document.get("kind") != "state":
        raise BadFile(f"{path} is no training state")
    wanted = json.loads(json.dumps(recipe.document()))
    for kind in PARTS:  # a config.toml that was edited since would give the weights another meaning
        before, now = document.get(kind), wanted[kind]
        if before is not None and before != now:
            raise DifftoolError(
                f"{path} was trained with the {kind} {_words(before)}, "
                f"not {_words(now)} as the run's config.toml says; "
                "restore that file, or start a new run"
            )
    counters = [document.get(name) for name in ("step", "ema_updates")]
    elapsed, scaler = document.get("elapsed"), document.get("scaler")
    if any(type(c) is not int or c < 0 for c in counters) or type(elapsed) is not float or not isinstance(scaler, dict):
        raise BadFile(f"{path}: its counters are malformed")
    groups: dict[str, dict[str, Tensor]] = {"model": {}, "ema": {}, "optimizer": {}}
    for name, tensor in tensors.items():
        group, _, rest = name.partition(".")
        groups.setdefault(group, {})[rest] = tensor
    targets: list[tuple[str, nn.Module | None]] = [
        ("model", state.network),
        ("ema", state.ema.network if state.ema else None),
    ]
    for group, module in targets:
        wanted = module.state_dict() if module is not None else {}
        if rows := checkpoint.differences(wanted, groups[group]):
            raise BadFile(f"{path}: its {group} weights do not fit: {rows}")
    for group, module in targets:
        if module is not None:
            module.load_state_dict(groups[group])
    optimizer = state.optimizer.state_dict()
    slots: dict[int, dict[str, Tensor]] = {}
    for name, tensor in groups["optimizer"].items():
        index, _, slot = name.partition(".")
        slots.setdefault(int(index), {})[slot] = tensor
    state.optimizer.load_state_dict({**optimizer, "state": slots})
    for p, own in state.optimizer.state.items():  # files are contiguous; the fused step needs the weight's own layout
        own.update({slot: torch.empty_like(p).copy_(t) for slot, t in own.items() if t.shape == p.shape})
    if state.ema is not None:
        state.ema.updates = document["ema_updates"]
    if scaler:
        state.scaler.load_state_dict(scaler)
    state.step = document["step"]
    return elapsed


def read_model(source: Path, run: RunFolder | None, weights: str) -> Model:
    """The model of a file, with the weights asked for: the file holds one kind, its run's state the other."""
    model = Model.read(source)
    if weights == "ema" or model.weights == "raw":  # a run without an average (--ema 0) has raw weights alone
        return model
    if run is None:
        raise UsageError(f"--weights raw: {source} holds the average alone; name the run folder, its state has them")
    return raw_model(model, run)


def raw_model(model: Model, run: RunFolder) -> Model:
    """The model with the weights that were being trained, from the newest state of its run."""
    reasons = []
    for path in run.saved_states():
        try:
            tensors, document = checkpoint.load(path)
        except BadFile as error:
            reasons.append(str(error))
            continue
        raw = {name.removeprefix("model."): t for name, t in tensors.items() if name.startswith("model.")}
        if rows := checkpoint.differences(model.network.state_dict(), raw):
            raise BadFile(f"{path}: its weights do not fit: {rows}")
        model.network.load_state_dict(raw)
        return replace(model, weights="raw", step=int(document["step"]), source=path)
    raise BadFile(reasons[0] if reasons else f"run {run.path} has no training state, so its raw weights are gone")


def _words(table: Mapping[str, Any]) -> str:
    """A component of a document in words: `linear (beta_min 0.0001)`."""
    options = ", ".join(f"{key} {value}" for key, value in table.items() if key != "name")
    return f"{table.get('name')} ({options})" if options else str(table.get("name"))
