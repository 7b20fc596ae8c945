"""The update of the weights: what drives the optimizers of a run, whichever they are.

A small network spends most of a step on its many small tensors. Where the component allows it, each group of them is
joined into one vector, so that a step is one call. A step whose gradient is not finite is masked on a GPU by optimizers
that can, and skipped by the host for others, which has to wait for the GPU then. On a CPU the host skips it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.utils import get_total_norm

from difftool.errors import UsageError, blaming
from difftool.rng import seed_globally
from difftool.training.optimizer_checks import (
    bytes_of,
    check_attributes,
    check_state,
    members_of,
    numbers_of,
    optimizers_of,
    small_copy,
    small_shape,
)
from difftool.training.plain_values import decode, encode, is_plain
from difftool.training.vectors import is_sharded, join, own_part, views_of

if TYPE_CHECKING:
    from difftool.components import Optimizer
    from difftool.specs import OptimizerLike


@dataclass(frozen=True)
class Piece:
    """A tensor that an optimizer updates: a weight, this process's part of it, or a vector of several weights."""

    tensor: nn.Parameter
    names: tuple[str, ...]
    weights: tuple[nn.Parameter, ...]
    is_vector: bool = False

    @classmethod
    def of(cls, weights: Mapping[str, nn.Parameter], *, joined: bool) -> list[Piece]:
        """Return the pieces of a group: one vector if the weights are to be joined and can be, else each weight."""
        vector = join([*weights.values()]) if joined and not any(map(is_sharded, weights.values())) else None
        if vector is None:
            return [
                cls(nn.Parameter(own_part(weight)) if is_sharded(weight) else weight, (name,), (weight,))
                for name, weight in weights.items()
            ]
        tensor = nn.Parameter(vector)
        tensor.grad = torch.zeros_like(vector)
        for weight, grad in zip(weights.values(), views_of(tensor.grad, [*weights.values()]), strict=True):
            weight.grad = grad
        return [cls(tensor, tuple(weights), tuple(weights.values()), is_vector=True)]


class Updater:
    """The optimizers of a component, and the weights that they update, by name. Frozen weights are left out.

    `groups` are those of the component, unless others are given, of which no dry run is made. Raises `UsageError` for
    groups that do not fit, and for an optimizer whose state cannot be saved.
    """

    def __init__(
        self,
        component: Optimizer,
        weights: Iterable[tuple[str, nn.Parameter]],
        lr: float,
        *,
        joined: bool = True,
        groups: Sequence[Mapping[str, Any]] | None = None,
    ) -> None:
        self.component = component
        self.name = f"optimizer {component.name}"
        self.weights = {name: weight for name, weight in weights if weight.requires_grad}
        with blaming(self.name, refusal=UsageError):
            chosen = component.groups([*self.weights.items()]) if groups is None else groups
            members = members_of(chosen, self.weights)
            self.state_bytes = dry_run(component, chosen, members, lr) if groups is None and self.weights else 0
            """The size of the state that the optimizers keep."""
            pieces = [Piece.of(some, joined=component.elementwise and joined) for some in members]
            self.pieces = [piece for some in pieces for piece in some]
            self._sharded = [piece for piece in self.pieces if is_sharded(piece.weights[0])]
            self.parameters = [piece.tensor for piece in self.pieces]
            """The tensors that the optimizers update: vectors and weights."""
            held = [{**g, "params": [p.tensor for p in some]} for g, some in zip(chosen, pieces, strict=True)]
            self.optimizers = optimizers_of(component.build(held, lr), self.parameters)
        self.param_groups = [group for optimizer in self.optimizers for group in optimizer.param_groups]
        """The groups of all optimizers, where torch's `GradScaler` looks for them."""
        self.maskable = [hasattr(optimizer, "found_inf") for optimizer in self.optimizers]
        """True for each optimizer that masks a step on the device."""
        self._index = {name: i for i, name in enumerate(self.weights)}
        self._late: list[OptimizerLike] = []
        """The optimizers that `make_state` made a step with."""

    def clear_gradients(self) -> None:
        """Set the gradient of each vector to zero, and those of other weights to None."""
        for piece in self.pieces:
            if piece.is_vector:
                assert piece.tensor.grad is not None
                piece.tensor.grad.zero_()
            else:
                piece.tensor.grad = None

    def take_gradients(self) -> None:
        """Give the parts of sharded weights their gradients, after a backward pass."""
        for piece in self._sharded:
            gradient, piece.weights[0].grad = piece.weights[0].grad, None
            piece.tensor.grad = None if gradient is None else own_part(gradient)

    def gradient_norm(self) -> Tensor:
        """Return the norm of all gradients together, a scalar on the device. Unused weights have no gradient."""
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        norm: Tensor = torch.linalg.vector_norm(gradients[0]) if len(gradients) == 1 else get_total_norm(gradients)
        return norm

    def update(self, lr: float, finite: Tensor) -> None:
        """Update the weights. If `finite`, a boolean on the device, is false, nothing changes."""
        for group in self.param_groups:
            group["lr"] = lr * group.get("lr_scale", 1.0)
        mask = None if finite.device.type == "cpu" else (~finite).float()  # the CPU has nothing to wait for
        with blaming(self.name):
            for i, optimizer in enumerate(self.optimizers):
                if mask is not None and self.maskable[i]:
                    optimizer.found_inf = mask  # type: ignore[attr-defined]
                    optimizer.step()
                elif bool(finite):
                    optimizer.step()
                    if getattr(optimizer, "_step_supports_amp_scaling", False):
                        # torch's fused optimizers know the mask, but not in their first step: SGD leaves its momentum
                        # without a value then
                        self.maskable[i] = True

    @torch.no_grad()
    def make_state(self) -> None:
        """Make the optimizers create the state that some create in their first step. That step may change weights."""
        for optimizer in self.optimizers:
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            if all(optimizer.state.get(p) for p in parameters):
                continue
            for parameter in parameters:
                parameter.grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad.zero_()
            with blaming(self.name):
                optimizer.step()
            self._late.append(optimizer)
        self.clear_gradients()

    def weight_state(self) -> dict[int, dict[str, Any]]:
        """Return the optimizer state by the index of the weight. Weights that made no step are omitted."""
        return {i: slots for i, slots in self.all_weight_state().items() if made_step(slots)}

    def all_weight_state(self) -> dict[int, dict[str, Any]]:
        """Return the optimizer state by the index of the weight, where there is any, as views of that of vectors."""
        found: dict[int, dict[str, Any]] = {}
        for piece, optimizer in self._by_piece():
            state = optimizer.state.get(piece.tensor, {})
            columns = {slot: self._column(piece, value) for slot, value in state.items()}
            for position, name in enumerate(piece.names):
                if state:
                    found[self._index[name]] = {slot: column[position] for slot, column in columns.items()}
        return dict(sorted(found.items()))

    def document(self) -> dict[str, Any]:
        """Return the numbers of state and groups as JSON holds them. Raises `DifftoolError` for other values."""
        with blaming(self.name):
            for optimizer in self.optimizers:
                check_state(optimizer)
        numbers = {
            str(i): {slot: encode(v) for slot, v in slots.items() if not isinstance(v, Tensor)}
            for i, slots in self.weight_state().items()
        }
        groups = [{k: encode(v) for k, v in g.items() if k != "params" and is_plain(v)} for g in self.param_groups]
        return {"weights": {i: slots for i, slots in numbers.items() if slots}, "groups": groups}

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors of the state by the name that each has in a file: `0.exp_avg`."""
        return tensors_in(self.weight_state())

    def whole_shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the whole shapes of those tensors of the state that are sharded as their weights are."""
        state = self.all_weight_state()
        return {
            f"{i}.{slot}": tuple(piece.weights[0].shape)
            for piece in self._sharded
            for i in [self._index[piece.names[0]]]
            for slot, value in state.get(i, {}).items()
            if isinstance(value, Tensor) and value.shape == piece.tensor.shape
        }

    def expected(self, names: Iterable[str] | None = None) -> dict[str, Tensor]:
        """Return tensors like those that a file of these names should hold, or that a file may hold at all.

        A weight that made no step has none. The state must exist, as `make_state` makes it.
        """
        state = self.all_weight_state()
        present = {*map(str, state)} if names is None else {name.partition(".")[0] for name in names}
        return tensors_in({i: slots for i, slots in state.items() if str(i) in present})

    @torch.no_grad()
    def load(self, tensors: Mapping[str, Tensor], document: Mapping[str, Any]) -> None:
        """Load `tensors` that are as `expected`, and what `document` returned. Raises `ValueError` if it does not fit.

        The weights may have been joined then and not be joined now, or vice versa.
        """
        numbers, groups = self._numbers(tensors, document), self._groups(document)
        own = self.all_weight_state()
        for name, tensor in tensors.items():
            index, _, slot = name.partition(".")
            own[int(index)][slot].copy_(tensor)
        present = {int(name.partition(".")[0]) for name in tensors} | numbers.keys()
        for piece, optimizer in self._by_piece():
            members = [self._index[name] for name in piece.names]
            for i in members:
                if i in numbers:
                    optimizer.state[piece.tensor].update(numbers[i])
            if optimizer in self._late and present.isdisjoint(members) and piece.tensor in optimizer.state:
                optimizer.state[piece.tensor].clear()  # as before the first step
        for group, values in zip(self.param_groups, groups, strict=True):
            group.update(values)

    def _numbers(self, tensors: Mapping[str, Tensor], document: Mapping[str, Any]) -> dict[int, dict[str, Any]]:
        """Return the numbers of each weight in a document. Raises `ValueError` if they do not fit."""
        found: dict[int, dict[str, Any]] = {}
        saved, present = document["weights"], {name.partition(".")[0] for name in tensors}
        for i, slots in self.all_weight_state().items():
            wanted = {slot for slot, value in slots.items() if not isinstance(value, Tensor)}
            numbers = saved.get(str(i), {})
            if numbers.keys() != (wanted if numbers or str(i) in present else set()):
                raise ValueError("the numbers of a weight are others")
            if numbers:
                found[i] = {slot: decode(value, None) for slot, value in numbers.items()}
        return found

    def _groups(self, document: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Return the plain values of each group in a document. Raises `ValueError` if they do not fit."""
        found = []
        for group, saved in zip(self.param_groups, document["groups"], strict=True):
            if saved.keys() != {key for key, value in group.items() if key != "params" and is_plain(value)}:
                raise ValueError("the groups have other values")
            found.append({key: decode(value, group[key]) for key, value in saved.items()})
        return found

    def _by_piece(self) -> list[tuple[Piece, OptimizerLike]]:
        """Return each piece with its optimizer."""
        holder = {id(p): o for o in self.optimizers for group in o.param_groups for p in group["params"]}
        return [(piece, holder[id(piece.tensor)]) for piece in self.pieces]

    @staticmethod
    def _column(piece: Piece, value: Any) -> Sequence[Any]:
        """Return an entry of the state for each weight of a piece."""
        if piece.is_vector and isinstance(value, Tensor) and value.shape == piece.tensor.shape:
            return views_of(value, piece.weights)
        return [value] * len(piece.weights)


STEPS_BEFORE, STEPS_AFTER = 3, 4
"""The steps of a dry run before its state is saved, and after it was loaded."""


def dry_run(
    component: Optimizer, groups: Sequence[Mapping[str, Any]], members: Sequence[Mapping[str, nn.Parameter]], lr: float
) -> int:
    """Train small copies of some weights, resume that from its saved state, and return the bytes of state of them all.

    Each group has a copy for each of the shapes that its weights have when they are small. Raises `ValueError` for a
    state that cannot be saved, or that does not resume to the last bit. What an optimizer makes of the true size of a
    weight is not seen here, so such a state may still be refused when it is saved.
    """
    kinds = [{name: small_shape(weight) for name, weight in some.items()} for some in members]
    chosen = [{shape: name for name, shape in some.items()} for some in kinds]
    everything = {name: weight for some in members for name, weight in some.items()}

    def on_copies() -> tuple[Updater, dict[str, nn.Parameter]]:
        copies = {name: small_copy(everything[name]) for some in chosen for name in some.values()}
        small = [{**g, "params": [copies[name] for name in c.values()]} for g, c in zip(groups, chosen, strict=True)]
        return Updater(component, copies.items(), lr, groups=small), copies

    (first, copies), (second, others) = on_copies(), on_copies()
    before = [numbers_of(optimizer) for optimizer in first.optimizers]
    for step in range(STEPS_BEFORE):
        dry_step(first, copies, lr, step)
    for optimizer, numbers in zip(first.optimizers, before, strict=True):
        check_attributes(optimizer, numbers)
        check_state(optimizer, elementwise=component.elementwise)
    state = dict(zip(copies, map(first.all_weight_state().get, range(len(copies))), strict=True))
    if not any(copy.is_meta for copy in copies.values()):  # which has no numbers to compare
        second.make_state()
        with torch.no_grad():
            for name, copy in copies.items():
                others[name].copy_(copy)
        second.load({name: tensor.clone() for name, tensor in first.tensors().items()}, first.document())
        for step in range(STEPS_BEFORE, STEPS_BEFORE + STEPS_AFTER):
            dry_step(first, copies, lr, step)
            dry_step(second, others, lr, step)
        if wrong := next((name for name in copies if not torch.equal(copies[name], others[name])), None):
            raise ValueError(f"it does not resume exactly: {wrong} differs after its state was saved and loaded")
    kept = {name: bytes_of(state[name] or {}, copies[name]) for name in copies}
    return sum(
        weight.numel() * kept[names[shapes[name]]]
        for some, shapes, names in zip(members, kinds, chosen, strict=True)
        for name, weight in some.items()
    )


def dry_step(updater: Updater, weights: Mapping[str, nn.Parameter], lr: float, step: int) -> None:
    """Make a step with gradients that depend on the step alone."""
    for i, weight in enumerate(weights.values()):
        gradient = torch.full_like(weight, 0.01 * math.cos(step + i))
        weight.grad = gradient if weight.grad is None else weight.grad.copy_(gradient)
    device = updater.parameters[0].device
    seed_globally(device, step)  # for optimizers that draw random numbers
    updater.update(lr, torch.ones((), dtype=torch.bool, device=device))


def tensors_in(state: Mapping[int, Mapping[str, Any]]) -> dict[str, Tensor]:
    """Return the tensors of a state by weight and slot, by the name that each has in a file."""
    return {f"{i}.{slot}": v for i, slots in state.items() for slot, v in slots.items() if isinstance(v, Tensor)}


def made_step(slots: Mapping[str, Any]) -> bool:
    """Return whether a weight with this state made a step. Only Adam and its kin count them."""
    step = slots.get("step")
    return not isinstance(step, (int, float, Tensor)) or bool((torch.as_tensor(step) != 0).any())
