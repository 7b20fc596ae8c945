"""A diffusion transformer for difftool: its options are here, the network that they build is in network.py."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

from difftool import Backbone, hookimpl, option

if TYPE_CHECKING:  # torch is imported when a network is built, not when a command is typed
    from torch import nn

    from difftool import BackboneSpec

difftool_api = 1


class DiT(Backbone, name="dit"):
    """Diffusion transformer: attention between the patches of an image, no convolutions (Peebles & Xie, 2023)."""

    default_dataset = "gradients"
    self_conditioning = True
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
        default=2, ge=1, le=64, help="side of a patch in pixels; half of it makes four times as many patches"
    )
    dim: int = option(default=128, ge=4, le=8192, help="numbers that stand for a patch; a multiple of 4 and of heads")
    depth: int = option(default=4, ge=1, le=128, help="blocks, each an attention and an MLP")
    heads: int = option(default=4, ge=1, le=128, help="heads of an attention; they share dim evenly")
    mlp_ratio: int = option(default=4, ge=1, le=64, help="hidden units of a block's MLP over dim")
    dropout: float = option(
        default=0.0, ge=0, lt=1, help="share of the features dropped from each attention and MLP while training"
    )

    def __post_init__(self) -> None:
        if self.dim % 4:
            raise ValueError(
                f"dim: must be a multiple of 4 (sines and cosines of the row, and of the column), not {self.dim}"
            )
        if self.dim % self.heads:
            raise ValueError(f"heads: {self.heads} must divide dim, which is {self.dim}")

    def build(self, spec: BackboneSpec) -> nn.Module:
        self._check(spec.shape)
        from difftool_dit.network import DiTNetwork

        return DiTNetwork(self, spec)

    def _check(self, shape: tuple[int, ...]) -> None:
        if len(shape) != 3:
            raise ValueError(f"the transformer needs images (channels, height, width), not items of shape {shape}")
        size = shape[1:]
        if all(n % self.patch == 0 for n in size):
            return
        below = [n // self.patch * self.patch for n in size]
        above = [-(-n // self.patch) * self.patch for n in size]
        fitting = [f"{h}x{w}" for h, w in (below, above) if h and w]
        raise ValueError(
            f"the transformer cuts images into patches of {self.patch}x{self.patch}: {size[0]}x{size[1]} does not fit; "
            f"nearest {'sizes that do' if len(fitting) > 1 else 'size that does'}: {', '.join(fitting)}"
        )


@hookimpl
def difftool_backbones() -> list[type[Backbone]]:
    return [DiT]
