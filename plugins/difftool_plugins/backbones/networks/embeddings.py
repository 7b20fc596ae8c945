"""Embeddings of time, class labels and vectors."""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from difftool import Condition, ConditionSpec


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
    return torch.full((x.shape[0],), classes, device=x.device) if cond is None else cond.class_index(classes)


def check_fields(cond: Condition | None, condition: ConditionSpec) -> None:
    """Raise `ValueError` for fields of other names than a network was built for.

    It would ignore what it does not know, and miss what it was trained with, so its output would be wrong.
    """
    if cond is None:
        return
    expected, fields = {*condition.shapes}, {*cond.tensors()} - {"hidden"}
    if others := sorted(fields - expected):
        raise ValueError(f"this network was built without {WORDS[others[0]]} and takes none")
    if missing := sorted(expected - fields):
        raise ValueError(f"this network was built with {WORDS[missing[0]]} and needs them")


WORDS = {"label": "classes", "vector": "vectors", "image": "condition images", "tokens": "tokens"}
"""The fields of `Condition` in messages."""


def full_precision(device: torch.device) -> AbstractContextManager[object]:
    """Return a context in which autocast is off.

    A few numbers that depend on time scale and shift all features. In bfloat16 their rounding errors would spread
    through the network, and in float32 they cost next to nothing.
    """
    kind = device.type
    on = torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)
    return torch.autocast(kind, enabled=False) if on else nullcontext()


class VectorEmbedding(nn.Module):
    """Embed the vectors (B, size) of `cond` as (B, width) by an MLP; hidden ones become `nothing`, which is learnt.

    Zeros alone could not hide a vector: they are the mean of all vectors, which is a condition like any other.
    """

    def __init__(self, size: int, width: int) -> None:
        super().__init__()
        self.inner = nn.Linear(size, width)
        self.outer = nn.Linear(width, width)
        self.nothing = nn.Parameter(torch.zeros(width))

    def forward(self, cond: Condition | None) -> Tensor:
        if cond is None:
            return self.nothing
        assert cond.vector is not None
        output = self.outer(F.silu(self.inner(cond.vector.to(self.inner.weight.dtype))))
        return torch.where(cond.hidden[:, None], self.nothing, output)


class Embedding(nn.Module):
    """Embed time t (B,), the labels and the vectors of `cond` as vectors (B, width).

    They are MLP(sinusoidal(t)) + table[label] + MLP(vector), of which the last two are there with such conditions only.

    Args:
        time_dim: Number of sines and cosines of t; even.
        width: Size of the vectors.
        condition: The conditions, of which it takes label and vector. Index `classes` of the table means "no class".
        activation: Nonlinearity of the MLP.
        frequencies: Those of the sines and cosines: transformer or ddpm, as in `sinusoidal`.
    """

    def __init__(
        self,
        *,
        time_dim: int,
        width: int,
        condition: ConditionSpec,
        activation: type[nn.Module] = nn.SiLU,
        frequencies: str = "transformer",
    ) -> None:
        super().__init__()
        self.time_dim, self.condition, self.frequencies = time_dim, condition, frequencies
        self.inner = nn.Linear(time_dim, width)
        self.activation = activation()
        self.outer = nn.Linear(width, width)
        self.label = None if condition.classes is None else nn.Embedding(condition.classes + 1, width)
        self.vector = None if condition.vector is None else VectorEmbedding(condition.vector, width)

    def forward(self, t: Tensor, cond: Condition | None = None) -> Tensor:
        times = t[:1] if t.stride(0) == 0 else t  # one for all items, as in sampling
        waves = sinusoidal(times, self.time_dim, self.frequencies).to(self.inner.weight.dtype)
        vectors: Tensor = self.outer(self.activation(self.inner(waves))).expand(t.shape[0], -1)
        check_fields(cond, self.condition)
        if self.label is not None and self.condition.classes is not None:
            vectors = vectors + self.label(class_index(t, cond, self.condition.classes))
        if self.vector is not None:
            vectors = vectors + self.vector(cond)
        return vectors
