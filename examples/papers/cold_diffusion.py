"""Cold diffusion (Bansal et al., 2022, "Cold diffusion: inverting arbitrary image transforms without noise").

The noise is replaced by a blur D(x, s): a Gaussian kernel, here of deviation sigma/alpha pixels at a level, so that
the usual schedules end in the mean colour. The network restores x_0, R(x, s), by the mean absolute error (eq. 1).
Sampling adds the difference that the estimate makes, x - D(x_0, t) + D(x_0, s) (algorithm 2), which forgives errors of
R that the blur removes. It begins with blank images in colours that are normally distributed, and a little noise
against their perfect symmetry (section 5.2).

    difftool train --plugin examples/papers/cold_diffusion.py --loss cold --prediction x0 --backbone unet \
        --dataset gradients --dataset.size 16 --steps 2000 --out runs/cold
    difftool sample runs/cold --plugin examples/papers/cold_diffusion.py --sampler cold --sampler.std 0.5 --steps 20
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from difftool import Denoise, Level, Loss, LossSpec, Noise, Predict, Sampler, Step, TrainingBatch, option


def blur(x: Tensor, std: Tensor) -> Tensor:
    """Return images (B, C, H, W) that a Gaussian kernel of this deviation (B, 1, 1, 1) in pixels has blurred.

    Images are reflected at their borders. A cosine of k half-waves over n pixels fades by exp(-(pi k std/n)^2/2).
    """
    for axis in (2, 3):
        n = x.shape[axis]
        k = torch.arange(n, device=x.device, dtype=x.dtype)
        unit = torch.where(k == 0, 1 / n, 2 / n).sqrt().to(x)
        cosines = unit.view(n, 1) * torch.cos(math.pi / n * torch.outer(k, k + 0.5))  # rows of length 1
        fade = torch.exp(-((math.pi * k / n * std.view(-1, 1)) ** 2) / 2)
        kernel = torch.einsum("ki,bk,kj->bij", cosines, fade, cosines)
        x = torch.einsum("bij,bcjw->bciw" if axis == 2 else "bij,bchj->bchi", kernel, x)
    return x


class Cold(Loss, name="cold"):
    """The mean absolute error of x_0 restored from a blurred image."""

    def build(self, spec: LossSpec) -> None:
        if len(spec.shape) != 3 or spec.schedule.alpha[-1] == 0:
            raise ValueError("it takes images, and a schedule that leaves some signal, such as linear")

    def loss(self, predict: Predict, batch: TrainingBatch, auxiliary: nn.Module | None) -> Tensor:
        alpha, sigma = batch.levels(batch.t)
        x_0 = predict.x_0(blur(batch.x_0, sigma / alpha), batch.t, batch.cond)
        return (x_0 - batch.x_0).abs().flatten(1).mean(1)


class ColdSampler(Sampler, name="cold"):
    """Sharpen blank images, for models of the loss cold (algorithm 2)."""

    mean: float = option(default=0.0, help="mean of the colour of an image, in model units")
    std: float = option(default=0.5, ge=0, help="standard deviation of that colour")
    noise: float = option(default=0.002, ge=0, help="standard deviation of the noise that blank images get")

    def sample(self, denoise: Denoise, x: Tensor, levels: Sequence[Level], noise: Noise) -> Iterator[Step]:
        colour = x.mean((2, 3), keepdim=True) * math.prod(x.shape[2:]) ** 0.5  # standard normal
        x = self.mean + self.std * colour + self.noise * x
        for t, s in pairwise(levels):
            estimate = denoise(x, t)
            x = x - self.degraded(estimate.x_0, t) + self.degraded(estimate.x_0, s)
            yield Step(x, s, estimate)

    @staticmethod
    def degraded(x: Tensor, level: Level) -> Tensor:
        return blur(x, x.new_full((), level.sigma / level.alpha))
