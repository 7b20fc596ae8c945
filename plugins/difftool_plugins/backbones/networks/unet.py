"""The U-Net of DDPM (Ho et al., 2020) and its family.

    first conv ─► level 0 ─► halve ─► level 1 ─► ... ─► middle ─► ... ─► level 1 ─► double ─► level 0 ─► last block, 1x1
                    └────────────────── each block's result joins its mirror ──────────────────┘

Level i is dim * dim_mults[i] channels wide, at 2^-i of the image's height and width.
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
        # the floor only guards against constant weights; any larger one would break the invariance to their scale
        weight = (self.weight - mean) * torch.rsqrt(variance.clamp_min(1e-12))
        answer: Tensor = self._conv_forward(x, weight, self.bias)
        return answer


class Block(nn.Module):
    """shortcut(x) + twice convolution, normalisation, SiLU; time shifts, or scales and shifts, the first of them."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
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
        self.time = nn.Linear(embedding, (2 if self.scales else 1) * outputs)
        self.conv1 = conv(inputs, outputs, 3, padding=1)
        self.norm1 = nn.GroupNorm(groups, outputs)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = conv(outputs, outputs, 3, padding=1)
        self.norm2 = nn.GroupNorm(groups, outputs)
        self.shortcut = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        if self.checkpointing and torch.is_grad_enabled():
            answer: Tensor = checkpoint(self.compute, x, embedding, use_reentrant=False)
            return answer
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
        answer: Tensor = h + self.shortcut(x)
        return answer


class Down(nn.Module):
    """A level on the way to the middle. `skips` gets the result of each block, the last one after its attention."""

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
    """A level on the way to the answer. Each block joins the last of `skips`, and takes it away."""

    def __init__(self, blocks: Iterable[nn.Module], attention: nn.Module) -> None:
        super().__init__()
        self.blocks, self.attention = nn.ModuleList(blocks), attention

    def forward(self, x: Tensor, embedding: Tensor, skips: list[Tensor]) -> Tensor:
        for block in self.blocks:
            x = block(torch.cat([x, skips.pop()], dim=1), embedding)
        answer: Tensor = self.attention(x)
        return answer


class UNetNetwork(nn.Module):
    """x (B, C, H, W), t (B,), cond (B,) -> (B, out_channels, H, W). Starts with the answer 0 everywhere."""

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
        """`widths` and `attention` have one entry a level, fine to coarse."""
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
        self.embedding = Embedding(embedding, embedding, classes)
        self.first = nn.Conv2d(in_channels, init_dim, 3, padding=1)
        self.downs, self.ups = nn.ModuleList(), nn.ModuleList()
        for i, (width, kind) in enumerate(zip(widths, attention, strict=True)):
            inputs = [width if i else init_dim, *[width] * (blocks - 1)]
            self.downs.append(Down([block(n, width) for n in inputs], attend(kind, width)))
            self.ups.append(Up([block(2 * width, width) for _ in range(blocks)], attend(kind, width)))
        steps = list(pairwise(widths))
        self.halvings = nn.ModuleList(halving(downsample, fine, coarse) for fine, coarse in steps)
        self.doublings = nn.ModuleList(doubling(coarse, fine) for fine, coarse in steps)
        self.middle1 = block(coarsest, coarsest)
        self.attention = attend(middle, coarsest)
        self.middle2 = block(coarsest, coarsest)
        self.last = block(widths[0] + init_dim, widths[0])
        self.answer = nn.Conv2d(widths[0], out_channels, 1)
        nn.init.zeros_(self.answer.weight)
        nn.init.zeros_(self.answer.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        with full_precision(x.device):
            embedding = F.silu(self.embedding(t, cond))
        x = first = self.first(x)
        skips: list[Tensor] = []
        for i, down in enumerate(self.downs):
            x = down(self.halvings[i - 1](x) if i else x, embedding, skips)
        x = self.middle2(self.attention(self.middle1(x, embedding)), embedding)
        for i in reversed(range(len(self.ups))):
            x = self.ups[i](x, embedding, skips)
            x = self.doublings[i - 1](x) if i else x
        x = self.last(torch.cat([x, first], dim=1), embedding)
        answer: Tensor = self.answer(x)
        return answer


def make_attention(kind: str, channels: int, *, heads: int, head_dim: int, groups: int) -> nn.Module:
    if kind == "none":
        return nn.Identity()
    attention: type[Attention] = FullAttention if kind == "full" else LinearAttention
    return attention(channels, heads, head_dim, groups)


def halving(kind: str, fine: int, coarse: int) -> nn.Module:
    """(B, fine, H, W) -> (B, coarse, H/2, W/2)."""
    if kind == "stride":
        return nn.Conv2d(fine, coarse, 3, stride=2, padding=1)
    return nn.Sequential(nn.PixelUnshuffle(2), nn.Conv2d(4 * fine, coarse, 1))


def doubling(coarse: int, fine: int) -> nn.Module:
    """(B, coarse, H, W) -> (B, fine, 2H, 2W)."""
    return nn.Sequential(nn.Upsample(scale_factor=2, mode="nearest"), nn.Conv2d(coarse, fine, 3, padding=1))
