"""ControlNet: a condition image for a network that was trained without one (Zhang, Rao & Agrawala, 2023, section 3).

The trained network is locked. A trainable copy of its encoder sees x_t and the condition image, and adds to the skip
connections and to the middle of the locked network by convolutions that start at zero, so training starts from the
samples of the locked network (eq. 2). The copy is stored as its difference from the locked weights, which starts at
zero too: whatever weights --init-from brings, it starts as a copy of them. Where the image is hidden, the network is
the locked one, so --guidance leads away from what it draws by itself.

    python examples/tutorials/digits.py digits --size 8
    difftool train --plugin examples/papers/controlnet.py --backbone locked --dataset image-folder \
      --dataset.path digits --dataset.size 8 --dataset.channels 1 --dataset.labels none \
      --steps 1500 --batch-size 64 --lr 2e-3 --out runs/locked
    difftool train --plugin examples/papers/controlnet.py --backbone controlnet --dataset image-folder \
      --dataset.path digits --dataset.size 8 --dataset.channels 1 --dataset.labels none --dataset.condition shrink:4 \
      --init-from runs/locked --train-only control --steps 1500 --batch-size 64 --lr 2e-3 --out runs/controlled
    difftool sample runs/controlled --plugin examples/papers/controlnet.py --image digits/3/0003.png --out threes.png
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from difftool import Backbone, BackboneSpec, Condition, option


class Locked(Backbone, name="locked"):
    """A small U-Net of two levels, to be controlled."""

    default_dataset = "gradients"

    dim: int = option(default=32, ge=8, le=1024, help="channels; a multiple of 8")

    def build(self, spec: BackboneSpec) -> nn.Module:
        if len(spec.shape) != 3 or spec.shape[1] % 2 or spec.shape[2] % 2 or self.dim % 8:
            raise ValueError(f"{self.name} needs images of even sides, not {spec.shape}, and dim a multiple of 8")
        return UNet(spec.in_channels, spec.out_channels, self.dim)


class ControlNet(Locked, name="controlnet"):
    """The network `locked` with a trainable copy of its encoder that sees a condition image."""

    conditions = ("image",)

    def build(self, spec: BackboneSpec) -> nn.Module:
        if spec.condition.image is None or spec.condition.image[1:] != spec.shape[1:]:
            raise ValueError("controlnet needs a condition image that is as high and wide as the items")
        super().build(spec)  # refuses what does not fit
        return Controlled(spec.in_channels, spec.out_channels, self.dim, spec.condition.image[0])


class Block(nn.Module):
    def __init__(self, inputs: int, dim: int, stride: int = 1) -> None:
        super().__init__()
        self.conv, self.norm, self.time = nn.Conv2d(inputs, dim, 3, stride, 1), nn.GroupNorm(8, dim), nn.Linear(2, dim)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        return F.silu(self.norm(self.conv(x)) + self.time(time)[:, :, None, None])


class Encoder(nn.Module):
    def __init__(self, inputs: int, dim: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(inputs, dim, 3, padding=1)
        self.blocks = nn.ModuleList([Block(dim, dim), Block(dim, dim, stride=2), Block(dim, dim)])

    def forward(self, x: Tensor, time: Tensor, hint: Tensor | float = 0.0) -> list[Tensor]:
        features = [self.first(x) + hint]
        for block in self.blocks:
            features.append(block(features[-1], time))
        return features


class UNet(nn.Module):
    def __init__(self, inputs: int, outputs: int, dim: int) -> None:
        super().__init__()
        self.encoder, self.up, self.last = Encoder(inputs, dim), Block(2 * dim, dim), Block(3 * dim, dim)
        self.output = nn.Conv2d(dim, outputs, 1)

    def encode(self, x: Tensor, time: Tensor, cond: Condition | None) -> list[Tensor]:
        features: list[Tensor] = self.encoder(x, time)
        return features

    def forward(self, x: Tensor, t: Tensor, cond: Condition | None = None) -> Tensor:
        time = torch.stack([t / 1000, (t / 1000).square()], dim=1)
        first, fine, coarse, middle = self.encode(x, time, cond)
        h = F.interpolate(self.up(torch.cat([middle, coarse], dim=1), time), scale_factor=2.0)
        output: Tensor = self.output(self.last(torch.cat([h, fine, first], dim=1), time))
        return output


class Controlled(UNet):
    def __init__(self, inputs: int, outputs: int, dim: int, hint: int) -> None:
        super().__init__(inputs, outputs, dim)
        self.control_in, *zeros = (nn.Conv2d(channels, dim, 1) for channels in (hint, dim, dim, dim, dim))
        self.control_out = nn.ModuleList(zeros)
        self.control_copy = nn.ParameterList(torch.zeros_like(weight) for weight in self.encoder.parameters())
        for weight in (*self.control_in.parameters(), *self.control_out.parameters()):
            nn.init.zeros_(weight)

    def encode(self, x: Tensor, time: Tensor, cond: Condition | None) -> list[Tensor]:
        locked = super().encode(x, time, cond)
        if cond is None or cond.image is None:
            return locked
        weights = zip(self.encoder.named_parameters(), self.control_copy, strict=True)
        copy = {name: weight.detach() + change for (name, weight), change in weights}
        control = functional_call(self.encoder, copy, (x, time, self.control_in(cond.image)))
        shown = (~cond.hidden).view(-1, 1, 1, 1)
        outputs = zip(locked, self.control_out, control, strict=True)
        return [feature + shown * zero(change) for feature, zero, change in outputs]
