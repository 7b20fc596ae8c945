"""Checks of an optimizer component before the first step: its groups, its optimizers, and the state that they keep."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from difftool.training.plain_values import is_number, is_plain

if TYPE_CHECKING:
    from difftool.specs import OptimizerLike

SMALL_SIZE = 4
"""The largest size of an axis of the copies that a dry run updates."""
MASKS = ("found_inf", "grad_scale")
"""The attributes that the caller sets."""


def members_of(groups: Any, weights: Mapping[str, nn.Parameter]) -> list[dict[str, nn.Parameter]]:
    """Return the weights of each group by name. Raises `ValueError` unless each weight is in one group, once."""
    if not isinstance(groups, Sequence) or not all(isinstance(g, Mapping) and "params" in g for g in groups):
        raise ValueError('groups() must return a list of groups such as {"params": [...], "weight_decay": 0.0}')
    names = {id(weight): name for name, weight in weights.items()}
    found = [[names.get(id(weight), "") for weight in group["params"]] for group in groups]
    counts = Counter(name for some in found for name in some)
    if "" in counts:
        raise ValueError("groups() returned a tensor that is not among the parameters it was given")
    if wrong := next((name for name in weights if counts[name] != 1), None):
        raise ValueError(f"groups() must return each parameter once, not {wrong} {counts[wrong]} times")
    for group in groups:
        scale = group.get("lr_scale", 1.0)
        if isinstance(scale, bool) or not isinstance(scale, (int, float)) or not 0 <= scale < math.inf:
            raise ValueError(f"lr_scale of a group must be a number that is not negative, not {scale!r:.80}")
    return [{name: weights[name] for name in some} for some in found]


def optimizers_of(built: Any, parameters: Sequence[Tensor]) -> list[OptimizerLike]:
    """Return what `Optimizer.build` returned as a list. Raises `ValueError` for what cannot update all parameters."""
    optimizers = [*built] if isinstance(built, (list, tuple)) else [built]
    for optimizer in optimizers:
        if not all(hasattr(optimizer, name) for name in ("param_groups", "state", "step")):
            raise ValueError(f"build() returned a {type(optimizer).__name__}, not an optimizer")
    held = [id(p) for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]]
    if sorted(held) != sorted(map(id, parameters)):
        raise ValueError("the optimizers that build() returned must hold each parameter of the groups exactly once")
    return optimizers


def small_shape(weight: Tensor) -> tuple[int, ...]:
    """Return the shape of a weight, cut to at most `SMALL_SIZE` entries in each axis."""
    return tuple(min(size, SMALL_SIZE) for size in weight.shape)


def small_copy(weight: Tensor) -> nn.Parameter:
    """Return a parameter like this weight, of the small shape."""
    return nn.Parameter(torch.full(small_shape(weight), 0.5, dtype=weight.dtype, device=weight.device))


def bytes_of(slots: Mapping[str, Any], weight: Tensor) -> int:
    """Return the bytes of state for each number of a weight."""
    return sum(v.element_size() for v in slots.values() if isinstance(v, Tensor) and v.shape == weight.shape)


def numbers_of(optimizer: OptimizerLike) -> dict[str, object]:
    """Return the numbers and tensors among the attributes of an optimizer, to be compared."""
    found: dict[str, object] = {}
    for name, value in getattr(optimizer, "__dict__", {}).items():
        if type(value) in (int, float):
            found[name] = value
        elif isinstance(value, Tensor) and name not in MASKS:
            found[name] = (id(value), value._version)
    return found


def check_attributes(optimizer: OptimizerLike, before: Mapping[str, object]) -> None:
    """Raise `ValueError` if steps have changed an attribute of an optimizer that no file would hold."""
    for name, value in numbers_of(optimizer).items():
        if before.get(name) != value:
            raise ValueError(
                f"{type(optimizer).__name__}.{name} changes from step to step and would not be saved; keep it in the "
                "state of a parameter, or in a group"
            )


def check_state(optimizer: OptimizerLike, *, elementwise: bool = False) -> None:
    """Raise `ValueError` if an optimizer keeps state that is neither tensors nor plain values."""
    kind = type(optimizer).__name__
    for where, name, value, fits in _entries(optimizer):
        if not fits(value):
            raise ValueError(
                f"{kind} keeps {name!r}, a {type(value).__name__}, in {where}; difftool saves only tensors and numbers"
            )
    if not elementwise:
        return
    for parameter, slots in optimizer.state.items():
        for slot, value in slots.items():
            if isinstance(value, Tensor) and value.shape not in (parameter.shape, ()):
                raise ValueError(
                    f"elementwise is true, but {kind} keeps {slot!r} of shape {tuple(value.shape)} for a parameter of "
                    f"shape {tuple(parameter.shape)}"
                )


def _entries(optimizer: OptimizerLike) -> Iterator[tuple[str, str, Any, Callable[[Any], bool]]]:
    """Yield the entries of groups and state: (where, name, value, the test that the value must pass)."""
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    for group in optimizer.param_groups:
        for key, value in group.items():
            if key != "params":
                yield "its groups", key, value, lambda v: is_plain(v) or is_constant(v)
    for parameter, slots in optimizer.state.items():
        if id(parameter) not in held:
            yield "its state, of no parameter", str(parameter)[:80], slots, lambda _: False
        for slot, value in slots.items():
            yield (
                "its state",
                str(slot),
                value,
                lambda v: is_number(v) or isinstance(v, Tensor),
            )


def is_constant(value: object) -> bool:
    """Return whether a value of a group is one that cannot change, and that `Optimizer.build` makes again."""
    return callable(value) or isinstance(value, (torch.dtype, torch.device))
