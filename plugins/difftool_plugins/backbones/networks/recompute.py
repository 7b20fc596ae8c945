"""Activation checkpointing."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint


def recomputed(function: Callable[..., Tensor], *arguments: Tensor) -> Tensor:
    """Return function(*arguments), of which autograd stores the arguments alone.

    The backward pass computes the function again, with the same random numbers (Chen et al., 2016).
    """
    if not torch.is_grad_enabled():
        return function(*arguments)
    output: Tensor = checkpoint(function, *arguments, use_reentrant=False)
    return output
