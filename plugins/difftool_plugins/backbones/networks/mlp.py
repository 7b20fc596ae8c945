"""A multilayer perceptron for items of any shape: it flattens them, and restores the shape of the output."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from difftool import Condition, ConditionSpec
from difftool_plugins.backbones.networks.embeddings import Embedding, check_fields, class_index
from difftool_plugins.backbones.networks.recompute import recomputed

TIME_RANGE = 1000.0
ACTIVATIONS: Mapping[str, type[nn.Module]] = {"silu": nn.SiLU, "relu": nn.ReLU, "gelu": nn.GELU, "tanh": nn.Tanh}
IN_PLACE: Mapping[type[nn.Module], Callable[..., Tensor]] = {nn.SiLU: F.silu, nn.ReLU: F.relu}
"""The functions of activations that can work in place: without gradients, half of the time goes into new memory."""


class MLPNetwork(nn.Module):
    """Map x (B, in_channels, *shape[1:]), t (B,) and conditions `cond` to an output (B, *shape).

    Args:
        in_channels: Channels of x.
        shape: Shape of one item of the output, channels first.
        condition: The conditions that the network takes: label, vector, both or none.
        width: Units of each hidden layer.
        depth: Number of hidden layers.
        activation: Nonlinearity after each hidden layer: silu, relu, gelu or tanh.
        residual: Make each hidden layer but the first h + activation(linear(h)) (He et al., 2016).
        time: With "embedding", an embedding of time, label and vector is added to the first layer's output. With
            "plain", t/1000, the label and the vector are further inputs; the label is one-hot, and "no class" is all
            zeros; beside the vector stands 1 where it is hidden, else 0.
        time_dim: Number of sines and cosines of t in the embedding; even.
        frequencies: Those of the sines and cosines: transformer or ddpm, as in `sinusoidal`.
        checkpointing: Compute each hidden layer again in the backward pass instead of storing what it computed.
    """

    def __init__(
        self,
        *,
        in_channels: int,
        shape: tuple[int, ...],
        condition: ConditionSpec,
        width: int,
        depth: int,
        activation: str = "silu",
        residual: bool = True,
        time: str = "embedding",
        time_dim: int = 64,
        frequencies: str = "transformer",
        checkpointing: bool = False,
    ) -> None:
        super().__init__()
        self.shape, self.condition, self.checkpointing = shape, condition, checkpointing
        nonlinearity = ACTIVATIONS[activation]
        inputs = in_channels * math.prod(shape[1:])
        self.embedding: Embedding | None = None
        if time == "embedding":
            self.embedding = Embedding(
                time_dim=time_dim, width=width, condition=condition, activation=nonlinearity, frequencies=frequencies
            )
        else:
            inputs += 1 + (condition.classes or 0) + (0 if condition.vector is None else condition.vector + 1)
        self.first = nn.Linear(inputs, width)
        self.activation, self.residual = nonlinearity(), residual
        self.hidden = nn.ModuleList(nn.Linear(width, width) for _ in range(depth - 1))
        self.last = nn.Linear(width, math.prod(shape))

    def forward(self, x: Tensor, t: Tensor, cond: Condition | None = None) -> Tensor:
        flat = x.flatten(1)
        if self.embedding is None:
            h = self.first(torch.cat([flat, *self.columns(flat, t, cond)], dim=1))
        else:
            h = self.first(flat) + self.embedding(t, cond)
        h = self.activated(h)
        for layer in self.hidden:
            block = partial(self.block, layer)
            h = recomputed(block, h) if self.checkpointing else block(h)
        output: Tensor = self.last(h).unflatten(1, self.shape)
        return output

    def block(self, layer: nn.Module, h: Tensor) -> Tensor:
        """Return the output of a hidden layer (B, width)."""
        out = self.activated(layer(h))
        if not self.residual:
            return out
        return h + out if torch.is_grad_enabled() else h.add_(out)

    def activated(self, h: Tensor) -> Tensor:
        """Return the activations of h, in its place where no gradient needs h any more and the activation can."""
        in_place = None if torch.is_grad_enabled() else IN_PLACE.get(type(self.activation))
        output: Tensor = self.activation(h) if in_place is None else in_place(h, inplace=True)
        return output

    def columns(self, x: Tensor, t: Tensor, cond: Condition | None) -> list[Tensor]:
        """Return time (B, 1), one-hot labels (B, classes), vectors (B, D) and a column for the hidden ones.

        Labels and vectors are there with such conditions only. All have the dtype of x.
        """
        check_fields(cond, self.condition)
        columns, condition = [(t / TIME_RANGE).to(x.dtype)[:, None]], self.condition
        if condition.classes is not None:
            labels = class_index(x, cond, condition.classes)[:, None]
            columns.append((labels == torch.arange(condition.classes, device=x.device)).to(x.dtype))
        if condition.vector is not None:
            if cond is None:
                columns += [x.new_zeros(x.shape[0], condition.vector), x.new_ones(x.shape[0], 1)]
            else:
                assert cond.vector is not None
                shown = cond.vector.masked_fill(cond.hidden[:, None], 0.0)
                columns += [shown.to(x.dtype), cond.hidden[:, None].to(x.dtype)]
        return columns
