"""Analog bits (Chen et al., 2023, "Analog bits: generating discrete data using diffusion models with
self-conditioning").

Pixels are integers from 0 to 255, and each of their eight bits becomes a number, -1 or 1, that diffusion treats as
real (section 2). Decoding takes the sign. The network also sees its own last estimate of x_0 (self-conditioning,
section 2.2): in training one that it has just made, in half of the steps, and in sampling that of the step before.
That is built in, and the bits are a codec, so samples are pixels again.

    difftool train --plugin examples/papers/analog_bits.py --codec bits --self-condition --schedule cosine \
        --prediction x0 --backbone unet --dataset gradients --dataset.size 16 --steps 2000 --out runs/bits
    difftool sample runs/bits --plugin examples/papers/analog_bits.py --sampler ddpm --steps 100
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from difftool import Codec, CodecSpec


class AnalogBits(nn.Module):
    """Images (B, C, H, W) from -1 to 1 as their bits (B, 8 C, H, W), the largest first, and back."""

    error = 1 / 255 / 3**0.5  # of rounding to 256 values; 0 for pixels

    def __init__(self) -> None:
        super().__init__()
        powers = 2.0 ** torch.arange(7, -1, -1).view(8, 1, 1)
        self.powers: Tensor = nn.Buffer(powers, persistent=False)

    def encode(self, x: Tensor) -> Tensor:
        pixels = ((x + 1) * 127.5).round().clamp(0, 255)
        bits = (pixels.unsqueeze(2) / self.powers).floor() % 2
        return 2 * bits.flatten(1, 2) - 1

    def decode(self, z: Tensor) -> Tensor:
        soft = (z + 1) / 2
        bits = soft + ((z > 0).float() - soft).detach()  # for guidance, the gradient of no rounding
        return (bits.view(len(z), -1, 8, *z.shape[2:]) * self.powers).sum(2).div(127.5).sub(1)


class Bits(Codec, name="bits"):
    """The eight bits of each pixel, as channels of -1 and 1."""

    def build(self, spec: CodecSpec) -> AnalogBits:
        if len(spec.shape) != 3:
            raise ValueError("it takes images")
        return AnalogBits()
