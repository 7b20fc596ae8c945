"""Self-attention between the pixels of a feature map (B, C, H, W), or one with another number of axes.

No positions are added, so permuting the pixels of the input permutes those of the output.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from difftool_plugins.backbones.networks.convolutions import CONVOLUTIONS


class Attention(nn.Module):
    """x + out(mix(q, k, v)), where q, k and v are linear in the normalised x.

    If `zero`, the weights of `out` start at zero, so that the module starts as the identity.

    Args:
        channels: Channels of x.
        axes: Axes of x behind the channels.
        heads: Number of heads.
        head_dim: Channels of q, k and v in each head.
        groups: Groups of the normalisation; must divide `channels`.
        zero: Start as the identity.
    """

    def __init__(
        self, *, channels: int, axes: int = 2, heads: int, head_dim: int, groups: int, zero: bool = True
    ) -> None:
        super().__init__()
        conv = CONVOLUTIONS[axes]
        self.heads, self.head_dim = heads, head_dim
        self.norm = nn.GroupNorm(groups, channels)
        self.qkv = conv(channels, 3 * heads * head_dim, 1, bias=False)
        self.out = conv(heads * head_dim, channels, 1)
        if zero:
            nn.init.zeros_(self.out.weight)
            nn.init.zeros_(self.out.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        # in channels_last every reshape here is a view
        tokens = self.qkv(self.norm(x)).flatten(2).transpose(1, 2)
        tokens = tokens.reshape(*tokens.shape[:2], 3, self.heads, self.head_dim)
        q, k, v = tokens.permute(2, 0, 3, 1, 4).unbind(0)
        mixed = self.mix(q, k, v).transpose(1, 2).flatten(2).transpose(1, 2)
        return x + self.project(mixed.reshape(*mixed.shape[:2], *x.shape[2:]))

    def project(self, mixed: Tensor) -> Tensor:
        """Return out(mixed) (B, C, ...)."""
        output: Tensor = self.out(mixed)
        return output

    @staticmethod
    @abstractmethod
    def mix(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Mix the values of all pixels; arguments and result are (B, heads, pixels, head_dim)."""


class FullAttention(Attention):
    """softmax(q k^T / sqrt(head_dim)) v. The cost grows with the square of the number of pixels."""

    @staticmethod
    def mix(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if q.device.type == "cpu" and q.dtype != torch.float32:  # there torch's own takes five times as long backwards
            weights: Tensor = q / math.sqrt(q.shape[-1]) @ k.transpose(-2, -1)
            return weights.softmax(-1) @ v
        return F.scaled_dot_product_attention(q, k, v)


class LinearAttention(Attention):
    """softmax(q) (softmax(k)^T v), over the features of q and the pixels of k (Shen et al., 2021).

    The cost grows linearly with the number of pixels.
    """

    @staticmethod
    def mix(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return q.softmax(-1) @ (k.softmax(-2).transpose(-2, -1) @ v)


class NormedLinearAttention(LinearAttention):
    """x + norm(out(mix(q / sqrt(head_dim), k, v))), with a last normalisation over all channels and pixels."""

    def __init__(self, *, channels: int, **options: Any) -> None:
        super().__init__(channels=channels, **options)
        self.last_norm = nn.GroupNorm(1, channels)

    @staticmethod
    def mix(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return LinearAttention.mix(q, k, v) / math.sqrt(q.shape[-1])

    def project(self, mixed: Tensor) -> Tensor:
        output: Tensor = self.last_norm(self.out(mixed))
        return output
