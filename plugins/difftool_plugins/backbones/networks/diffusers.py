"""Networks of diffusers behind the interface of backbones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from diffusers import DiTTransformer2DModel, UNet2DModel
from torch import Tensor, nn

from difftool import TIME_RANGE, Condition

NEAR = 1e-3
"""A time this close to a whole number is that number, which float32 missed."""


class DiffusersNetwork(nn.Module):
    """A network of diffusers: map x (B, C, H, W), t (B,) and classes to an output of the same size.

    The class after the last one stands for a hidden class.

    Args:
        config: The configuration of the network, as diffusers has it.
        classes: The number of classes, or None.
        times: The number of times that the network counts: t from 0 to 1000 becomes 0 to `times`.
        checkpointing: Compute each block again in the backward pass instead of storing what it computed.
    """

    kind: Any

    def __init__(self, config: Mapping[str, Any], classes: int | None, *, times: int, checkpointing: bool) -> None:
        super().__init__()
        self.model: Any = self.kind(**config)
        self.classes, self.times = classes, times
        if checkpointing:
            self.model.enable_gradient_checkpointing()

    def counted(self, t: Tensor) -> Tensor:
        """Return times from 0 to 1000 as the network counts them."""
        if self.times == TIME_RANGE:
            return t
        t = t * (self.times / TIME_RANGE)
        whole = t.round()
        return torch.where((t - whole).abs() < NEAR, whole, t)

    def labels(self, x: Tensor, cond: Condition | None) -> Tensor | None:
        """Return the row of each item (B,) in the table of classes, or None without classes."""
        if self.classes is None:
            return None
        if cond is None or cond.label is None:
            return torch.full((x.shape[0],), self.classes, dtype=torch.int64, device=x.device)
        return cond.label.masked_fill(cond.hidden, self.classes)

    def forward(self, x: Tensor, t: Tensor, cond: Condition | None = None) -> Tensor:
        output: Tensor = self.model(x, self.counted(t), class_labels=self.labels(x, cond)).sample
        return output

    def zero_init(self) -> None:
        """Set to zero what makes the network output zero."""


class UNetNetwork(DiffusersNetwork):
    """`UNet2DModel`."""

    kind = UNet2DModel


class DiTNetwork(DiffusersNetwork):
    """`DiTTransformer2DModel`."""

    kind = DiTTransformer2DModel

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        for block in self.model.transformer_blocks:
            block.norm1.emb.class_embedder.dropout_prob = 0.0  # difftool hides classes itself, by keyed numbers

    def labels(self, x: Tensor, cond: Condition | None) -> Tensor:
        found = super().labels(x, cond)
        return torch.zeros(x.shape[0], dtype=torch.int64, device=x.device) if found is None else found

    def zero_init(self) -> None:
        for block in self.model.transformer_blocks:
            nn.init.zeros_(block.norm1.linear.weight)
            nn.init.zeros_(block.norm1.linear.bias)
        for layer in (self.model.proj_out_1, self.model.proj_out_2):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)


KINDS: Mapping[str, type[DiffusersNetwork]] = {
    "UNet2DModel": UNetNetwork,
    "DiTTransformer2DModel": DiTNetwork,
}
