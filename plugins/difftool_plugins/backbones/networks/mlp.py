"""The multilayer perceptron: the item is flattened, its shape restored at the end."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from difftool_plugins.backbones.networks.embeddings import Embedding, labels, refuse_labels

TIME_RANGE = 1000.0

ACTIVATIONS: Mapping[str, type[nn.Module]] = {"silu": nn.SiLU, "relu": nn.ReLU, "gelu": nn.GELU, "tanh": nn.Tanh}


class MLPNetwork(nn.Module):
    """x (B, in_channels, *shape[1:]), t (B,), cond (B,) -> (B, out_channels, *shape[1:]).

    With `embedding`, time and label are added to the first layer's sums. With `plain`, t/1000 and the label (one-hot,
    "no class" all zeros) are further inputs: depth 1 is Linear(D + 1, width), activation, Linear(width, D).
    With `residual` (He et al., 2016) a hidden layer after the first is h + activation(linear(h)).
    """

    def __init__(
        self,
        *,
        in_channels: int,
        shape: tuple[int, ...],
        classes: int | None = None,
        width: int,
        depth: int,
        activation: str = "silu",
        residual: bool = True,
        time: str = "embedding",
        time_dim: int = 64,
    ) -> None:
        """`shape` is that of one item of the output, channels first."""
        super().__init__()
        self.shape, self.classes = shape, classes
        nonlinearity = ACTIVATIONS[activation]
        inputs = in_channels * math.prod(shape[1:])
        self.embedding: Embedding | None = None
        if time == "embedding":
            self.embedding = Embedding(time_dim, width, classes, nonlinearity)
        else:
            inputs += 1 + (classes or 0)
        self.first = nn.Linear(inputs, width)
        self.activation, self.residual = nonlinearity(), residual
        self.hidden = nn.ModuleList(nn.Linear(width, width) for _ in range(depth - 1))
        self.last = nn.Linear(width, math.prod(shape))

    def forward(self, x: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        flat = x.flatten(1)
        if self.embedding is None:
            h = self.first(torch.cat([flat, *self.plain(flat, t, cond)], dim=1))
        else:
            h = self.first(flat) + self.embedding(t, cond)
        h = self.activation(h)
        for layer in self.hidden:
            out = self.activation(layer(h))
            h = h + out if self.residual else out
        answer: Tensor = self.last(h).unflatten(1, self.shape)
        return answer

    def plain(self, x: Tensor, t: Tensor, cond: Tensor | None) -> list[Tensor]:
        """Time and label as columns beside x (B, D)."""
        time = (t / TIME_RANGE).to(x.dtype)[:, None]
        if self.classes is None:
            refuse_labels(cond)
            return [time]
        chosen = labels(x, cond, self.classes)[:, None]
        return [time, (chosen == torch.arange(self.classes, device=x.device)).to(x.dtype)]
