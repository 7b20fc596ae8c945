"""Embeddings of time and class labels."""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn

from difftool import Condition


def sinusoidal(t: Tensor, size: int, frequencies: str = "transformer") -> Tensor:
    """Return the sines and cosines (B, size) of t (B,), a time in [0, 1000).

    The size/2 angular frequencies fall geometrically from 1. With "transformer" (Vaswani et al., 2017) the one after
    the last would be 1e-4; with "ddpm" (Ho et al., 2020, their code) the last one is. They are computed and not stored,
    so a cast of the network to another dtype does not round them.
    """
    half = size // 2
    ratios = half if frequencies == "transformer" else max(half - 1, 1)
    frequencies_of_t = torch.exp(torch.arange(half, device=t.device, dtype=t.dtype) * (-math.log(1e4) / ratios))
    angles = t[:, None] * frequencies_of_t
    return torch.cat([angles.sin(), angles.cos()], dim=1)


def class_index(x: Tensor, cond: Condition | None, classes: int) -> Tensor:
    """Return the labels (B,) of the items of x; hidden ones, and all of them without `cond`, are `classes`."""
    return torch.full((len(x),), classes, device=x.device) if cond is None else cond.class_index(classes)


def refuse_labels(cond: Condition | None) -> None:
    """Raise `ValueError` for labels. A network without classes would ignore them, and its output would be wrong."""
    if cond is not None and cond.label is not None:
        raise ValueError("this network was built without classes and takes no labels")


def full_precision(device: torch.device) -> AbstractContextManager[object]:
    """Return a context in which autocast is off.

    A few numbers that depend on time scale and shift all features. In bfloat16 their rounding errors would spread
    through the network, and in float32 they cost next to nothing.
    """
    kind = device.type
    on = torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)
    return torch.autocast(kind, enabled=False) if on else nullcontext()


class Embedding(nn.Module):
    """Embed time t (B,) and the labels of `cond` as vectors (B, width): MLP(sinusoidal(t)) + table[label].

    Args:
        time_dim: Number of sines and cosines of t; even.
        width: Size of the vectors.
        classes: Number of classes, or None for a network that takes no labels. Index `classes` means "no class".
        activation: Nonlinearity of the MLP.
        frequencies: Those of the sines and cosines: transformer or ddpm, as in `sinusoidal`.
    """

    def __init__(
        self,
        *,
        time_dim: int,
        width: int,
        classes: int | None = None,
        activation: type[nn.Module] = nn.SiLU,
        frequencies: str = "transformer",
    ) -> None:
        super().__init__()
        self.time_dim, self.classes, self.frequencies = time_dim, classes, frequencies
        self.inner = nn.Linear(time_dim, width)
        self.activation = activation()
        self.outer = nn.Linear(width, width)
        self.label = None if classes is None else nn.Embedding(classes + 1, width)

    def forward(self, t: Tensor, cond: Condition | None = None) -> Tensor:
        waves = sinusoidal(t, self.time_dim, self.frequencies).to(self.inner.weight.dtype)
        vectors: Tensor = self.outer(self.activation(self.inner(waves)))
        if self.label is None or self.classes is None:
            refuse_labels(cond)
        else:
            vectors = vectors + self.label(class_index(t, cond, self.classes))
        return vectors
