"""How time and class labels enter a network."""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn


def sinusoidal(t: Tensor, size: int) -> Tensor:
    """Sines and cosines of t (B,) in [0, 1000) at size/2 frequencies from 1 to 1e-4 radians, shaped (B, size).

    Vaswani et al. (2017), as DDPM uses it. The table is computed, not stored: no cast of the network can blunt it.
    """
    half = size // 2
    frequencies = torch.exp(torch.arange(half, device=t.device, dtype=t.dtype) * (-math.log(1e4) / half))
    angles = t[:, None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=1)


def labels(x: Tensor, cond: Tensor | None, classes: int) -> Tensor:
    """The class index of each sample of x, (B,) int64; without `cond` all are `classes`, which means "no class"."""
    return torch.full((len(x),), classes, device=x.device) if cond is None else cond


def refuse_labels(cond: Tensor | None) -> None:
    """For networks without classes: a label that is silently ignored would be a wrong answer."""
    if cond is not None:
        raise ValueError("this network was built without classes and takes no labels")


def full_precision(device: torch.device) -> AbstractContextManager[object]:
    """Autocast off. What is worked out of time is a few numbers that each pixel is multiplied by: rounded to bfloat16
    they would blunt all of the network, and in float32 they cost nothing."""
    return torch.autocast(device.type, enabled=False) if torch.is_autocast_enabled(device.type) else nullcontext()


class Embedding(nn.Module):
    """Time (B,) and class labels as one vector (B, width): MLP(sinusoidal(t)) + label vector."""

    def __init__(self, size: int, width: int, classes: int | None, activation: type[nn.Module] = nn.SiLU) -> None:
        super().__init__()
        self.size, self.classes = size, classes
        self.inner = nn.Linear(size, width)
        self.activation = activation()
        self.outer = nn.Linear(width, width)
        self.label = nn.Embedding(classes + 1, width) if classes is not None else None

    def forward(self, t: Tensor, cond: Tensor | None) -> Tensor:
        features = sinusoidal(t, self.size).to(self.inner.weight.dtype)
        vector: Tensor = self.outer(self.activation(self.inner(features)))
        if self.label is not None and self.classes is not None:
            vector = vector + self.label(labels(t, cond, self.classes))
        else:
            refuse_labels(cond)
        return vector
