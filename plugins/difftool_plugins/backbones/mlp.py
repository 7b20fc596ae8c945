"""The options of the multilayer perceptron; its network is in `networks.mlp`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, ClassVar, Literal

from difftool import Backbone, option

if TYPE_CHECKING:
    from torch import nn

    from difftool import BackboneSpec


class MLP(Backbone, name="mlp"):
    """A multilayer perceptron, for points and tiny images."""

    default_dataset = "swiss-roll"
    self_conditioning = True
    activation_checkpointing = True
    conditions = ("label", "vector")
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

    width: int = option(default=96, ge=1, le=16384, help="units of each hidden layer")
    depth: int = option(default=6, ge=1, le=64, help="number of hidden layers")
    activation: Literal["silu", "relu", "gelu", "tanh"] = option(
        default="silu", help="nonlinearity after each hidden layer"
    )
    residual: bool = option(default=True, help="add the input of each hidden layer but the first to its output")
    time: Literal["embedding", "plain"] = option(
        default="embedding",
        help="embedding: add an embedding of time to the first layer; plain: t/1000 is one more input",
    )
    time_dim: int = option(default=64, ge=2, le=4096, help="number of sines and cosines of t in the embedding; even")
    frequencies: Literal["transformer", "ddpm"] = option(
        default="transformer",
        help="frequencies of t, falling from 1: transformer would reach 1e-4 one after the last (n/2 steps), ddpm "
        "reaches it (n/2 - 1 steps)",
    )

    def __post_init__(self) -> None:
        if self.time_dim % 2:
            raise ValueError(f"time_dim: must be even (half sines, half cosines), not {self.time_dim}")

    def build(self, spec: BackboneSpec) -> nn.Module:
        from difftool_plugins.backbones.networks.mlp import MLPNetwork

        return MLPNetwork(
            in_channels=spec.in_channels,
            shape=(spec.out_channels, *spec.shape[1:]),
            condition=spec.condition,
            checkpointing=spec.checkpoint_activations,
            **asdict(self),
        )
