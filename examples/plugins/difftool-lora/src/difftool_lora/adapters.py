"""The adapters themselves. They live inside the layers that they adapt, whose parameters keep their names."""

from __future__ import annotations

import copy
import functools
import re

import torch
from torch import Tensor, nn

LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
"""The layers that can be adapted."""


class Product(nn.Module):
    """Map a weight W (out, ...) to W + scale * up @ down, with up (out, rank) and down (rank, in).

    All axes of W after the first count as `in`: a convolution is a linear map of patches.
    """

    def __init__(self, weight: Tensor, rank: int, scale: float) -> None:
        super().__init__()
        rows, columns = len(weight), weight[0].numel()
        rank = min(rank, rows, columns)
        self.scale = scale
        self.down = nn.Parameter(weight.new_empty(rank, columns))
        self.up = nn.Parameter(weight.new_zeros(rows, rank))  # so that the network starts as it was
        nn.init.kaiming_uniform_(self.down, a=5**0.5)

    def forward(self, weight: Tensor) -> Tensor:
        return weight + self.scale * (self.up @ self.down).view_as(weight)


def adapt(network: nn.Module, layers: str, rank: int, scale: float) -> nn.Module:
    """Add an adapter to each linear and convolution layer whose name matches a pattern, and return the network.

    Raises `ValueError` if none does.
    """
    found = {name: layer for name, layer in network.named_modules() if isinstance(layer, LAYERS)}
    chosen = [layer for name, layer in found.items() if re.search(layers, name)]
    if not chosen:
        raise ValueError(f"layers: {layers!r} matches none of {', '.join(found) or 'no layers'}")
    for layer in chosen:
        layer.add_module("lora", Product(layer.weight.detach(), rank, scale))
        layer.__class__ = adapted(type(layer))
    return network


@functools.cache
def adapted(layer: type[nn.Module]) -> type[nn.Module]:
    """Return a class of layers whose weight, wherever it is read, is the adapted one."""

    def weight(self: nn.Module) -> Tensor:
        result: Tensor = self.lora(self._parameters["weight"])  # type: ignore[operator]
        return result

    return type(f"Adapted{layer.__name__}", (layer,), {"weight": property(weight)})


@torch.no_grad()
def merge(network: nn.Module) -> nn.Module:
    """Return a copy of the network without adapters, whose weights hold what the adapters added."""
    merged = copy.deepcopy(network)
    for layer in list(merged.modules()):
        if isinstance(getattr(layer, "lora", None), Product):
            layer._parameters["weight"] = nn.Parameter(layer.weight.detach().clone())  # type: ignore[operator, union-attr]
            layer.__class__ = type(layer).__bases__[0]
            del layer.lora
    return merged
