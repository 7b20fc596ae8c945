"""The options of the U-Net; its network is in `networks.unet`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, ClassVar, Literal

from difftool import Backbone, option

if TYPE_CHECKING:
    from torch import nn

    from difftool import BackboneSpec

MAX_CHANNELS = 16384
NAMES = {1: "a series", 2: "the image", 3: "the film"}
"""Items by the number of their axes behind the channels."""


class UNet(Backbone, name="unet"):
    """A U-Net: residual blocks and attention at several resolutions (Ho et al., 2020).

    It takes images, and with convolutions of one or three axes series (channels, length) and films (channels, frames,
    height, width), of which it halves the frames only if asked (Ho et al., 2022, "Video Diffusion Models").
    """

    default_dataset = "gradients"
    default_schedule = "cosine"
    default_optimizer = "muon"
    self_conditioning = True
    activation_checkpointing = True
    conditions = ("label", "vector", "tokens")
    training_defaults: ClassVar[Mapping[str, object]] = {
        "steps": 800,
        "batch_size": 32,
        "lr": 2e-3,
        "lr_schedule": "cosine",
        "warmup": 100,
        "clip": 1.0,
        "ema": 0.995,
    }

    dim: int = option(default=64, ge=1, le=2048, help="channels at full resolution, times the first of dim-mults")
    dim_mults: tuple[int, ...] = option(
        default=(0, 1, 2),
        ge=0,
        le=64,
        help="channels of each level as multiples of dim, from fine to coarse; each level halves the axes. 0, which "
        "may come first: nothing but moving blocks of 2x2 pixels into channels",
    )
    init_dim: int | None = option(
        default=None, ge=1, le=MAX_CHANNELS, help="channels of the first convolution", otherwise="dim"
    )
    blocks: int = option(
        default=1, ge=1, le=16, help="residual blocks of each level, in the encoder and in the decoder"
    )
    attention: tuple[Literal["none", "linear", "linear-norm", "full"], ...] | None = option(
        default=None,
        help="attention of each level that has channels, from fine to coarse, or one value for all levels; linear-norm "
        "scales q by 1/sqrt(head-dim) and normalises its output",
        otherwise="full at the coarsest level",
    )
    middle: Literal["none", "linear", "linear-norm", "full"] = option(
        default="full", help="attention between encoder and decoder"
    )
    heads: int = option(default=4, ge=1, le=64, help="heads of each attention")
    head_dim: int = option(default=32, ge=1, le=512, help="channels of each head")
    time: Literal["shift", "scale-shift"] = option(
        default="scale-shift",
        help="shift: time is added to the features of each block; scale-shift: it also scales them",
    )
    groups: int = option(
        default=4, ge=1, le=1024, help="groups of each normalisation; must divide the channels of every level"
    )
    attention_groups: int | None = option(
        default=None, ge=1, le=1024, help="groups of the normalisation before each attention", otherwise="groups"
    )
    dropout: float = option(default=0.0, ge=0, lt=1, help="share of the features that each block drops in training")
    standardize: bool = option(default=False, help="standardise the weights of the blocks' convolutions")
    downsample: Literal["stride", "unshuffle"] = option(
        default="stride",
        help="stride: halve by a strided convolution; unshuffle: move blocks of 2, 2x2 or 2x2x2 into channels",
    )
    halve: Literal["space", "all"] = option(
        default="space",
        help="axes of a film that each level halves. space: height and width; all: the frames too",
    )
    block: Literal["post", "pre"] = option(
        default="post",
        help="post: convolution, normalisation, SiLU, with time in the first; pre: normalisation, SiLU, convolution, "
        "with time after both",
    )
    grow: Literal["before", "after"] = option(
        default="before",
        help="before: the blocks of level i have dim x dim-mults[i] channels; after: those of the encoder keep the "
        "channels that come in, and the step to the next level widens",
    )
    first_kernel: int = option(default=3, ge=1, le=7, help="size of the first convolution; odd")
    zero_init: bool = option(default=True, help="start with an output of zero and attentions that change nothing")
    standardize_eps: float = option(default=0.0, ge=0, le=1, help="added to the variance of standardised weights")
    time_dim: int | None = option(
        default=None, ge=2, le=8192, help="number of sines and cosines of t; even", otherwise="4 x dim"
    )
    frequencies: Literal["transformer", "ddpm"] = option(
        default="transformer",
        help="frequencies of t, falling from 1: transformer would reach 1e-4 one after the last (n/2 steps), ddpm "
        "reaches it (n/2 - 1 steps)",
    )
    time_activation: Literal["silu", "gelu"] = option(
        default="silu", help="nonlinearity between the two layers of the embedding of time"
    )

    def __post_init__(self) -> None:
        if not 1 <= len(self.dim_mults) <= 12:
            raise ValueError(f"dim_mults: must have 1 to 12 levels, not {len(self.dim_mults)}")
        if not self.dim_mults[-1] or 0 in self.dim_mults[self.patched :]:
            raise ValueError("dim_mults: only the first levels may be 0, and not all of them")
        if max(self.widths) > MAX_CHANNELS:
            raise ValueError(f"dim_mults: a level has {max(self.widths)} channels; at most {MAX_CHANNELS} are allowed")
        if self.attention is not None and len(self.attention) not in (1, len(self.widths)):
            raise ValueError(
                f"attention: must be one value, or one for each of the {len(self.widths)} levels with channels, "
                f"not {len(self.attention)}"
            )
        if self.time_dim is not None and self.time_dim % 2:
            raise ValueError(f"time_dim: must be even (half sines, half cosines), not {self.time_dim}")
        if self.first_kernel % 2 == 0:
            raise ValueError(f"first_kernel: must be odd, not {self.first_kernel}")
        normalised = [*self.widths]
        if self.block == "pre" or self.grow == "after":  # the first convolution's channels are normalised too
            normalised.append(self.init_dim or self.dim)
        if self.attention_groups and (rest := [width for width in normalised if width % self.attention_groups]):
            raise ValueError(
                f"attention_groups: must divide the channels of every level, but {self.attention_groups} does not "
                f"divide {rest[0]}"
            )
        if indivisible := [width for width in normalised if width % self.groups]:
            raise ValueError(
                f"groups: must divide the channels of every level, but {self.groups} does not divide {indivisible[0]}"
            )

    @property
    def patched(self) -> int:
        """The number of levels without channels, which come first."""
        return next((i for i, mult in enumerate(self.dim_mults) if mult), 0)

    @property
    def widths(self) -> tuple[int, ...]:
        """The channels of each level that has some, from fine to coarse."""
        return tuple(self.dim * mult for mult in self.dim_mults if mult)

    @property
    def attention_by_level(self) -> tuple[str, ...]:
        """The attention of each level that has channels, from fine to coarse."""
        levels = len(self.widths)
        if self.attention is None:
            return ("none",) * (levels - 1) + ("full",)
        return self.attention if len(self.attention) == levels else self.attention * levels

    def build(self, spec: BackboneSpec) -> nn.Module:
        factors = self._factors(spec.shape)
        if spec.condition.tokens and {*self.attention_by_level, self.middle} == {"none"}:
            raise ValueError("attention: tokens act where attention is, and there is none; give a level or middle one")
        from difftool_plugins.backbones.networks.unet import UNetNetwork

        options = asdict(self)
        del options["dim_mults"], options["halve"]
        options |= {"widths": self.widths, "init_dim": self.init_dim or self.dim, "attention": self.attention_by_level}
        options["time_dim"] = self.time_dim or 4 * self.dim
        options["attention_groups"] = self.attention_groups or self.groups
        return UNetNetwork(
            in_channels=spec.in_channels,
            out_channels=spec.out_channels,
            factors=factors,
            patch=tuple(factor**self.patched for factor in factors),
            condition=spec.condition,
            checkpointing=spec.checkpoint_activations,
            **options,
        )

    def _factors(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return the factor by which each level divides each axis of items of this shape, 2 or 1.

        Raises `ValueError` for items without such axes, or that cannot be halved often enough.
        """
        if not 2 <= len(shape) <= 4:
            raise ValueError(
                "unet needs series (channels, length), images (channels, height, width) or films (channels, frames, "
                f"height, width), not items of shape {shape}"
            )
        axes, halvings = shape[1:], len(self.dim_mults) - 1
        factors = tuple(1 if len(axes) == 3 and self.halve == "space" and i == 0 else 2 for i in range(len(axes)))
        whole = [factor**halvings for factor in factors]
        if not any(n % step for n, step in zip(axes, whole, strict=True)):
            return factors
        smaller = [n // step * step for n, step in zip(axes, whole, strict=True)]
        larger = [-(-n // step) * step for n, step in zip(axes, whole, strict=True)]
        nearest = " or ".join("x".join(map(str, sizes)) for sizes in (smaller, larger) if all(sizes))
        what, size = NAMES[len(axes)], "x".join(map(str, axes))
        raise ValueError(
            f"the U-Net halves {what} {halvings} time{'s' if halvings > 1 else ''}, and {size} does not fit; the "
            f"nearest size is {nearest}"
        )
