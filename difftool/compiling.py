"""Compilation by torch.compile, of as much at once as pays."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

SMALL = 2**18
"""The largest number of weights of a network whose time goes into calls rather than into arithmetic."""
NO_GAIN = "--compile is left out: training a network of this size on a CPU gains too little from it"
CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
"""The modules in which networks keep blocks that follow one another."""

Function = TypeVar("Function", bound=Callable[..., Any])


def compiled_network(network: nn.Module, *, forward_only: bool = False) -> Callable[..., Tensor]:
    """Return a network, compiled: a small one as a whole, a large one block by block.

    Blocks of one class and one shape share their code, so a deep network takes little longer to compile than a shallow
    one. To train on a CPU, a large network is returned as it is, with a warning. A small one on CUDA becomes a graph if
    it is used `forward_only`; otherwise the result is a module.
    """
    weights = [*network.parameters()]
    device = weights[0].device if weights else torch.device("cpu")
    if sum(weight.numel() for weight in weights) <= SMALL:
        return compiled(network, device) if forward_only else torch.compile(network)
    if device.type == "cpu" and not forward_only:
        warnings.warn(NO_GAIN, stacklevel=2)
        return network
    return with_compiled_blocks(network)


def compiled(function: Function, device: torch.device, **options: Any) -> Function:
    """Return a function that launches many small kernels, compiled; on CUDA as a graph, which launches them at once."""
    if device.type != "cuda":
        return torch.compile(function, **options)  # type: ignore[return-value]
    graph = torch.compile(function, mode="reduce-overhead", **options)

    def call(*arguments: Any) -> Any:
        return tree_map_only(Tensor, Tensor.clone, graph(*arguments))  # the next call overwrites its results

    return call  # type: ignore[return-value]


def with_compiled_blocks(network: nn.Module) -> Callable[..., Tensor]:
    """Compile the blocks of a network in place, or return a compiled function if it repeats no block."""
    blocks = [*repeated_blocks(network)]
    if not blocks:
        return torch.compile(network)
    limit = torch._dynamo.config.cache_size_limit  # shapes of blocks beyond it would not be compiled
    torch._dynamo.config.cache_size_limit = max(limit, 2 * len(blocks))
    for block in blocks:
        block.compile(dynamic=False)
    return network


def repeated_blocks(network: nn.Module) -> Iterator[nn.Module]:
    """Yield the blocks of a network: modules of a class that occurs several times.

    Layers and containers are no blocks. Of blocks inside blocks, those of the class that occurs most often count, and
    the outer ones if these are as many.
    """
    counts = Counter(type(module) for module in network.modules() if is_composed(module))

    def search(module: nn.Module) -> Iterator[nn.Module]:
        for child in module.children():
            most = max((counts[type(inner)] for inner in child.modules()), default=0)
            if counts[type(child)] == most > 1:
                yield child
            else:
                yield from search(child)

    yield from search(network)


def is_composed(module: nn.Module) -> bool:
    """Return whether a module is made of others, and more than a container of them."""
    return not isinstance(module, CONTAINERS) and any(True for _ in module.children())
