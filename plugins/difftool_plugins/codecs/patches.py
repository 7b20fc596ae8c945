"""The modules of the codecs that work on patches. They take items with any number of axes after the channels."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn


class Patches(nn.Module):
    """Space to depth (B, C, f h, f w) -> (B, C f f, h, w), in the order of channels, rows and columns, and back."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size
        self.error = 0.0

    def encode(self, x: Tensor) -> Tensor:
        """Return patches as channels: (B, C f^k, ...) for items (B, C, ...) with k axes of space."""
        return space_to_depth(x, self.size)

    def decode(self, z: Tensor) -> Tensor:
        """Return the items of their patches."""
        return depth_to_space(z, self.size)


class PrincipalComponents(nn.Module):
    """An orthogonal projection of patches, or of whole points, on the directions in which they vary most."""

    components: Tensor
    mean: Tensor
    discarded: Tensor

    def __init__(self, size: int, numbers: int, kept: int) -> None:
        super().__init__()
        self.size = size
        self.register_buffer("components", torch.eye(kept, numbers))
        self.register_buffer("mean", torch.zeros(numbers))
        self.register_buffer("discarded", torch.tensor(math.nan))

    @property
    def error(self) -> float | None:
        """The root mean square of what the other components hold, in model units; None before they are found."""
        error = float(self.discarded)
        return None if math.isnan(error) else error

    def encode(self, x: Tensor) -> Tensor:
        """Return the components (B, K, ...) of items (B, C, ...)."""
        patches = space_to_depth(x, self.size)
        centred = patches.flatten(2) if patches.ndim > 2 else patches[..., None]
        z = self.components @ (centred - self.mean[:, None])
        return z.view(x.shape[0], -1, *patches.shape[2:])

    def decode(self, z: Tensor) -> Tensor:
        """Return the items (B, C, ...) of components (B, K, ...)."""
        flat = z.flatten(2) if z.ndim > 2 else z[..., None]
        patches = self.components.T @ flat + self.mean[:, None]
        return depth_to_space(patches.view(z.shape[0], -1, *z.shape[2:]), self.size)

    @torch.no_grad()
    def fit(self, batches: Iterator[Tensor]) -> None:
        """Find the components in items (B, C, ...). Moments are summed up in float64 on the CPU, around a first guess.

        The signs of components are arbitrary, so the largest entry of each is made positive.
        """
        size = self.mean.numel()
        count, guess = 0, torch.zeros(size, dtype=torch.float64)
        total, squares = torch.zeros(size, dtype=torch.float64), torch.zeros(size, size, dtype=torch.float64)
        for x in batches:
            rows = space_to_depth(x.cpu().double(), self.size).transpose(0, 1).reshape(size, -1)
            guess = guess if count else rows.mean(dim=1)
            rows = rows - guess[:, None]
            total += rows.sum(dim=1)
            squares.addmm_(rows, rows.T)
            count += rows.shape[1]
        mean = total / count
        variances, vectors = torch.linalg.eigh(squares / count - torch.outer(mean, mean))
        kept = len(self.components)
        components = vectors.flip(1).T[:kept]
        largest = components.gather(1, components.abs().argmax(dim=1, keepdim=True))
        self.components.copy_(torch.where(largest < 0, -components, components))
        self.mean.copy_(guess + mean)
        self.discarded.copy_(variances.flip(0)[kept:].clamp(min=0.0).sum().div(size).sqrt())


def space_to_depth(x: Tensor, size: int) -> Tensor:
    """Return (B, C f^k, s_1/f, ..., s_k/f) for items (B, C, s_1, ..., s_k) and patches with side f."""
    channels, sides = x.shape[1], [side // size for side in x.shape[2:]]
    if not sides:
        return x
    axes = range(len(sides))
    cut = x.reshape(x.shape[0], channels, *(length for side in sides for length in (side, size)))
    inside, outside = [3 + 2 * axis for axis in axes], [2 + 2 * axis for axis in axes]
    return cut.permute(0, 1, *inside, *outside).reshape(x.shape[0], channels * size ** len(sides), *sides)


def depth_to_space(z: Tensor, size: int) -> Tensor:
    """Return the items (B, C, s_1, ..., s_k) of what `space_to_depth` made of them."""
    sides = z.shape[2:]
    if not sides:
        return z
    k = len(sides)
    cut = z.reshape(z.shape[0], z.shape[1] // size**k, *(size,) * k, *sides)
    order = [axis for i in range(k) for axis in (2 + k + i, 2 + i)]
    return cut.permute(0, 1, *order).reshape(z.shape[0], -1, *(side * size for side in sides))
