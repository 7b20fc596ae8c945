"""The multilayer perceptron: the item is flattened, its shape restored at the end."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from difftool_plugins.backbones.networks.embeddings import Embedding, labels, refuse_labels

if TYPE_CHECKING:
    from difftool import BackboneSpec
    from difftool_plugins.backbones.mlp import MLP

TIME_RANGE = 1000.0

ACTIVATIONS: Mapping[str, type[nn.Module]] = {"silu": nn.SiLU, "relu": nn.ReLU, "gelu": nn.GELU, "tanh": nn.Tanh}


class MLPNetwork(nn.Module):
    """x (B, in_channels, *shape[1:]), t (B,), cond (B,) -> (B, out_channels, *shape[1:]).

    With `embedding`, time and label are added to the first layer's sums. With `plain`, t/1000 and the label (one-hot,
    "no class" all zeros) are further inputs: depth 1 is Linear(D + 1, width), activation, Linear(width, D).
    With `residual` (He et al., 2016) a hidden layer after the first is h + activation(linear(h)).
    """

    def __init__(self, options: MLP, spec: BackboneSpec) -> None:
        super().__init__()
        self.shape, self.classes = (spec.out_channels, *spec.shape[1:]), spec.classes
        activation = ACTIVATIONS[options.activation]
        inputs, outputs, width = spec.in_channels * math.prod(spec.shape[1:]), math.prod(self.shape), options.width
        self.embedding: Embedding | None = None
        if options.time == "embedding":
            self.embedding = Embedding(options.time_dim, width, spec.classes, activation)
        else:
            inputs += 1 + (spec.classes or 0)
        self.first = nn.Linear(inputs, width)
        self.activation, self.residual = activation(), options.residual
        self.hidden = nn.ModuleList(nn.Linear(width, width) for _ in range(options.depth - 1))
        self.last = nn.Linear(width, outputs)

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
