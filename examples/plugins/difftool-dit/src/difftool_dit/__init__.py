"""A diffusion transformer for difftool. Its options are in this file, and its network is in network.py."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

from difftool import Backbone, hookimpl, option

if TYPE_CHECKING:  # torch is imported only when a network is built
    from torch import nn

    from difftool import BackboneSpec

difftool_api = 2


class DiT(Backbone, name="dit"):
    """Diffusion transformer: attention between the patches of an image (Peebles & Xie, 2023)."""

    default_dataset = "gradients"
    self_conditioning = True
    activation_checkpointing = True
    conditions = ("label", "vector")
    training_defaults: ClassVar[Mapping[str, object]] = {
        "steps": 1500,
        "batch_size": 16,
        "lr": 1e-3,
        "lr_schedule": "cosine",
        "warmup": 100,
        "clip": 1.0,
        "ema": 0.995,
    }

    patch: int = option(
        default=2, ge=1, le=64, help="side of a patch in pixels; half the side gives four times as many patches"
    )
    dim: int = option(default=128, ge=4, le=8192, help="size of the token of a patch; a multiple of 4 and of heads")
    depth: int = option(default=4, ge=1, le=128, help="number of blocks, each with an attention and an MLP")
    heads: int = option(default=4, ge=1, le=128, help="heads of each attention; must divide dim")
    mlp_ratio: int = option(default=4, ge=1, le=64, help="hidden units of each block's MLP as a multiple of dim")
    dropout: float = option(
        default=0.0, ge=0, lt=1, help="share of the features that each attention and MLP drops in training"
    )

    def __post_init__(self) -> None:
        if self.dim % 4:
            raise ValueError(f"dim: must be a multiple of 4 (sines and cosines of row and column), not {self.dim}")
        if self.dim % self.heads:
            raise ValueError(f"heads: must divide dim, but {self.heads} does not divide {self.dim}")

    def build(self, spec: BackboneSpec) -> nn.Module:
        self._check(spec.shape)
        from difftool_dit.network import DiTNetwork

        return DiTNetwork(
            in_channels=spec.in_channels,
            out_channels=spec.out_channels,
            size=(spec.shape[1], spec.shape[2]),
            condition=spec.condition,
            patch=self.patch,
            dim=self.dim,
            depth=self.depth,
            heads=self.heads,
            mlp_ratio=self.mlp_ratio,
            dropout=self.dropout,
            checkpointing=spec.checkpoint_activations,
        )

    def _check(self, shape: tuple[int, ...]) -> None:
        """Raise `ValueError` for items that are not images, or do not consist of whole patches."""
        if len(shape) != 3:
            raise ValueError(f"the transformer needs images (channels, height, width), not items of shape {shape}")
        height, width = shape[1:]
        if height % self.patch == 0 and width % self.patch == 0:
            return
        smaller = [n // self.patch * self.patch for n in (height, width)]
        larger = [-(-n // self.patch) * self.patch for n in (height, width)]
        nearest = " or ".join(f"{h}x{w}" for h, w in (smaller, larger) if h and w)
        raise ValueError(
            f"the transformer cuts images into patches of {self.patch}x{self.patch}, and {height}x{width} does not "
            f"fit; the nearest size is {nearest}"
        )


@hookimpl
def difftool_backbones() -> list[type[Backbone]]:
    return [DiT]
