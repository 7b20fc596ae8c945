"""The auxiliary network of a loss: a teacher, a target, or a learnt uncertainty."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor, nn

from difftool.errors import DifftoolError, UsageError, blaming
from difftool.rng import key, seed_globally
from difftool.training.batch import LossSpec

if TYPE_CHECKING:
    from difftool.training.loss import Objective


def build_auxiliary(network: nn.Module, objective: Objective, seed: int) -> nn.Module | None:
    """Return the auxiliary network of the loss on the device of the objective, or None if it has none.

    Raises `UsageError` if the loss refuses, and `DifftoolError` for a module that could not be trained and resumed.
    """
    loss, data, device = objective.loss, objective.data, objective.device
    what = f"loss {loss.name}"
    spec = LossSpec(
        network=network,
        schedule=objective.spec.schedule,
        shape=data.shape,
        sigma_data=data.std,
        bounds=data.bounds,
        device=device,
    )
    seed_globally(device, key(seed, "loss"))
    with blaming(what, refusal=UsageError):
        auxiliary = loss.build(spec)
    if auxiliary is None:
        return None
    if not isinstance(auxiliary, nn.Module):
        raise DifftoolError(f"{what} built a {type(auxiliary).__name__}, not a module")
    if {id(weight) for weight in auxiliary.parameters()} & {id(weight) for weight in network.parameters()}:
        raise DifftoolError(f"{what}: its module holds weights of the trained network; copy.deepcopy(spec.network)")
    if others := [name for name, value in auxiliary.state_dict().items() if not isinstance(value, Tensor)]:
        raise DifftoolError(f"{what}: {others[0]} of its module is no tensor; a training state holds tensors alone")
    return auxiliary.to(device)


def trainable(auxiliary: nn.Module | None) -> list[tuple[str, nn.Parameter]]:
    """Return the parameters of an auxiliary network that are trained, with their names."""
    if auxiliary is None:
        return []
    return [(f"loss.{name}", weight) for name, weight in auxiliary.named_parameters() if weight.requires_grad]
