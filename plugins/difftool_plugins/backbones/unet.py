"""The U-Net's options; the network is in `networks.unet`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar, Literal

from difftool import Backbone, option

if TYPE_CHECKING:
    from torch import nn

    from difftool import BackboneSpec

WIDEST = 16384
"""Most channels of a level."""


class UNet(Backbone, name="unet"):
    """Residual blocks on a pyramid of resolutions with attention (Ho et al., 2020)."""

    default_dataset = "gradients"
    self_conditioning = True
    training_defaults: ClassVar[Mapping[str, object]] = {
        "steps": 1200,
        "batch_size": 16,
        "lr": 1e-3,
        "lr_schedule": "cosine",
        "warmup": 100,
        "clip": 1.0,
        "ema": 0.995,
    }

    dim: int = option(default=32, ge=1, le=2048, help="channels at full resolution, before dim-mults")
    dim_mults: tuple[int, ...] = option(
        default=(1, 2, 4),
        ge=1,
        le=64,
        help="channels of each level over dim, fine to coarse; each level halves the image",
    )
    init_dim: int | None = option(
        default=None, ge=1, le=WIDEST, help="channels of the first convolution", otherwise="dim"
    )
    blocks: int = option(default=1, ge=1, le=16, help="residual blocks of a level, each way")
    attention: tuple[Literal["none", "linear", "full"], ...] | None = option(
        default=None,
        help="attention of each level, fine to coarse, or one value for all",
        otherwise="full at the coarsest",
    )
    middle: Literal["none", "linear", "full"] = option(
        default="full", help="attention between the way down and the way up"
    )
    heads: int = option(default=4, ge=1, le=64, help="heads of an attention")
    head_dim: int = option(default=32, ge=1, le=512, help="size of a head")
    time: Literal["shift", "scale-shift"] = option(
        default="scale-shift", help="time is added to each block's features, or scales them too"
    )
    groups: int = option(default=8, ge=1, le=1024, help="groups of a normalisation; must divide every level's channels")
    dropout: float = option(default=0.0, ge=0, lt=1, help="share of features dropped in each block while training")
    checkpointing: bool = option(
        default=False, help="keep less for the backward pass and compute it again: less memory, more time"
    )
    standardize: bool = option(default=False, help="standardise the weights of the blocks' convolutions")
    downsample: Literal["stride", "unshuffle"] = option(
        default="stride", help="halve with a strided convolution, or by moving 2x2 pixels into channels"
    )

    def __post_init__(self) -> None:
        if not 1 <= len(self.dim_mults) <= 12:
            raise ValueError(f"dim_mults: must name 1 to 12 levels, not {len(self.dim_mults)}")
        if max(self.widths) > WIDEST:
            raise ValueError(f"dim_mults: makes a level {max(self.widths)} channels wide; at most {WIDEST} are allowed")
        if self.attention is not None and len(self.attention) not in (1, len(self.widths)):
            raise ValueError(
                f"attention: must be one value, or one for each of the {len(self.widths)} levels of dim-mults, "
                f"not {len(self.attention)}"
            )
        if misfits := [width for width in self.widths if width % self.groups]:
            raise ValueError(f"groups: {self.groups} must divide the channels of every level, but not {misfits[0]}")

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of each level, fine to coarse."""
        return tuple(self.dim * mult for mult in self.dim_mults)

    @property
    def attention_by_level(self) -> tuple[str, ...]:
        levels = len(self.widths)
        if self.attention is None:
            return ("none",) * (levels - 1) + ("full",)
        return self.attention if len(self.attention) == levels else self.attention * levels

    def build(self, spec: BackboneSpec) -> nn.Module:
        self._check(spec.shape)
        from difftool_plugins.backbones.networks.unet import UNetNetwork

        return UNetNetwork(
            in_channels=spec.in_channels,
            out_channels=spec.out_channels,
            classes=spec.classes,
            dim=self.dim,
            init_dim=self.init_dim or self.dim,
            widths=self.widths,
            blocks=self.blocks,
            attention=self.attention_by_level,
            middle=self.middle,
            heads=self.heads,
            head_dim=self.head_dim,
            time=self.time,
            groups=self.groups,
            dropout=self.dropout,
            checkpointing=self.checkpointing,
            standardize=self.standardize,
            downsample=self.downsample,
        )

    def _check(self, shape: tuple[int, ...]) -> None:
        if len(shape) != 3:
            raise ValueError(f"unet needs images (channels, height, width), not points of shape {shape}")
        halvings = len(self.widths) - 1
        factor = 2**halvings
        size = shape[1:]
        if all(n >= factor and n % factor == 0 for n in size):
            return
        below = [n // factor * factor for n in size]
        above = [-(-n // factor) * factor for n in size]
        fitting = [f"{h}x{w}" for h, w in (below, above) if h and w]
        raise ValueError(
            f"the U-Net halves the image {halvings} time{'s' if halvings > 1 else ''}: {size[0]}x{size[1]} does not "
            f"fit; nearest size{'s' if len(fitting) > 1 else ''} that do{'' if len(fitting) > 1 else 'es'}: "
            f"{', '.join(fitting)}"
        )
