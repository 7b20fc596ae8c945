"""The diffusion transformer of Peebles & Xie (2023), "Scalable diffusion models with transformers", with adaLN-Zero.

    image ─► patches ─► linear + positions ─► block ─► ... ─► block ─► norm, linear ─► patches ─► image
    t, label ─► one vector ─────────────────────┴───────────────┴────────┘ scales, shifts and gates

B is the batch, N the number of patches, row by row, and dim what stands for each of them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

if TYPE_CHECKING:
    from difftool import BackboneSpec
    from difftool_dit import DiT

TIME_FEATURES = 256
"""Sines and cosines that stand for t."""
LONGEST = 1e4
"""The lowest frequency of an embedding is one radian in so many units, the highest one radian in one."""


class DiTNetwork(nn.Module):
    """x (B, in_channels, H, W), t (B,), cond (B,) -> (B, out_channels, H, W). Starts with the answer 0 everywhere."""

    positions: Tensor

    def __init__(self, options: DiT, spec: BackboneSpec) -> None:
        super().__init__()
        self.patch, area = options.patch, options.patch**2
        height, width = spec.shape[1:]
        self.grid = (height // self.patch, width // self.patch)
        self.condition = Condition(options.dim, spec.classes)
        self.first = linear(spec.in_channels * area, options.dim)
        # options and shape say it all, so the file of a model need not hold it
        self.register_buffer("positions", grid_waves(*self.grid, options.dim), persistent=False)
        self.blocks = nn.ModuleList(Block(options) for _ in range(options.depth))
        self.modulation = Modulation(options.dim, 2)
        self.answer = zero_linear(options.dim, spec.out_channels * area)

    def forward(self, x: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        condition = self.condition(t, cond)
        tokens = self.first(patchify(x, self.patch)) + self.positions
        for block in self.blocks:
            tokens = block(tokens, condition)
        scale, shift = self.modulation(condition)
        return unpatchify(self.answer(modulated(tokens, scale, shift)), self.patch, self.grid)


class Block(nn.Module):
    """Attention between the tokens (B, N, dim), then an MLP on each; both are branches (figure 3)."""

    def __init__(self, options: DiT) -> None:
        super().__init__()
        dim, hidden = options.dim, options.mlp_ratio * options.dim
        mlp = nn.Sequential(linear(dim, hidden), nn.GELU(approximate="tanh"), linear(hidden, dim))
        self.attention = Branch(Attention(dim, options.heads), dim, options.dropout)
        self.mlp = Branch(mlp, dim, options.dropout)

    def forward(self, tokens: Tensor, condition: Tensor) -> Tensor:
        answer: Tensor = self.mlp(self.attention(tokens, condition), condition)
        return answer


class Branch(nn.Module):
    """tokens + gate * inner(modulated tokens): adaLN-Zero (section 3.2), for the gate is 0 at first."""

    def __init__(self, inner: nn.Module, dim: int, dropout: float) -> None:
        super().__init__()
        self.modulation = Modulation(dim, 3)
        self.inner = inner
        self.dropout = nn.Dropout(dropout)

    def forward(self, tokens: Tensor, condition: Tensor) -> Tensor:
        scale, shift, gate = self.modulation(condition)
        answer: Tensor = tokens + gate * self.dropout(self.inner(modulated(tokens, scale, shift)))
        return answer


class Modulation(nn.Module):
    """So many vectors (B, 1, dim) that the condition (B, dim) sets; all are 0 at first."""

    def __init__(self, dim: int, count: int) -> None:
        super().__init__()
        self.count = count
        self.linear = zero_linear(dim, count * dim)

    def forward(self, condition: Tensor) -> tuple[Tensor, ...]:
        vectors: Tensor = self.linear(condition)[:, None]
        return vectors.chunk(self.count, dim=-1)


class Attention(nn.Module):
    """out(softmax(q k^T / sqrt(dim / heads)) v) of the tokens (B, N, dim), for each head a share of dim."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = linear(dim, 3 * dim)
        self.out = linear(dim, dim)

    def forward(self, tokens: Tensor) -> Tensor:
        shares = self.qkv(tokens).unflatten(-1, (3, self.heads, -1))  # (B, N, 3, heads, dim / heads)
        q, k, v = shares.permute(2, 0, 3, 1, 4).unbind(0)
        mixed = F.scaled_dot_product_attention(q, k, v)  # (B, heads, N, dim / heads)
        answer: Tensor = self.out(mixed.transpose(1, 2).flatten(2))
        return answer


class Condition(nn.Module):
    """Time (B,) and label (B,) as one vector (B, dim): silu(MLP(waves(t)) + label vector).

    Every `Modulation` begins with this silu, hence it is taken once, here.
    """

    def __init__(self, dim: int, classes: int | None) -> None:
        super().__init__()
        self.classes = classes
        self.time = nn.Sequential(nn.Linear(TIME_FEATURES, dim), nn.SiLU(), nn.Linear(dim, dim))
        self.label = None if classes is None else nn.Embedding(classes + 1, dim)
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
            else:
                nn.init.normal_(parameter, std=0.02)

    def forward(self, t: Tensor, cond: Tensor | None) -> Tensor:
        vector: Tensor = self.time(waves(t, TIME_FEATURES))
        if self.label is not None and self.classes is not None:
            vector = vector + self.label(torch.full_like(t, self.classes, dtype=torch.int64) if cond is None else cond)
        elif cond is not None:  # a label that is silently ignored would be a wrong answer
            raise ValueError("this network was built without classes and takes no labels")
        return F.silu(vector)


def modulated(tokens: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """(1 + scale) * norm(tokens) + shift; norm brings each token to mean 0 and variance 1, with no weights of its own.

    tokens (B, N, dim); scale and shift (B, 1, dim).
    """
    return torch.addcmul(shift, F.layer_norm(tokens, tokens.shape[-1:], eps=1e-6), 1 + scale)


def patchify(x: Tensor, patch: int) -> Tensor:
    """(B, C, H, W) -> (B, N, C patch^2): the patches row by row, each flattened."""
    return F.pixel_unshuffle(x, patch).flatten(2).transpose(1, 2)


def unpatchify(tokens: Tensor, patch: int, grid: tuple[int, int]) -> Tensor:
    """(B, N, C patch^2) -> (B, C, H, W), grid (H / patch, W / patch): undoes `patchify`."""
    return F.pixel_shuffle(torch.unflatten(tokens.transpose(1, 2), 2, grid), patch)


def waves(at: Tensor, size: int) -> Tensor:
    """Sines and cosines of numbers (n,) at size/2 frequencies, as (n, size) float32 (Vaswani et al., 2017)."""
    half = size // 2
    frequencies = LONGEST ** (-torch.arange(half, device=at.device) / half)
    angles = at[:, None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=1)


def grid_waves(rows: int, columns: int, dim: int) -> Tensor:
    """The embedding of each place of a grid, row by row: half of dim says the row, half the column; (N, dim)."""
    row = waves(torch.arange(rows), dim // 2)[:, None].expand(-1, columns, -1)
    column = waves(torch.arange(columns), dim // 2).expand(rows, -1, -1)
    return torch.cat([row, column], dim=-1).flatten(0, 1)


def linear(inputs: int, outputs: int) -> nn.Linear:
    layer = nn.Linear(inputs, outputs)
    nn.init.xavier_uniform_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def zero_linear(inputs: int, outputs: int) -> nn.Linear:
    """A layer that answers 0 until it is trained."""
    layer = nn.Linear(inputs, outputs)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer
