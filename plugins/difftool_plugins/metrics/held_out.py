"""Held-out items with their conditions, and a model that estimates them part by part."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from difftool import Condition, Estimate, Level, Sets, Source


@dataclass(frozen=True, eq=False)
class HeldOut:
    """Items that a model is measured on."""

    model: Source
    x: Tensor
    """(N, *shape) in model units, float64 on the CPU."""
    condition: Condition | None
    """The condition of each item, in the units of the network."""
    pixels: Tensor | None
    """The items as whole numbers from 0 to 255, uint8, if that is what they are."""

    @classmethod
    def of(cls, sets: Sets, most: int) -> HeldOut:
        """Pick at most so many items at random. Raises `ValueError` for a model whose data have no density."""
        model, samples = sets.model, sets.held_out
        if model is None or samples is None:
            raise ValueError("needs a model, and items to measure it on")
        if model.latents is not None:
            raise ValueError(
                "the model works in the latents of a codec, whose density is not that of the data; choose other metrics"
            )
        if samples.shape != model.data.shape:
            raise ValueError(f"the items are {samples.shape}, and those of the model {model.data.shape}")
        if len(samples) < 2:
            raise ValueError(f"needs at least 2 items, not {len(samples)}")
        samples = samples.select(model.data.condition.shapes)
        chosen = torch.randperm(len(samples), generator=sets.generator("items"))[:most]
        items, condition = samples.take(chosen.tolist())
        x = model.data.scaling.to_model(items).double()
        if not bool(x.isfinite().all()):
            raise ValueError("the items hold NaN or infinite numbers")
        return cls(
            model=model,
            x=x,
            condition=model.model_condition(condition),
            pixels=items if items.dtype == torch.uint8 and model.data.bounds is not None else None,
        )

    def __len__(self) -> int:
        return len(self.x)

    @property
    def width(self) -> int:
        """The number of dimensions of an item."""
        return math.prod(self.x.shape[1:])

    @property
    def scale(self) -> Tensor:
        """The scale of the data, float64, in a shape that goes with items."""
        scale = torch.tensor(self.model.data.scale, dtype=torch.float64)
        return scale.view(-1, *(1,) * (self.x.ndim - 2))

    def estimate(self, x_t: Tensor, level: Level, rows: Tensor, *, gradients: bool = False) -> Estimate:
        """Return the estimates for noisy items (B, *shape), made from the items at these rows, on the model's device.

        The denoiser is a new one, so that a network with self-conditioning has no earlier estimate to go by.
        """
        condition = None if self.condition is None else self.condition[rows.to(self.condition.hidden.device)]
        denoise = self.model.denoiser(len(rows), condition=condition, gradients=gradients)
        return denoise(x_t.float().to(self.model.device), level)

    def bits(self, nats: Tensor, *, density: bool) -> Tensor:
        """Return nats for each item (N,) as bits a dimension; those of a density are in the units of the data."""
        spread = float(self.scale.log2().mean()) if density else 0.0
        return nats / (self.width * math.log(2.0)) + spread
