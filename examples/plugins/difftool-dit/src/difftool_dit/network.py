"""The diffusion transformer with adaLN-Zero of Peebles & Xie (2023), "Scalable diffusion models with transformers".

    image ─► patches ─► linear + positions ─► block ─► ... ─► block ─► norm, linear ─► patches ─► image
    t, label, vector ─► one vector ─────────────┴───────────────┴────────┘ scales, shifts and gates

In the shapes below, B is the batch size, N the number of patches, row by row, and dim the size of a token.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from difftool import Condition, ConditionSpec

TIME_DIM = 256
"""Number of sines and cosines of t."""
LONGEST = 1e4
"""Angular frequencies of an embedding fall from 1 to 1/LONGEST."""


class DiTNetwork(nn.Module):
    """Map x (B, in_channels, H, W), t (B,) and conditions `cond` to an output (B, out_channels, H, W).

    The weights of the last layer start at zero, and so does the output.

    Args:
        in_channels: Channels of x.
        out_channels: Channels of the output.
        size: (H, W) of the images; multiples of `patch`.
        condition: The conditions that the network takes: label, vector, both or none.
        patch: Side of a patch in pixels.
        dim: Size of a token; a multiple of 4 and of `heads`.
        depth: Number of blocks.
        heads: Heads of each attention.
        mlp_ratio: Hidden units of each block's MLP as a multiple of `dim`.
        dropout: Share of the features that each attention and each MLP drops in training.
        checkpointing: Compute each block again in the backward pass instead of storing what it computed.
    """

    positions: Tensor

    def __init__(
        self,
        *,
        in_channels: int,
        out_channels: int,
        size: tuple[int, int],
        condition: ConditionSpec,
        patch: int = 2,
        dim: int = 128,
        depth: int = 4,
        heads: int = 4,
        mlp_ratio: int = 4,
        dropout: float = 0.0,
        checkpointing: bool = False,
    ) -> None:
        super().__init__()
        self.checkpointing = checkpointing
        self.patch, self.grid = patch, (size[0] // patch, size[1] // patch)
        self.condition = Conditioning(dim, condition)
        self.first = linear(in_channels * patch**2, dim)
        # the positions follow from the options and the size, so files of weights do not hold them
        self.register_buffer("positions", grid_waves(*self.grid, dim), persistent=False)
        self.blocks = nn.ModuleList(Block(dim, heads, mlp_ratio, dropout) for _ in range(depth))
        self.modulation = Modulation(dim, 2)
        self.output = zero_linear(dim, out_channels * patch**2)

    def forward(self, x: Tensor, t: Tensor, cond: Condition | None = None) -> Tensor:
        condition = self.condition(t, cond)
        tokens = self.first(patchify(x, self.patch)) + self.positions
        for block in self.blocks:
            if self.checkpointing and torch.is_grad_enabled():
                tokens = checkpoint(block, tokens, condition, use_reentrant=False)
            else:
                tokens = block(tokens, condition)
        scale, shift = self.modulation(condition)
        return unpatchify(self.output(modulate(tokens, scale, shift)), self.patch, self.grid)


class Block(nn.Module):
    """Attention between the tokens (B, N, dim), then an MLP on each of them; both are branches (figure 3)."""

    def __init__(self, dim: int, heads: int, mlp_ratio: int, dropout: float) -> None:
        super().__init__()
        hidden = mlp_ratio * dim
        mlp = nn.Sequential(linear(dim, hidden), nn.GELU(approximate="tanh"), linear(hidden, dim))
        self.attention = Branch(Attention(dim, heads), dim, dropout)
        self.mlp = Branch(mlp, dim, dropout)

    def forward(self, tokens: Tensor, condition: Tensor) -> Tensor:
        output: Tensor = self.mlp(self.attention(tokens, condition), condition)
        return output


class Branch(nn.Module):
    """tokens + gate * inner(modulated tokens). The gate starts at 0, which is adaLN-Zero (section 3.2)."""

    def __init__(self, inner: nn.Module, dim: int, dropout: float) -> None:
        super().__init__()
        self.modulation = Modulation(dim, 3)
        self.inner = inner
        self.dropout = nn.Dropout(dropout)

    def forward(self, tokens: Tensor, condition: Tensor) -> Tensor:
        scale, shift, gate = self.modulation(condition)
        output: Tensor = tokens + gate * self.dropout(self.inner(modulate(tokens, scale, shift)))
        return output


class Modulation(nn.Module):
    """Map the condition (B, dim) linearly to `count` vectors (B, 1, dim), which start at 0."""

    def __init__(self, dim: int, count: int) -> None:
        super().__init__()
        self.count = count
        self.linear = zero_linear(dim, count * dim)

    def forward(self, condition: Tensor) -> tuple[Tensor, ...]:
        vectors: Tensor = self.linear(condition)[:, None]
        return vectors.chunk(self.count, dim=-1)


class Attention(nn.Module):
    """Multi-head self-attention of the tokens (B, N, dim): out(softmax(q k^T / sqrt(dim / heads)) v)."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = linear(dim, 3 * dim)
        self.out = linear(dim, dim)

    def forward(self, tokens: Tensor) -> Tensor:
        qkv = self.qkv(tokens).unflatten(-1, (3, self.heads, -1))  # (B, N, 3, heads, dim / heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        mixed = F.scaled_dot_product_attention(q, k, v)  # (B, heads, N, dim / heads)
        output: Tensor = self.out(mixed.transpose(1, 2).flatten(2))
        return output


class Conditioning(nn.Module):
    """Embed time t (B,) and `cond` as vectors (B, dim): silu(MLP(waves(t)) + table[label] + MLP(vector)).

    Label and vector are there with such conditions only. Row `classes` of the table means "no class", and `nothing`
    takes the place of MLP(vector) where the vector is hidden, since its zeros are also those of the mean vector. The
    silu with which every modulation of the paper begins is computed once, here.
    """

    def __init__(self, dim: int, condition: ConditionSpec) -> None:
        super().__init__()
        self.condition = condition
        self.time = nn.Sequential(nn.Linear(TIME_DIM, dim), nn.SiLU(), nn.Linear(dim, dim))
        self.label = None if condition.classes is None else nn.Embedding(condition.classes + 1, dim)
        self.vector: nn.Sequential | None = None
        if condition.vector is not None:
            self.vector = nn.Sequential(nn.Linear(condition.vector, dim), nn.SiLU(), nn.Linear(dim, dim))
            self.nothing = nn.Parameter(torch.empty(1, dim))
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
            else:
                nn.init.normal_(parameter, std=0.02)

    def forward(self, t: Tensor, cond: Condition | None) -> Tensor:
        embedding: Tensor = self.time(waves(t, TIME_DIM))
        if cond is not None and {*cond.tensors()} - {"hidden"} != {*self.condition.shapes}:
            raise ValueError(f"this network was built with {self.condition or 'no conditions'}, and gets others")
        if self.label is not None and (classes := self.condition.classes) is not None:
            no_class = torch.full_like(t, classes, dtype=torch.int64)
            embedding = embedding + self.label(no_class if cond is None else cond.class_index(classes))
        if self.vector is not None:
            embedding = embedding + (self.nothing if cond is None else self._vector(self.vector, cond))
        return F.silu(embedding)

    def _vector(self, mlp: nn.Sequential, cond: Condition) -> Tensor:
        assert cond.vector is not None
        return torch.where(cond.hidden[:, None], self.nothing, mlp(cond.vector.to(self.nothing.dtype)))


def modulate(tokens: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """Return (1 + scale) * norm(tokens) + shift, where norm gives each token mean 0 and variance 1.

    tokens is (B, N, dim); scale and shift are (B, 1, dim).
    """
    return torch.addcmul(shift, F.layer_norm(tokens, tokens.shape[-1:], eps=1e-6), 1 + scale)


def patchify(x: Tensor, patch: int) -> Tensor:
    """Cut images (B, C, H, W) into flattened patches (B, N, C patch^2), row by row."""
    return F.pixel_unshuffle(x, patch).flatten(2).transpose(1, 2)


def unpatchify(tokens: Tensor, patch: int, grid: tuple[int, int]) -> Tensor:
    """Invert `patchify`: (B, N, C patch^2) to (B, C, H, W), where grid is (H / patch, W / patch)."""
    return F.pixel_shuffle(torch.unflatten(tokens.transpose(1, 2), 2, grid), patch)


def waves(values: Tensor, size: int) -> Tensor:
    """Return the sines and cosines (n, size) of values (n,) at size/2 frequencies (Vaswani et al., 2017)."""
    half = size // 2
    frequencies = LONGEST ** (-torch.arange(half, device=values.device) / half)
    angles = values[:, None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=1)


def grid_waves(rows: int, columns: int, dim: int) -> Tensor:
    """Return embeddings (N, dim) of the places of a grid; half of dim is for the row, and half for the column."""
    row = waves(torch.arange(rows), dim // 2)[:, None].expand(-1, columns, -1)
    column = waves(torch.arange(columns), dim // 2).expand(rows, -1, -1)
    return torch.cat([row, column], dim=-1).flatten(0, 1)


def linear(inputs: int, outputs: int) -> nn.Linear:
    """Return a linear layer with Xavier-uniform weights and no bias at first."""
    layer = nn.Linear(inputs, outputs)
    nn.init.xavier_uniform_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def zero_linear(inputs: int, outputs: int) -> nn.Linear:
    """Return a linear layer whose output is 0 until it is trained."""
    layer = nn.Linear(inputs, outputs)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer
