"""Cross-attention from the pixels of a feature map to tokens, such as those of a text (Rombach et al., 2022, 3.3)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from difftool import Condition
from difftool_plugins.backbones.networks.convolutions import CONVOLUTIONS


class Context(nn.Module):
    """Turn the tokens of `cond` into what all cross-attentions of a network attend to: (B, count, width).

    It is norm(linear(token)) + position, both learnt. All tokens of a hidden item become `nothing`, which is learnt as
    well, so attention finds this one vector whatever the pixels look for.
    """

    def __init__(self, count: int, size: int, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(size, width)  # comes first, since the norm of a token of one number would be 0
        self.norm = nn.LayerNorm(width)
        self.position = nn.Parameter(torch.zeros(count, width))
        self.nothing = nn.Parameter(torch.randn(width))

    def forward(self, batch: int, cond: Condition | None) -> Tensor:
        """Return the context of `batch` items."""
        if cond is None:
            return self.nothing.expand(batch, *self.position.shape)
        assert cond.tokens is not None
        context = self.norm(self.linear(cond.tokens.to(self.linear.weight.dtype))) + self.position
        return torch.where(cond.hidden[:, None, None], self.nothing, context)


class CrossAttention(nn.Module):
    """x + out(softmax(q k^T / sqrt(head_dim)) v): q is linear in the normalised x, k and v in the context.

    If `zero`, the weights of `out` start at zero, so that the module starts as the identity.

    Args:
        channels: Channels of x.
        axes: Axes of x behind the channels.
        context: Size of a token of the context.
        heads: Number of heads.
        head_dim: Channels of q, k and v in each head.
        groups: Groups of the normalisation; must divide `channels`.
        zero: Start as the identity.
    """

    def __init__(
        self, *, channels: int, axes: int = 2, context: int, heads: int, head_dim: int, groups: int, zero: bool = True
    ) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.GroupNorm(groups, channels)
        self.q = CONVOLUTIONS[axes](channels, heads * head_dim, 1, bias=False)
        self.kv = nn.Linear(context, 2 * heads * head_dim, bias=False)
        self.out = CONVOLUTIONS[axes](heads * head_dim, channels, 1)
        if zero:
            nn.init.zeros_(self.out.weight)
            nn.init.zeros_(self.out.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        q = self.q(self.norm(x)).flatten(2).transpose(1, 2).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        k, v = self.kv(context).unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2).transpose(1, 2)
        output: Tensor = x + self.out(mixed.reshape(*mixed.shape[:2], *x.shape[2:]))
        return output
