"""The memory layout of networks and their inputs: channels-last for images, where convolutions are faster so."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import nn


def arrange(network: nn.Module) -> None:
    """Put all weights of four axes into channels-last.

    `Module.to(memory_format=...)` would put weights of five axes, as of films, into it too, which torch refuses.
    """
    for tensor in chain(network.parameters(), network.buffers()):
        if tensor.ndim == 4:
            tensor.data = tensor.data.to(memory_format=torch.channels_last)


def layout_of(network: nn.Module, shape: Sequence[int]) -> torch.memory_format:
    """Return channels-last for items of three axes if the network has convolutions; elsewhere it only adds copies."""
    convolves = len(shape) == 3 and any(weight.ndim == 4 for weight in network.parameters())
    return torch.channels_last if convolves else torch.contiguous_format
