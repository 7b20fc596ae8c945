"""Networks of diffusers as backbones, so that their models can be trained here and taken along."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from difftool import Backbone, option

if TYPE_CHECKING:
    from difftool import BackboneSpec
    from difftool_plugins.backbones.networks.diffusers import DiffusersNetwork

TIMES = 1000
MISSING = "needs diffusers, which is not installed; pip install 'difftool[diffusers]'"
DOWN = ("DownBlock2D", "AttnDownBlock2D", "ResnetDownsampleBlock2D")
UP = ("UpBlock2D", "AttnUpBlock2D", "ResnetUpsampleBlock2D")


class DiffusersBackbone(Backbone):
    """A network of diffusers, which takes classes and no other condition."""

    activation_checkpointing = True
    conditions = ("label",)
    class_name: ClassVar[str]
    """The name of the class of diffusers."""

    times: int = option(
        default=TIMES,
        ge=1,
        le=100_000,
        help="number of times that the network counts; diffusers wants as many as --timesteps",
    )

    def config(self, spec: BackboneSpec) -> dict[str, Any]:
        """Return the configuration of the network, as diffusers writes it. Raises `ValueError` for the shape."""
        raise NotImplementedError

    def build(self, spec: BackboneSpec) -> DiffusersNetwork:
        config = self.config(spec)
        if find_spec("diffusers") is None:
            raise ValueError(MISSING)
        from difftool_plugins.backbones.networks.diffusers import KINDS

        return KINDS[self.class_name](config, spec.classes, times=self.times, checkpointing=spec.checkpoint_activations)


class DiffusersUNet(DiffusersBackbone, name="diffusers-unet"):
    """The network of diffusers' DDPM pipelines (UNet2DModel), with its options by their names there."""

    default_dataset = "gradients"
    self_conditioning = True
    class_name = "UNet2DModel"
    training_defaults: ClassVar[Mapping[str, object]] = {
        "steps": 1200,
        "batch_size": 16,
        "lr": 1e-3,
        "lr_schedule": "cosine",
        "warmup": 100,
        "clip": 1.0,
        "ema": 0.995,
    }

    block_out_channels: tuple[int, ...] = option(
        default=(32, 64, 128), ge=1, le=16384, help="channels of each level; each level halves the image"
    )
    layers_per_block: int = option(default=1, ge=1, le=16, help="residual blocks of each level")
    down_block_types: tuple[Literal["DownBlock2D", "AttnDownBlock2D", "ResnetDownsampleBlock2D"], ...] | None = option(
        default=None, help="block of each level of the encoder", otherwise="attention at the coarsest level"
    )
    up_block_types: tuple[Literal["UpBlock2D", "AttnUpBlock2D", "ResnetUpsampleBlock2D"], ...] | None = option(
        default=None, help="block of each level of the decoder, from coarse to fine", otherwise="as the encoder"
    )
    attention_head_dim: int = option(
        default=8, ge=0, le=16384, help="channels of each head of attention; 0: a single head"
    )
    norm_num_groups: int = option(default=8, ge=1, le=1024, help="groups of each normalisation")
    attn_norm_num_groups: int | None = option(
        default=None, ge=1, le=1024, help="groups before the attention in the middle", otherwise="norm-num-groups"
    )
    norm_eps: float = option(default=1e-5, gt=0, le=1, help="added to the variance in each normalisation")
    resnet_time_scale_shift: Literal["default", "scale_shift"] = option(
        default="default", help="default: time is added to the features of each block; scale_shift: it also scales them"
    )
    add_attention: bool = option(default=True, help="attention between encoder and decoder")
    dropout: float = option(default=0.0, ge=0, lt=1, help="share of the features that each block drops in training")
    act_fn: Literal["silu", "swish", "mish", "gelu", "relu"] = option(default="silu", help="nonlinearity of the blocks")
    downsample_type: Literal["conv", "resnet"] = option(default="conv", help="what halves the image")
    upsample_type: Literal["conv", "resnet"] = option(default="conv", help="what doubles it")
    downsample_padding: int = option(default=1, ge=0, le=1, help="padding of the convolutions that halve the image")
    mid_block_scale_factor: float = option(default=1.0, gt=0, le=100, help="divisor of the middle block's output")
    time_embedding_dim: int | None = option(
        default=None, ge=1, le=16384, help="size of the embedding of time", otherwise="4 x the first channels"
    )
    freq_shift: int = option(default=0, ge=0, le=1, help="1: frequencies of t reach 1e-4, as in DDPM; 0: almost")
    flip_sin_to_cos: bool = option(default=True, help="cosines of t before its sines")
    center_input_sample: bool = option(default=False, help="the network first computes 2 x - 1")

    def __post_init__(self) -> None:
        levels = len(self.block_out_channels)
        if not 1 <= levels <= 12:
            raise ValueError(f"block_out_channels: must have 1 to 12 levels, not {levels}")
        for name in ("down_block_types", "up_block_types"):
            blocks = getattr(self, name)
            if blocks is not None and len(blocks) != levels:
                raise ValueError(f"{name}: must name a block for each of the {levels} levels, not {len(blocks)}")
        for width in self.block_out_channels:
            for name, divisor in (("norm_num_groups", self.norm_num_groups), ("attention_head_dim", self._head(width))):
                if width % divisor:
                    raise ValueError(f"{name}: must divide the channels of every level, but {divisor} does not {width}")
        if self.attn_norm_num_groups and self.block_out_channels[-1] % self.attn_norm_num_groups:
            raise ValueError("attn_norm_num_groups: must divide the channels of the coarsest level")
        if self.block_out_channels[0] % 2 or (self.freq_shift and self.block_out_channels[0] == 2):
            raise ValueError("block_out_channels: the first must be even and above 2, for half sines and half cosines")

    def _head(self, width: int) -> int:
        return min(self.attention_head_dim or width, width)

    def config(self, spec: BackboneSpec) -> dict[str, Any]:
        levels = len(self.block_out_channels)
        if len(spec.shape) != 3:
            raise ValueError(f"{self.name} needs images (channels, height, width), not items of shape {spec.shape}")
        factor = 2 ** (levels - 1)
        height, width = spec.shape[1:]
        if height % factor or width % factor:
            near = "x".join(str(max(1, round(n / factor)) * factor) for n in (height, width))
            raise ValueError(
                f"the network halves the image {levels - 1} times, and {height}x{width} does not fit; {near} does"
            )
        down = self.down_block_types or (DOWN[0],) * (levels - 1) + (DOWN[1],)
        up: list[str] = [*(self.up_block_types or ())] or [UP[DOWN.index(name)] for name in reversed(down)]
        names = (
            *("layers_per_block", "norm_num_groups", "attn_norm_num_groups", "norm_eps"),
            *("resnet_time_scale_shift", "add_attention", "dropout", "act_fn", "downsample_type", "upsample_type"),
            *("downsample_padding", "mid_block_scale_factor", "time_embedding_dim", "freq_shift", "flip_sin_to_cos"),
            "center_input_sample",
        )
        return {
            "sample_size": height if height == width else [height, width],
            "in_channels": spec.in_channels,
            "out_channels": spec.out_channels,
            "block_out_channels": list(self.block_out_channels),
            "down_block_types": list(down),
            "up_block_types": up,
            "attention_head_dim": self.attention_head_dim or None,
            "num_class_embeds": None if spec.classes is None else spec.classes + 1,
            **{name: getattr(self, name) for name in names},
        }


class DiffusersDiT(DiffusersBackbone, name="diffusers-dit"):
    """The diffusion transformer (Peebles & Xie, 2023) as diffusers has it (DiTTransformer2DModel)."""

    default_dataset = "gradients"
    class_name = "DiTTransformer2DModel"
    training_defaults: ClassVar[Mapping[str, object]] = {"steps": 2000, "batch_size": 32, "lr": 3e-4, "warmup": 100}

    num_attention_heads: int = option(default=4, ge=1, le=256, help="heads of each attention")
    attention_head_dim: int = option(default=32, ge=4, le=1024, help="channels of each head; a multiple of 4")
    num_layers: int = option(default=6, ge=1, le=200, help="transformer blocks")
    patch_size: int = option(default=2, ge=1, le=64, help="side of the patches that are the tokens")
    dropout: float = option(default=0.0, ge=0, lt=1, help="share of the features that are dropped in training")
    attention_bias: bool = option(default=True, help="attention has biases")
    activation_fn: Literal["gelu-approximate", "gelu", "geglu"] = option(
        default="gelu-approximate", help="nonlinearity of the blocks"
    )
    norm_eps: float = option(default=1e-5, gt=0, le=1, help="added to the variance in each normalisation")
    zero_init: bool = option(default=True, help="start with blocks that change nothing and an output of zero")

    def __post_init__(self) -> None:
        if self.num_attention_heads * self.attention_head_dim % 4:
            raise ValueError("attention_head_dim: times num-attention-heads, it must be a multiple of 4")

    def config(self, spec: BackboneSpec) -> dict[str, Any]:
        if len(spec.shape) != 3 or spec.shape[1] != spec.shape[2] or spec.shape[1] % self.patch_size:
            raise ValueError(
                f"{self.name} needs square images whose side is a multiple of the patches of {self.patch_size}, not "
                f"items of shape {spec.shape}"
            )
        names = (
            *("num_attention_heads", "attention_head_dim", "num_layers", "patch_size", "dropout", "attention_bias"),
            *("activation_fn", "norm_eps"),
        )
        return {
            "sample_size": spec.shape[1],
            "in_channels": spec.in_channels,
            "out_channels": spec.out_channels,
            "num_embeds_ada_norm": spec.classes or 1,
            **{name: getattr(self, name) for name in names},
        }

    def build(self, spec: BackboneSpec) -> DiffusersNetwork:
        network = super().build(spec)
        if self.zero_init:
            network.zero_init()
        return network
