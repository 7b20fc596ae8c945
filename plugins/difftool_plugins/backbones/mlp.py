"""The multilayer perceptron's options; the network is in `networks.mlp`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar, Literal

from difftool import Backbone, option

if TYPE_CHECKING:
    from torch import nn

    from difftool import BackboneSpec


class MLP(Backbone, name="mlp"):
    """Fully connected layers: for points, and for tiny images as a tutorial takes them."""

    default_dataset = "swiss-roll"
    self_conditioning = True
    training_defaults: ClassVar[Mapping[str, object]] = {
        "steps": 6000,
        "batch_size": 256,
        "lr": 6e-3,
        "lr_schedule": "cosine",
        "warmup": 100,
        "ema": 0.999,
        "stratified": True,
        "threads": 1,
    }

    width: int = option(default=96, ge=1, le=16384, help="units of a hidden layer")
    depth: int = option(default=6, ge=1, le=64, help="hidden layers")
    activation: Literal["silu", "relu", "gelu", "tanh"] = option(
        default="silu", help="nonlinearity after each hidden layer"
    )
    residual: bool = option(
        default=True, help="add what goes into a hidden layer, the first aside, to what comes out of it"
    )
    time: Literal["embedding", "plain"] = option(
        default="embedding", help="add an embedding of time to the first layer, or give t/1000 as one more input"
    )
    time_dim: int = option(default=64, ge=2, le=4096, help="sines and cosines that embed time; even")

    def __post_init__(self) -> None:
        if self.time_dim % 2:
            raise ValueError(f"time_dim: must be even (half sines, half cosines), not {self.time_dim}")

    def build(self, spec: BackboneSpec) -> nn.Module:
        from difftool_plugins.backbones.networks.mlp import MLPNetwork

        return MLPNetwork(
            in_channels=spec.in_channels,
            shape=(spec.out_channels, *spec.shape[1:]),
            classes=spec.classes,
            width=self.width,
            depth=self.depth,
            activation=self.activation,
            residual=self.residual,
            time=self.time,
            time_dim=self.time_dim,
        )
