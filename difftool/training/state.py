"""Training states: everything that a run is resumed from, as safetensors files."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from difftool.distributed import SINGLE, ProcessGroup
from difftool.errors import BadFile, DifftoolError
from difftool.files import move_folder, temporary_folder
from difftool.runs import checkpoint, states
from difftool.runs.checkpoint import Contents
from difftool.runs.folder import RunFolder, step_of
from difftool.runs.latents import document_of, tensors_of
from difftool.runs.origin import Origin
from difftool.runs.recipe import Recipe, differences
from difftool.runs.recorded import read_recipe
from difftool.settings import LARGEST_STEP
from difftool.training.auxiliary import trainable
from difftool.training.ema import Averages
from difftool.training.optimizer import Updater
from difftool.training.vectors import is_sharded, own_parts
from difftool.training.window import check_window

if TYPE_CHECKING:
    from difftool.components import Optimizer
    from difftool.data.latents import LatentSpace
    from difftool.settings import Training

LARGEST_ELAPSED = 1e12
"""The longest training time that a state may claim, in seconds."""
GROUPS = ("network", "codec", "loss", "averages", "optimizer", "window")
"""The groups of tensors."""
COUNTERS = ("step", "skipped", "skipped_in_a_row", "ema_updates")


@dataclass
class TrainState:
    """Everything that changes in training: network, optimizer, averages, scale of the loss, counters."""

    network: nn.Module
    optimizer: Updater
    averages: Averages
    scaler: torch.amp.GradScaler
    auxiliary: nn.Module | None = None
    """The auxiliary network of the loss."""
    latents: LatentSpace | None = None
    """The latents that the network works in, which do not change."""
    part: tuple[int, int] = (0, 1)
    """The rank of this process and the number of processes, if the weights are sharded."""
    step: int = 0
    """The number of completed steps."""
    skipped: int = 0
    """Steps skipped because of fp16 overflow, as of the last call to `check_finite`."""
    skipped_in_a_row: int = 0
    moving: bool = False
    """True while a step moves the weights. What an exception leaves then is no step's state."""
    window: Mapping[str, Tensor] = field(default_factory=dict)
    """The numbers of the steps since the last row of metrics, when the state is saved or was loaded."""
    unchecked: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    """(is the gradient finite, the loss) of the steps since the last call to `check_finite`."""

    @classmethod
    def new(
        cls,
        network: nn.Module,
        settings: Training,
        device: torch.device,
        *,
        optimizer: Optimizer,
        auxiliary: nn.Module | None = None,
        group: ProcessGroup = SINGLE,
    ) -> TrainState:
        """Return the state before the first step. Raises `UsageError` if the optimizer's parts do not fit together."""
        scaled = settings.precision == "fp16" and device.type == "cuda"
        return cls(
            network,
            Updater(optimizer, [*network.named_parameters(), *trainable(auxiliary)], settings.lr),
            Averages.of(network, settings, group.copied),  # after the optimizer, which joins weights
            torch.amp.GradScaler(device.type, enabled=scaled),
            auxiliary,
            part=(group.rank, group.size) if group.sharded else (0, 1),
        )

    @property
    def bytes(self) -> int:
        """The size of a saved state: weights, averages, optimizer, and the networks of the loss and the codec."""
        own = [] if self.auxiliary is None else [*self.auxiliary.parameters()]
        copies = [*self.network.parameters()] * (1 + len(self.averages))
        tensors = (*copies, *own, *tensors_of(self.latents).values())
        return sum(t.numel() * t.element_size() for t in tensors) + self.optimizer.state_bytes

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """Return the tensors of network, codec, auxiliary, averages and optimizer, by their names there.

        Of sharded ones they are the parts that this process holds.
        """
        return {
            "network": own_parts(self.network.state_dict()),
            "codec": tensors_of(self.latents),
            "loss": self.auxiliary.state_dict() if self.auxiliary is not None else {},
            "averages": own_parts(self._averages()),
            "optimizer": self.optimizer.tensors(),
            "window": dict(self.window),
        }

    def _averages(self) -> dict[str, Tensor]:
        return {f"{i}.{name}": t for i, one in enumerate(self.averages) for name, t in one.network.state_dict().items()}

    def whole_shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the whole shape of each sharded tensor, by the name that it has in a file."""
        if self.part[1] == 1:
            return {}
        weights = checkpoint.ungrouped({"network": self.network.state_dict(), "averages": self._averages()})
        shapes = {name: tuple(tensor.shape) for name, tensor in weights.items() if is_sharded(tensor)}
        return {**shapes, **{f"optimizer.{name}": shape for name, shape in self.optimizer.whole_shapes().items()}}


@dataclass(frozen=True, kw_only=True)
class StateMetadata:
    """The facts that a state records beside its tensors."""

    elapsed: float
    """Seconds of training so far."""
    data: str = ""
    """The fingerprint of the data."""
    machine: Mapping[str, Any] = field(default_factory=dict)
    """The machine. Results are the same to the last bit only on machines of the same kind."""
    origin: Origin | None = None
    """The model whose weights the run started from, or None."""

    @classmethod
    def read(cls, document: Mapping[str, Any]) -> StateMetadata:
        """Read untrusted metadata. Raises `ValueError`."""
        elapsed, data, machine = (document.get(name) for name in ("elapsed", "data", "machine"))
        if type(elapsed) is not float or not 0 <= elapsed < LARGEST_ELAPSED:
            raise ValueError("elapsed must be a time")
        if not isinstance(data, str) or not isinstance(machine, dict):
            raise ValueError("data must be a string, and machine a table")
        return cls(elapsed=elapsed, data=data, machine=machine, origin=Origin.read(document.get("init_from")))


def contents(state: TrainState, recipe: Recipe, metadata: StateMetadata) -> Contents:
    """Return everything that training is resumed from. The tensors are those that training changes."""
    document = {
        **recipe.shared_document(),
        "kind": "state",
        "step": state.step,
        "skipped": state.skipped,
        "skipped_in_a_row": state.skipped_in_a_row,
        "ema_updates": state.averages.updates,
        "scaler": state.scaler.state_dict(),
        "optimizer_state": state.optimizer.document(),
        "elapsed": float(metadata.elapsed),
        "data": metadata.data,
        "machine": dict(metadata.machine),
        **document_of(state.latents),
    }
    if metadata.origin is not None:
        document["init_from"] = metadata.origin.document()
    return Contents(checkpoint.ungrouped(state.tensors()), document)


def save_sharded(
    place: Callable[[], RunFolder], contents: Callable[[], Contents], state: TrainState, group: ProcessGroup
) -> None:
    """Write a state as shards, one by each process, and then their index. All processes call this.

    The folder gets its name once everything is in it. A state of this step that is there already is the one that the
    run was resumed from, and stays. Raises `DifftoolError`.
    """
    folder = group.on_main(place)
    path = folder.shards(state.step)
    if group.on_main(path.exists):
        return
    with temporary_folder(folder.states) if group.is_main else nullcontext() as made:
        temporary: Path = group.on_main(lambda: made)  # type: ignore[assignment]
        tensors, document = contents()
        shapes = {name: shape for name, shape in state.whole_shapes().items() if name in tensors}
        digests = group.all_gather(states.write_shard(temporary, *state.part, tensors, shapes, state.step))

        def complete() -> None:
            states.write_index(temporary, document, shapes, digests)
            move_folder(temporary, path)

        group.on_main(complete)


def restore(folder: RunFolder, state: TrainState, recipe: Recipe) -> StateMetadata | None:
    """Load the newest valid state of a run, and set damaged ones aside. Return None if no state was saved yet.

    Raises `BadFile` if there are states but none is valid, since training never starts again in silence, and
    `DifftoolError` if the run's config file describes another recipe than its states.
    """
    reasons: list[str] = []
    damaged = folder.damaged_states()
    for path in folder.saved_states():
        try:
            metadata = _load(path, state, recipe, folder.config)
        except BadFile as error:
            reasons.append(str(error))
            damaged.append(path)
            continue
        if reasons:
            warnings.warn(f"{reasons[0]}; going on from {path.name}", stacklevel=2)
        folder.set_aside(damaged)
        return metadata
    if damaged:
        raise BadFile(f"no valid state in {folder.states}: {reasons[0] if reasons else f'{damaged[0]} is damaged'}")
    return None


def restore_step(folder: RunFolder, step: int, state: TrainState, recipe: Recipe) -> None:
    """Load the state of this step, which the main process has loaded before. Raises `DifftoolError`."""
    path = next(path for path in folder.saved_states() if step_of(path) == step)
    _load(path, state, recipe, folder.config)


def check_resumable(before: StateMetadata, now: StateMetadata, dataset: str, *, new_data: bool) -> None:
    """Refuse to resume with other data, and warn if another machine may give other last digits."""
    if before.data != now.data and not new_data:
        raise DifftoolError(
            f"dataset {dataset}: its data have changed since the run was trained "
            f"({before.data}; now {now.data}); put them back, or pass --new-data to train on these"
        )
    then = {"processes": 1, **before.machine}
    rows = [f"{name} {then.get(name)}, now {value}" for name, value in now.machine.items() if value != then.get(name)]
    if rows:
        warnings.warn(
            f"the run was trained with {'; '.join(rows)}: its last digits may differ from those of a run that was "
            "never interrupted",
            stacklevel=2,
        )


def check(path: Path) -> str:
    """Return what is wrong with a training state, or an empty string."""
    try:
        _, document = states.load(path)
        _read_document(path, document)
    except BadFile as error:
        return str(error)
    return ""


def _load(path: Path, state: TrainState, recipe: Recipe, config: Path) -> StateMetadata:
    """Load a state once all of it was checked. Raises `BadFile` and `DifftoolError`."""
    state.optimizer.make_state()  # it may change weights, which are loaded below
    tensors, document = states.load(path, *state.part, state.whole_shapes())
    counters, metadata = _read_document(path, document)
    recorded = read_recipe(path, document, recipe.document())
    if rows := differences(recorded, recipe):  # its weights would get another meaning in silence
        raise DifftoolError(
            f"{config} describes another run than {path.name} was trained in: {'; '.join(rows)}; "
            "restore that file, or start a new run"
        )
    groups = _grouped(path, tensors, state, recipe.training.timesteps)
    if not groups["optimizer"] and state.optimizer.expected() and counters["step"] > counters["skipped"]:
        raise BadFile(f"{path}: its optimizer is missing")
    if document["scaler"].keys() != state.scaler.state_dict().keys():
        raise BadFile(f"{path}: its scaler does not fit")
    try:
        state.optimizer.load(groups["optimizer"], document["optimizer_state"])
    except (AttributeError, KeyError, TypeError, ValueError):
        raise BadFile(f"{path}: the numbers of its optimizer do not fit") from None
    _fill(state.network, groups["network"])
    if state.latents is not None:
        state.latents.codec.load_state_dict(groups["codec"])
    if state.auxiliary is not None:
        state.auxiliary.load_state_dict(groups["loss"])
    for i, average in enumerate(state.averages):
        own = {name: groups["averages"][f"{i}.{name}"] for name in average.network.state_dict()}
        _fill(average.network, own)
    state.window = groups["window"]
    state.averages.updates = counters["ema_updates"]
    state.scaler.load_state_dict(document["scaler"])
    state.step, state.skipped, state.skipped_in_a_row = (counters[name] for name in COUNTERS[:3])
    return metadata


@torch.no_grad()
def _fill(network: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Load the tensors of a network, or the parts of a sharded one that this process holds."""
    own = network.state_dict()
    if not any(map(is_sharded, own.values())):
        network.load_state_dict(tensors)
        return
    for name, part in own_parts(own).items():
        part.copy_(tensors[name])


def _grouped(path: Path, tensors: Mapping[str, Tensor], state: TrainState, levels: int) -> dict[str, dict[str, Tensor]]:
    """Return the tensors of each group by the names that they have there. Raises `BadFile` if one does not fit."""
    try:
        groups = checkpoint.grouped(tensors, GROUPS)
    except ValueError as error:
        raise BadFile(f"{path} is no training state: {error}") from None
    try:
        check_window(groups["window"], levels)
    except ValueError as error:
        raise BadFile(f"{path}: its numbers since the last row of metrics do not fit: {error}") from None
    optimizer = state.optimizer.expected(groups["optimizer"])
    expected = {**state.tensors(), "optimizer": optimizer, "window": groups["window"]}
    for group, own in expected.items():
        if rows := checkpoint.differences(own, groups[group]):
            raise BadFile(f"{path}: its {group} does not fit: {rows}")
    return groups


def _read_document(path: Path, document: Mapping[str, Any]) -> tuple[dict[str, int], StateMetadata]:
    """Return the counters of a state and its metadata, which are untrusted. Raises `BadFile`."""
    if document.get("kind") != "state":
        raise BadFile(f"{path} is not a training state")
    counters, scaler = {name: document.get(name) for name in COUNTERS}, document.get("scaler")
    try:
        if not all(type(c) is int and 0 <= c <= LARGEST_STEP for c in counters.values()):
            raise ValueError
        if not isinstance(scaler, dict) or not all(type(v) in (int, float) for v in scaler.values()):
            raise ValueError
        metadata = StateMetadata.read(document)
    except ValueError:
        raise BadFile(f"{path}: its counters are malformed") from None
    if step_of(path) != document["step"]:
        raise BadFile(f"{path} holds step {document['step']}: it was renamed")
    return {name: document[name] for name in COUNTERS}, metadata
