"""The U-Net of DDPM (Ho et al., 2020) and its variants.

    first conv ─► level 0 ─► half ─► level 1 ─► ... ─► middle ─► ... ─► level 1 ─► double ─► level 0 ─► last block, 1x1
                    └────────────── skip connections from each block to its mirror ───────────────┘

Level i has `widths[i]` channels at 2^-i of the image's height and width. Series and films pass through the same network
with convolutions of one and of three axes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from difftool import Condition, ConditionSpec
from difftool_plugins.backbones.networks.attention import (
    Attention,
    FullAttention,
    LinearAttention,
    NormedLinearAttention,
)
from difftool_plugins.backbones.networks.convolutions import (
    CONVOLUTIONS,
    STANDARDIZED,
    Factors,
    Standardized,
    make_downsample,
    make_shuffles,
    make_upsample,
)
from difftool_plugins.backbones.networks.cross_attention import Context, CrossAttention
from difftool_plugins.backbones.networks.embeddings import Embedding, full_precision
from difftool_plugins.backbones.networks.recompute import recomputed

ATTENTION: Mapping[str, type[Attention]] = {
    "linear": LinearAttention,
    "linear-norm": NormedLinearAttention,
    "full": FullAttention,
}


class Block(nn.Module):
    """A residual block: shortcut(x) + two times convolution, normalisation and SiLU.

    The features between the first normalisation and its SiLU are shifted by a function of time, or scaled and shifted.
    With `pre`, normalisation and SiLU stand before each convolution (He et al., 2016, identity mappings), and time acts
    on the result of both.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        axes: int = 2,
        embedding: int,
        time: str,
        groups: int,
        dropout: float,
        checkpointing: bool,
        standardize: bool,
        standardize_eps: float = 0.0,
        pre: bool = False,
    ) -> None:
        super().__init__()
        conv = (STANDARDIZED if standardize else CONVOLUTIONS)[axes]
        self.pre = pre
        self.scales, self.checkpointing = time == "scale-shift", checkpointing
        self.time = nn.Linear(embedding, (2 if self.scales else 1) * out_channels)
        self.conv1 = conv(in_channels, out_channels, 3, padding=1)
        self.norm1 = nn.GroupNorm(groups, in_channels if pre else out_channels)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = conv(out_channels, out_channels, 3, padding=1)
        self.norm2 = nn.GroupNorm(groups, out_channels)
        narrow = in_channels == out_channels
        self.shortcut = nn.Identity() if narrow else CONVOLUTIONS[axes](in_channels, out_channels, 1)
        for module in (self.conv1, self.conv2):
            if isinstance(module, Standardized):
                module.eps = standardize_eps

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        return recomputed(self.compute, x, embedding) if self.checkpointing else self.compute(x, embedding)

    def compute(self, x: Tensor, embedding: Tensor) -> Tensor:
        with full_precision(x.device):
            time = self.time(embedding)
        time = time.reshape(*time.shape, *[1] * (x.ndim - 2))
        if self.pre:
            h = self.conv1(F.silu(self.norm1(x)))
            h = self.modulate(self.conv2(self.dropout(F.silu(self.norm2(h)))), time)
        else:
            h = self.dropout(F.silu(self.modulate(self.norm1(self.conv1(x)), time)))
            h = F.silu(self.norm2(self.conv2(h)))
        output: Tensor = h + self.shortcut(x)
        return output

    def modulate(self, h: Tensor, time: Tensor) -> Tensor:
        """Return h shifted by time (B, C, 1, ...), or scaled and shifted by its halves (B, 2 C, 1, ...)."""
        if not self.scales:
            return h + time.to(h.dtype)
        scale, shift = time.chunk(2, dim=1)
        return torch.addcmul(shift.to(h.dtype), h, (scale + 1).to(h.dtype))


class Down(nn.Module):
    """A level of the encoder. It appends the output of each block to `skips`, the last one after the attentions."""

    def __init__(self, blocks: Iterable[nn.Module], attention: nn.Module, cross: CrossAttention | None) -> None:
        super().__init__()
        self.blocks, self.attention, self.cross = nn.ModuleList(blocks), attention, cross

    def forward(self, x: Tensor, embedding: Tensor, context: Tensor | None, skips: list[Tensor]) -> Tensor:
        last = len(self.blocks) - 1
        for i, block in enumerate(self.blocks):
            x = block(x, embedding)
            if i == last:
                x = self.attention(x)
                x = x if self.cross is None else self.cross(x, context)
            skips.append(x)
        return x


class Up(nn.Module):
    """A level of the decoder. Each of its blocks takes the last of `skips` as further channels."""

    def __init__(self, blocks: Iterable[nn.Module], attention: nn.Module, cross: CrossAttention | None) -> None:
        super().__init__()
        self.blocks, self.attention, self.cross = nn.ModuleList(blocks), attention, cross

    def forward(self, x: Tensor, embedding: Tensor, context: Tensor | None, skips: list[Tensor]) -> Tensor:
        for block in self.blocks:
            x = block(torch.cat([x, skips.pop()], dim=1), embedding)
        output: Tensor = self.attention(x)
        return output if self.cross is None else self.cross(output, context)


class UNetNetwork(nn.Module):
    """Map x (B, in_channels, ...), t (B,) and conditions `cond` to an output (B, out_channels, ...).

    With `zero_init` the weights of the last convolution start at zero, and so does the output. Each axis must be a
    multiple of its factor to the power of (len(widths) - 1).

    Args:
        in_channels: Channels of x.
        out_channels: Channels of the output.
        factors: The factor by which each level divides each axis of x behind the channels: 2, or 1 to keep its length.
        patch: Sides of the blocks of x that become channels before the first level, one for each axis; all 1 for none.
        condition: The conditions that the network takes, of label, vector and tokens. Tokens act by a cross-attention
            after each self-attention.
        dim: A quarter of the size of the embedding of time, label and vector, and of the context made of the tokens.
        time_dim: Number of sines and cosines of t.
        init_dim: Channels of the first convolution.
        widths: Channels of each level, from fine to coarse.
        blocks: Residual blocks of each level, in the encoder and in the decoder.
        attention: Attention of each level, from fine to coarse: none, linear, linear-norm or full.
        middle: Attention at the coarsest level, between encoder and decoder.
        heads: Heads of each attention.
        head_dim: Channels of each head.
        time: With "shift", time is added to the features of each block; with "scale-shift", it also scales them.
        groups: Groups of each normalisation; must divide all widths.
        attention_groups: Groups of the normalisation before each attention.
        dropout: Share of the features that each block drops in training.
        checkpointing: Compute each block again in the backward pass instead of storing what it computed.
        standardize: Standardise the weights of the blocks' convolutions.
        downsample: With "stride", halve x by a strided convolution; with "unshuffle", move blocks of 2x2 pixels
            into channels.
        block: Order in a block: "post" is convolution, normalisation, SiLU; "pre" has the convolution last.
        grow: With "before", all blocks of level i have `widths[i]` channels. With "after", those of the encoder have
            the channels that come in, and the step to the next level widens; a 3x3 convolution widens the last level.
        first_kernel: Size of the first convolution.
        zero_init: Start with an output of zero, and with attentions that are the identity.
        standardize_eps: Added to the variance of standardised weights.
        frequencies: Those of the sines and cosines of t: transformer or ddpm.
        time_activation: Nonlinearity in the MLP of the embedding: silu or gelu.
    """

    def __init__(
        self,
        *,
        in_channels: int,
        out_channels: int,
        factors: Factors,
        patch: Factors = (1, 1),
        condition: ConditionSpec,
        dim: int,
        time_dim: int,
        init_dim: int,
        widths: Sequence[int],
        blocks: int = 1,
        attention: Sequence[str],
        middle: str = "full",
        heads: int = 4,
        head_dim: int = 32,
        time: str = "scale-shift",
        groups: int = 8,
        attention_groups: int = 8,
        dropout: float = 0.0,
        checkpointing: bool = False,
        standardize: bool = False,
        downsample: str = "stride",
        block: str = "post",
        grow: str = "before",
        first_kernel: int = 3,
        zero_init: bool = True,
        standardize_eps: float = 0.0,
        frequencies: str = "transformer",
        time_activation: str = "silu",
    ) -> None:
        super().__init__()
        embedding, coarsest, axes = 4 * dim, widths[-1], len(factors)
        conv = CONVOLUTIONS[axes]
        encoder = [*widths] if grow == "before" else [init_dim, *widths[:-1]]
        make_block = partial(
            Block,
            axes=axes,
            embedding=embedding,
            time=time,
            groups=groups,
            dropout=dropout,
            checkpointing=checkpointing,
            standardize=standardize,
            standardize_eps=standardize_eps,
            pre=block == "pre",
        )
        attend = partial(
            make_attention, axes=axes, heads=heads, head_dim=head_dim, groups=attention_groups, zero=zero_init
        )
        self.embedding = Embedding(
            time_dim=time_dim,
            width=embedding,
            condition=condition,
            activation=nn.GELU if time_activation == "gelu" else nn.SiLU,
            frequencies=frequencies,
        )
        self.context = None if condition.tokens is None else Context(*condition.tokens, embedding)
        cross = partial(
            make_cross_attention,
            context=None if condition.tokens is None else embedding,
            axes=axes,
            heads=heads,
            head_dim=head_dim,
            groups=attention_groups,
            zero=zero_init,
        )
        self.unshuffle, self.shuffle = make_shuffles(patch)
        in_channels, out_channels = math.prod(patch) * in_channels, math.prod(patch) * out_channels
        self.first = conv(in_channels, init_dim, first_kernel, padding=first_kernel // 2)
        self.downs, self.ups = nn.ModuleList(), nn.ModuleList()
        for i, (down, up, kind) in enumerate(zip(encoder, widths, attention, strict=True)):
            inputs = [down if i else init_dim, *[down] * (blocks - 1)]
            self.downs.append(Down([make_block(n, down) for n in inputs], attend(kind, down), cross(kind, down)))
            self.ups.append(Up([make_block(up + down, up) for _ in range(blocks)], attend(kind, up), cross(kind, up)))
        self.downsamples = nn.ModuleList(make_downsample(downsample, *pair, factors) for pair in pairwise(encoder))
        self.upsamples = nn.ModuleList(make_upsample(coarse, fine, factors) for fine, coarse in pairwise(widths))
        self.widen, self.narrow = (
            nn.Identity() if grow == "before" else conv(*pair, 3, padding=1)
            for pair in ((encoder[-1], coarsest), (widths[0], encoder[0]))
        )
        self.middle1 = make_block(coarsest, coarsest)
        self.attention, self.cross = attend(middle, coarsest), cross(middle, coarsest)
        self.middle2 = make_block(coarsest, coarsest)
        self.last = make_block(encoder[0] + init_dim, widths[0])
        self.output = conv(widths[0], out_channels, 1)
        if zero_init:
            nn.init.zeros_(self.output.weight)
            nn.init.zeros_(self.output.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor, t: Tensor, cond: Condition | None = None) -> Tensor:
        with full_precision(x.device):
            embedding = F.silu(self.embedding(t, cond))
        context = None if self.context is None else self.context(x.shape[0], cond)
        x = first = self.first(self.unshuffle(x))
        skips: list[Tensor] = []
        for i, down in enumerate(self.downs):
            x = down(self.downsamples[i - 1](x) if i else x, embedding, context, skips)
        x = self.attention(self.middle1(self.widen(x), embedding))
        x = self.middle2(x if self.cross is None else self.cross(x, context), embedding)
        for i in reversed(range(len(self.ups))):
            x = self.ups[i](x, embedding, context, skips)
            x = self.upsamples[i - 1](x) if i else x
        x = self.last(torch.cat([self.narrow(x), first], dim=1), embedding)
        output: Tensor = self.shuffle(self.output(x))
        return output


def make_attention(kind: str, channels: int, **options: Any) -> nn.Module:
    """Return the attention of a level: none, linear, linear-norm or full."""
    if kind == "none":
        return nn.Identity()
    return ATTENTION[kind](channels=channels, **options)


def make_cross_attention(kind: str, channels: int, *, context: int | None, **options: Any) -> CrossAttention | None:
    """Return the attention of a level to the tokens; None without tokens, and where `kind` says no attention."""
    if context is None or kind == "none":
        return None
    return CrossAttention(channels=channels, context=context, **options)
