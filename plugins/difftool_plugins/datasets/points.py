"""Points in the plane, drawn in float64; `difftool.points` scales them for a network."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

from difftool import Dataset, option

if TYPE_CHECKING:
    from difftool import DatasetContext, Samples


class PlanePoints(Dataset):
    """The base of these datasets."""

    generated = True

    n: int = option(default=100_000, ge=1, le=10_000_000, help="number of points")

    def item_shape(self) -> tuple[int, ...]:
        return (2,)


class SwissRoll(PlanePoints, name="swiss-roll"):
    """A spiral: (t cos t, t sin t) / 10, where t = 1.5 pi (1 + 2u) and u is uniform in [0, 1)."""

    noise: float = option(
        default=0.0, ge=0, help="standard deviation around the spiral, whose radius grows from 0.47 to 1.41"
    )
    condition: Literal["none", "angle"] = option(
        default="none", help="angle: the network also learns the angle t of each point, from 4.71 to 14.14, as a vector"
    )

    def load(self, context: DatasetContext) -> Samples:
        import torch

        from difftool import points

        u = torch.rand(self.n, generator=context.generator("u"), dtype=torch.float64)
        t = 1.5 * math.pi * (1 + 2 * u)
        roll = torch.stack([t * t.cos(), t * t.sin()], dim=1) / 10
        if self.noise > 0:
            roll += self.noise * torch.randn(roll.shape, generator=context.generator("noise"), dtype=torch.float64)
        return points(roll, vectors=t[:, None].float() if self.condition == "angle" else None)


class TwoMoons(PlanePoints, name="two-moons"):
    """Two interleaved half circles of radius 1 around (0, 0) and (1, 0.5), with the same number of points."""

    noise: float = option(default=0.05, ge=0, help="standard deviation around the half circles")
    labels: bool = option(default=False, help="label each point with its half circle, upper or lower")

    def load(self, context: DatasetContext) -> Samples:
        import torch

        from difftool import points

        moon = torch.arange(self.n) % 2
        angle = math.pi * torch.rand(self.n, generator=context.generator("angle"), dtype=torch.float64)
        upper = torch.stack([angle.cos(), angle.sin()], dim=1)
        lower = torch.stack([1 - angle.cos(), 0.5 - angle.sin()], dim=1)
        moons = torch.where(moon[:, None] == 0, upper, lower)
        if self.noise > 0:
            moons += self.noise * torch.randn(moons.shape, generator=context.generator("noise"), dtype=torch.float64)
        return points(moons, labels=moon, class_names=("upper", "lower")) if self.labels else points(moons)


class GaussianMixture(PlanePoints, name="gaussian-mixture"):
    """Round Gaussians evenly spaced on a circle, the first at (radius, 0), with the same number of points."""

    components: int = option(default=8, ge=1, le=1000, help="number of Gaussians")
    radius: float = option(default=1.0, ge=0, help="radius of the circle")
    std: float = option(default=0.05, ge=0, help="standard deviation of each Gaussian")
    labels: bool = option(default=False, help="label each point with its Gaussian, counted counter-clockwise from 0")
    condition: Literal["none", "mean"] = option(
        default="none", help="mean: the network also learns the mean of each point's Gaussian, as a vector"
    )

    def load(self, context: DatasetContext) -> Samples:
        import torch

        from difftool import points

        k = torch.arange(self.components)
        angle = 2 * math.pi / self.components * k.to(torch.float64)
        means = self.radius * torch.stack([angle.cos(), angle.sin()], dim=1)
        component = torch.arange(self.n) % self.components
        noise = torch.randn(self.n, 2, generator=context.generator("noise"), dtype=torch.float64)
        mixture = means[component] + self.std * noise
        return points(
            mixture,
            labels=component if self.labels else None,
            class_names=tuple(str(i) for i in range(self.components)) if self.labels else (),
            vectors=means[component].float() if self.condition == "mean" else None,
            means=means,
            mean_labels=k if self.labels else None,
            std=self.std,
        )
