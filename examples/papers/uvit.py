"""U-ViT: a vision transformer with long skip connections (Bao et al., 2023, "All are worth words", section 3).

Time, class and patches of the image are all tokens of one plain transformer, and nothing modulates its norms. The
blocks of its first half are linked with those of its second half as in a U-Net: the two sets of tokens are put beside
each other and mixed by a linear layer (section 3.1, "concatenation"). A 3x3 convolution smooths the seams of patches.

    difftool train --plugin examples/papers/uvit.py --dataset gradients --dataset.size 16 --backbone uvit \
      --steps 3000 --batch-size 64 --lr 1e-3 --out runs/uvit
    difftool sample runs/uvit --plugin examples/papers/uvit.py --out uvit.png
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from difftool import Backbone, BackboneSpec, Condition, option


class UViT(Backbone, name="uvit"):
    """A transformer on patches, whose first blocks are linked with its last ones."""

    default_dataset = "gradients"
    self_conditioning = True
    conditions = ("label",)

    dim: int = option(default=128, ge=8, le=8192, help="size of a token")
    depth: int = option(default=5, ge=1, le=99, help="number of blocks; odd")
    heads: int = option(default=4, ge=1, le=64, help="attention heads; must divide dim")
    patch: int = option(default=2, ge=1, le=64, help="height and width of a patch")

    def __post_init__(self) -> None:
        if self.depth % 2 == 0:
            raise ValueError(f"depth: must be odd, since one block stands in the middle, not {self.depth}")
        if self.dim % self.heads or self.dim % 2:
            raise ValueError(f"dim: must be even and a multiple of heads, not {self.dim} with {self.heads} heads")

    def build(self, spec: BackboneSpec) -> nn.Module:
        if len(spec.shape) != 3 or spec.shape[1] % self.patch or spec.shape[2] % self.patch:
            raise ValueError(f"uvit needs images whose sides are multiples of {self.patch}, not {spec.shape}")
        return UViTNetwork(self, spec)


class UViTNetwork(nn.Module):
    def __init__(self, options: UViT, spec: BackboneSpec) -> None:
        super().__init__()
        dim, patch, (_, height, width) = options.dim, options.patch, spec.shape
        self.classes, self.size = spec.classes, (height // patch, width // patch)
        self.extra = 1 if spec.classes is None else 2  # the tokens of time and class
        self.patches = nn.Conv2d(spec.in_channels, dim, patch, stride=patch)
        self.label = None if spec.classes is None else nn.Embedding(spec.classes + 1, dim)
        self.positions = nn.Parameter(0.02 * torch.randn(self.extra + math.prod(self.size), dim))

        def block() -> nn.Module:
            return nn.TransformerEncoderLayer(
                dim, options.heads, 4 * dim, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
            )

        half = options.depth // 2
        self.first = nn.ModuleList(block() for _ in range(half))
        self.middle = block()
        self.last = nn.ModuleList(block() for _ in range(half))
        self.mix = nn.ModuleList(nn.Linear(2 * dim, dim) for _ in range(half))
        self.norm = nn.LayerNorm(dim)
        self.pixels = nn.Linear(dim, patch * patch * spec.out_channels)
        self.unpatch = nn.PixelShuffle(patch)
        self.smooth = nn.Conv2d(spec.out_channels, spec.out_channels, 3, padding=1)

    def forward(self, x: Tensor, t: Tensor, cond: Condition | None = None) -> Tensor:
        tokens = [waves(t, self.positions.shape[1])[:, None]]
        if self.label is not None and self.classes is not None:
            nothing = torch.full_like(t, self.classes, dtype=torch.int64)
            tokens.append(self.label(nothing if cond is None else cond.class_index(self.classes))[:, None])
        h = torch.cat([*tokens, self.patches(x).flatten(2).mT], dim=1) + self.positions
        skips = []
        for block in self.first:
            h = block(h)
            skips.append(h)
        h = self.middle(h)
        for mix, block in zip(self.mix, self.last, strict=True):
            h = block(mix(torch.cat([h, skips.pop()], dim=2)))
        image = self.pixels(self.norm(h[:, self.extra :])).mT.unflatten(2, self.size)
        output: Tensor = self.smooth(self.unpatch(image))
        return output


def waves(t: Tensor, dim: int) -> Tensor:
    """Return the cosines and sines of t (B,) at falling frequencies (B, dim)."""
    angles = t[:, None] * 1e4 ** (-torch.arange(dim // 2, device=t.device) / (dim // 2))
    return torch.cat([angles.cos(), angles.sin()], dim=1)
