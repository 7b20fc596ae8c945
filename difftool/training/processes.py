"""The processes that train together, by the settings of a run."""

from __future__ import annotations

from typing import TYPE_CHECKING

from difftool.components import Loss, Optimizer
from difftool.distributed import DistributedGroup, world
from difftool.errors import InvalidOption

if TYPE_CHECKING:
    from torch import nn

    from difftool.runs.recipe import Recipe
    from difftool.settings import Training


def kind_of_group(settings: Training) -> type[DistributedGroup]:
    """Return the class of the processes that train together. A single one has nothing to share out."""
    if not settings.shard or world().size == 1:
        return DistributedGroup
    from difftool.training.sharding import ShardedGroup  # it imports much of torch.distributed

    return ShardedGroup


def check_shardable(recipe: Recipe, network: nn.Module, auxiliary: nn.Module | None) -> None:
    """Raise `InvalidOption` for what cannot be trained in parts."""
    settings, optimizer, loss = recipe.training, recipe[Optimizer], recipe[Loss]
    reason = ""
    if not optimizer.elementwise:
        reason = (
            f"optimizer {optimizer.name} needs whole matrices, and each process has some rows; choose one that moves "
            "every number by itself, such as adamw"
        )
    elif settings.compile:
        reason = "a sharded network cannot be compiled; leave --compile out"
    elif settings.precision == "fp16":
        reason = "the scale of fp16 is not shared; choose --precision bf16 or fp32"
    elif auxiliary is not None or type(loss).after_step is not Loss.after_step:
        reason = f"loss {loss.name} works with a whole network beside the one that trains"
    elif getattr(network, "skips_weights", False):
        reason = "the network leaves some weights out of some steps (skips_weights)"
    elif scalar := next((name for name, weight in network.named_parameters() if not weight.ndim), ""):
        reason = f"the weight {scalar} has no axis to be split along; give it the shape (1,)"
    if reason:
        raise InvalidOption("shard", reason, where="--shard")
