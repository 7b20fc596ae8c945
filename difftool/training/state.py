"""Training states: all that a run goes on from, as safetensors files."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from difftool.errors import BadFile, DifftoolError
from difftool.runs import checkpoint
from difftool.runs.folder import RunFolder
from difftool.runs.recipe import Recipe, differences, read_recipe
from difftool.settings import LARGEST_STEP
from difftool.training.ema import EMA
from difftool.training.optimizer import Adam

if TYPE_CHECKING:
    from difftool.settings import Training

ADAM = ("step", "exp_avg", "exp_avg_sq")
"""What the optimizer keeps of each weight."""
LARGEST_ELAPSED = 1e12


@dataclass(frozen=True, kw_only=True)
class Circumstances:
    """What a state remembers beside its numbers."""

    elapsed: float
    """Seconds of training so far."""
    data: str = ""
    """The fingerprint of the data (`difftool.data.samples.fingerprint`)."""
    machine: Mapping[str, Any] = field(default_factory=dict)
    """Where it was trained: results are the same to the last bit on the same kind of machine alone."""

    @classmethod
    def read(cls, document: Mapping[str, Any]) -> Circumstances:
        """From untrusted metadata. Raises `ValueError`."""
        elapsed, data, machine = (document.get(name) for name in ("elapsed", "data", "machine"))
        if type(elapsed) is not float or not 0 <= elapsed < LARGEST_ELAPSED:
            raise ValueError("it has no time")
        if not isinstance(data, str) or not isinstance(machine, dict):
            raise ValueError("its circumstances are malformed")
        return cls(elapsed=elapsed, data=data, machine=machine)


def save(path: Path, state: TrainState, recipe: Recipe, circumstances: Circumstances) -> None:
    """All that training goes on from: weights, average, optimizer, counters."""
    tensors = {f"model.{name}": t for name, t in state.network.state_dict().items()}
    if state.ema is not None:
        tensors |= {f"ema.{name}": t for name, t in state.ema.network.state_dict().items()}
    for index, slots in state.optimizer.state().items():
        tensors |= {f"optimizer.{index}.{slot}": t for slot, t in slots.items()}
    document = {
        **recipe.document(),
        "kind": "state",
        "step": state.step,
        "skipped": state.skipped,
        "skipped_in_a_row": state.skipped_in_a_row,
        "ema_updates": state.ema.updates if state.ema else 0,
        "scaler": state.scaler.state_dict(),
        "elapsed": float(circumstances.elapsed),
        "data": circumstances.data,
        "machine": dict(circumstances.machine),
    }
    checkpoint.save(path, tensors, document)


def restore(folder: RunFolder, state: TrainState, recipe: Recipe) -> Circumstances | None:
    """Take up the newest valid state of a run; older ones serve where it is damaged. None where no state was saved yet.

    Raises `BadFile` when states are there and none is valid, for training never restarts in silence, and
    `DifftoolError` when they were trained by another recipe than that of the run's config file.
    """
    reasons: list[str] = []
    damaged = folder.damaged_states()
    for path in folder.saved_states():
        try:
            circumstances = _restore_from(path, state, recipe, folder.config)
        except BadFile as error:
            reasons.append(str(error))
            damaged.append(path)
            continue
        if reasons:
            warnings.warn(f"{reasons[0]}; going on from {path.name}", stacklevel=2)
        folder.set_aside(damaged)
        return circumstances
    if damaged:
        raise BadFile(f"no valid state in {folder.states}: {reasons[0] if reasons else f'{damaged[0]} is damaged'}")
    return None


def restore_from(folder: RunFolder, step: int, state: TrainState, recipe: Recipe) -> None:
    """Take up the state of a step, which another process has taken up before. Raises `DifftoolError`."""
    _restore_from(folder.state(step), state, recipe, folder.config)


def check(path: Path) -> str:
    """What is wrong with a training state, or an empty text."""
    try:
        _, document = checkpoint.load(path)
        _counters(path, document)
    except BadFile as error:
        return str(error)
    return ""


def _restore_from(path: Path, state: TrainState, recipe: Recipe, config: Path) -> Circumstances:
    tensors, document = checkpoint.load(path)
    counters, circumstances = _counters(path, document)
    if rows := differences(read_recipe(path, document), recipe):  # its weights would get another meaning in silence
        raise DifftoolError(
            f"{config} describes another run than {path.name} was trained in: {'; '.join(rows)}; "
            "restore that file, or start a new run"
        )
    groups = _fitting(path, tensors, state)
    if not groups["optimizer"] and counters["step"] > counters["skipped"]:
        raise BadFile(f"{path}: its optimizer is missing")
    if document["scaler"].keys() != state.scaler.state_dict().keys():
        raise BadFile(f"{path}: its scaler does not fit")
    _load(state, groups, document["scaler"])
    state.step, state.skipped = counters["step"], counters["skipped"]
    state.skipped_in_a_row = counters["skipped_in_a_row"]
    if state.ema is not None:
        state.ema.updates = counters["ema_updates"]
    return circumstances


def _fitting(path: Path, tensors: Mapping[str, Tensor], state: TrainState) -> dict[str, dict[str, Tensor]]:
    """The tensors of network, average and optimizer, by name in each. Raises `BadFile` where one does not fit."""
    groups: dict[str, dict[str, Tensor]] = {"model": {}, "ema": {}, "optimizer": {}}
    for name, tensor in tensors.items():
        group, _, rest = name.partition(".")
        if group not in groups:
            raise BadFile(f"{path}: {name} belongs to no training state")
        groups[group][rest] = tensor
    slots = {
        f"{index}.{slot}": torch.empty((), device="meta") if slot == "step" else p
        for index, p in enumerate(state.network.parameters())
        for slot in ADAM
        if any(f"{index}.{slot}" in groups["optimizer"] for slot in ADAM)  # a weight that is never used has none
    }
    wanted: dict[str, Mapping[str, Tensor]] = {
        "model": state.network.state_dict(),
        "ema": state.ema.network.state_dict() if state.ema else {},
        "optimizer": slots,
    }
    for group, own in wanted.items():
        if rows := checkpoint.differences(own, groups[group]):
            raise BadFile(f"{path}: its {group} does not fit: {rows}")
    return groups


def _load(state: TrainState, groups: Mapping[str, Mapping[str, Tensor]], scaler: dict[str, Any]) -> None:
    state.network.load_state_dict(groups["model"])
    if state.ema is not None:
        state.ema.network.load_state_dict(groups["ema"])
    slots: dict[int, dict[str, Tensor]] = {}
    for name, tensor in groups["optimizer"].items():
        index, _, slot = name.partition(".")
        slots.setdefault(int(index), {})[slot] = tensor
    state.optimizer.load(slots)
    state.scaler.load_state_dict(scaler)


def _counters(path: Path, document: Mapping[str, Any]) -> tuple[dict[str, int], Circumstances]:
    """The counters of a state, and its circumstances, from untrusted metadata. Raises `BadFile`."""
    if document.get("kind") != "state":
        raise BadFile(f"{path} is no training state")
    counters = {name: document.get(name) for name in ("step", "skipped", "skipped_in_a_row", "ema_updates")}
    scaler = document.get("scaler")
    try:
        if not all(type(c) is int and 0 <= c <= LARGEST_STEP for c in counters.values()):
            raise ValueError
        if not isinstance(scaler, dict) or not all(type(v) in (int, float) for v in scaler.values()):
            raise ValueError
        circumstances = Circumstances.read(document)
    except ValueError:
        raise BadFile(f"{path}: its counters are malformed") from None
    if path.name != RunFolder.state_name(document["step"]):
        raise BadFile(f"{path} holds step {document['step']}: it was renamed")
    return {name: document[name] for name in counters}, circumstances


@dataclass
class TrainState:
    """What changes while training: network, optimizer, average, step."""

    network: nn.Module
    optimizer: Adam
    ema: EMA | None
    scaler: torch.amp.GradScaler
    step: int = 0
    """Completed steps."""
    skipped: int = 0
    """Of these, how many changed nothing, since a gradient overflowed in fp16: as far as `settle` has looked."""
    skipped_in_a_row: int = 0
    unsettled: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    """(whether the gradient was finite, the loss) of the last steps, which nobody has looked at yet."""

    @classmethod
    def new(cls, network: nn.Module, settings: Training, device: torch.device) -> TrainState:
        """Before the first step."""
        scaled = settings.precision == "fp16" and device.type == "cuda"
        return cls(
            network,
            Adam(network.parameters()),
            EMA(network, settings.ema) if settings.ema else None,
            torch.amp.GradScaler(device.type, enabled=scaled),
        )
