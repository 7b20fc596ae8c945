"""The U-Net of DDPM (Ho et al., 2020) and its variants.

    first conv ─► level 0 ─► half ─► level 1 ─► ... ─► middle ─► ... ─► level 1 ─► double ─► level 0 ─► last block, 1x1
                    └────────────── skip connections from each block to its mirror ───────────────┘

Level i has `widths[i]` channels at 2^-i of the image's height and width.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from difftool_plugins.backbones.networks.attention import Attention, FullAttention, LinearAttention
from difftool_plugins.backbones.networks.embeddings import Embedding, full_precision


class StandardizedConv2d(nn.Conv2d):
    """A convolution whose weights have mean 0 and variance 1 for each output channel (Qiao et al., 2019)."""

    def forward(self, x: Tensor) -> Tensor:
        variance, mean = torch.var_mean(self.weight, dim=(1, 2, 3), keepdim=True, correction=0)
        # the floor only guards against constant weights; a larger one would make the result depend on their scale
        weight = (self.weight - mean) * torch.rsqrt(variance.clamp_min(1e-12))
        output: Tensor = self._conv_forward(x, weight, self.bias)
        return output


class Block(nn.Module):
    """A residual block: shortcut(x) + two times convolution, normalisation and SiLU.

    The features between the first normalisation and its SiLU are shifted by a function of time, or scaled and shifted.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        embedding: int,
        time: str,
        groups: int,
        dropout: float,
        checkpointing: bool,
        standardize: bool,
    ) -> None:
        super().__init__()
        conv = StandardizedConv2d if standardize else nn.Conv2d
        self.scales, self.checkpointing = time == "scale-shift", checkpointing
        self.time = nn.Linear(embedding, (2 if self.scales else 1) * out_channels)
        self.conv1 = conv(in_channels, out_channels, 3, padding=1)
        self.norm1 = nn.GroupNorm(groups, out_channels)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = conv(out_channels, out_channels, 3, padding=1)
        self.norm2 = nn.GroupNorm(groups, out_channels)
        self.shortcut = nn.Conv2d(in_channels, out_channels, 1) if in_channels != out_channels else nn.Identity()

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        if self.checkpointing and torch.is_grad_enabled():
            output: Tensor = checkpoint(self.compute, x, embedding, use_reentrant=False)
            return output
        return self.compute(x, embedding)

    def compute(self, x: Tensor, embedding: Tensor) -> Tensor:
        with full_precision(x.device):
            time = self.time(embedding)[:, :, None, None]
        h = self.norm1(self.conv1(x))
        if self.scales:
            scale, shift = time.chunk(2, dim=1)
            h = torch.addcmul(shift.to(h.dtype), h, (scale + 1).to(h.dtype))
        else:
            h = h + time.to(h.dtype)
        h = self.dropout(F.silu(h))
        h = F.silu(self.norm2(self.conv2(h)))
        output: Tensor = h + self.shortcut(x)
        return output


class Down(nn.Module):
    """A level of the encoder. It appends the output of each block to `skips`, the last one after the attention."""

    def __init__(self, blocks: Iterable[nn.Module], attention: nn.Module) -> None:
        super().__init__()
        self.blocks, self.attention = nn.ModuleList(blocks), attention

    def forward(self, x: Tensor, embedding: Tensor, skips: list[Tensor]) -> Tensor:
        last = len(self.blocks) - 1
        for i, block in enumerate(self.blocks):
            x = block(x, embedding)
            x = self.attention(x) if i == last else x
            skips.append(x)
        return x


class Up(nn.Module):
    """A level of the decoder. Each of its blocks takes the last of `skips` as further channels."""

    def __init__(self, blocks: Iterable[nn.Module], attention: nn.Module) -> None:
        super().__init__()
        self.blocks, self.attention = nn.ModuleList(blocks), attention

    def forward(self, x: Tensor, embedding: Tensor, skips: list[Tensor]) -> Tensor:
        for block in self.blocks:
            x = block(torch.cat([x, skips.pop()], dim=1), embedding)
        output: Tensor = self.attention(x)
        return output


class UNetNetwork(nn.Module):
    """Map x (B, in_channels, H, W), t (B,) and cond (B,) to an output (B, out_channels, H, W).

    The weights of the last convolution start at zero, and so does the output. H and W must be multiples of
    2^(len(widths) - 1).

    Args:
        in_channels: Channels of x.
        out_channels: Channels of the output.
        classes: Number of classes, or None for a network that takes no labels. Index `classes` means "no class".
        dim: A quarter of the size of the embedding of time and label.
        init_dim: Channels of the first convolution.
        widths: Channels of each level, from fine to coarse.
        blocks: Residual blocks of each level, in the encoder and in the decoder.
        attention: Attention of each level, from fine to coarse: none, linear or full.
        middle: Attention at the coarsest level, between encoder and decoder.
        heads: Heads of each attention.
        head_dim: Channels of each head.
        time: With "shift", time is added to the features of each block; with "scale-shift", it also scales them.
        groups: Groups of each normalisation; must divide all widths.
        dropout: Share of the features that each block drops in training.
        checkpointing: Compute each block again in the backward pass instead of storing what it computed.
        standardize: Standardise the weights of the blocks' convolutions.
        downsample: With "stride", halve the image by a strided convolution; with "unshuffle", move 2x2 pixels into
            channels.
    """

    def __init__(
        self,
        *,
        in_channels: int,
        out_channels: int,
        classes: int | None = None,
        dim: int,
        init_dim: int,
        widths: Sequence[int],
        blocks: int = 1,
        attention: Sequence[str],
        middle: str = "full",
        heads: int = 4,
        head_dim: int = 32,
        time: str = "scale-shift",
        groups: int = 8,
        dropout: float = 0.0,
        checkpointing: bool = False,
        standardize: bool = False,
        downsample: str = "stride",
    ) -> None:
        super().__init__()
        embedding, coarsest = 4 * dim, widths[-1]
        block = partial(
            Block,
            embedding=embedding,
            time=time,
            groups=groups,
            dropout=dropout,
            checkpointing=checkpointing,
            standardize=standardize,
        )
        attend = partial(make_attention, heads=heads, head_dim=head_dim, groups=groups)
        self.embedding = Embedding(time_dim=embedding, width=embedding, classes=classes)
        self.first = nn.Conv2d(in_channels, init_dim, 3, padding=1)
        self.downs, self.ups = nn.ModuleList(), nn.ModuleList()
        for i, (width, kind) in enumerate(zip(widths, attention, strict=True)):
            inputs = [width if i else init_dim, *[width] * (blocks - 1)]
            self.downs.append(Down([block(n, width) for n in inputs], attend(kind, width)))
            self.ups.append(Up([block(2 * width, width) for _ in range(blocks)], attend(kind, width)))
        self.downsamples = nn.ModuleList(make_downsample(downsample, *pair) for pair in pairwise(widths))
        self.upsamples = nn.ModuleList(make_upsample(coarse, fine) for fine, coarse in pairwise(widths))
        self.middle1 = block(coarsest, coarsest)
        self.attention = attend(middle, coarsest)
        self.middle2 = block(coarsest, coarsest)
        self.last = block(widths[0] + init_dim, widths[0])
        self.output = nn.Conv2d(widths[0], out_channels, 1)
        nn.init.zeros_(self.output.weight)
        nn.init.zeros_(self.output.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        with full_precision(x.device):
            embedding = F.silu(self.embedding(t, cond))
        x = first = self.first(x)
        skips: list[Tensor] = []
        for i, down in enumerate(self.downs):
            x = down(self.downsamples[i - 1](x) if i else x, embedding, skips)
        x = self.middle2(self.attention(self.middle1(x, embedding)), embedding)
        for i in reversed(range(len(self.ups))):
            x = self.ups[i](x, embedding, skips)
            x = self.upsamples[i - 1](x) if i else x
        x = self.last(torch.cat([x, first], dim=1), embedding)
        output: Tensor = self.output(x)
        return output


def make_attention(kind: str, channels: int, *, heads: int, head_dim: int, groups: int) -> nn.Module:
    """Return the attention of a level: none, linear or full."""
    if kind == "none":
        return nn.Identity()
    attention: type[Attention] = FullAttention if kind == "full" else LinearAttention
    return attention(channels=channels, heads=heads, head_dim=head_dim, groups=groups)


def make_downsample(kind: str, fine: int, coarse: int) -> nn.Module:
    """Return a module that maps (B, fine, H, W) to (B, coarse, H/2, W/2)."""
    if kind == "stride":
        return nn.Conv2d(fine, coarse, 3, stride=2, padding=1)
    return nn.Sequential(nn.PixelUnshuffle(2), nn.Conv2d(4 * fine, coarse, 1))


def make_upsample(coarse: int, fine: int) -> nn.Module:
    """Return a module that maps (B, coarse, H, W) to (B, fine, 2H, 2W)."""
    return nn.Sequential(nn.Upsample(scale_factor=2, mode="nearest"), nn.Conv2d(coarse, fine, 3, padding=1))
