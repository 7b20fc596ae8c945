"""Condition images of networks that take none themselves: they come beside x_t, as further channels of the input."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from difftool.data.condition import Condition


def with_image_beside(network: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Return a function that calls the network with the image of `cond` after the channels of x, and not in `cond`."""

    def call(x: Tensor, t: Tensor, cond: Condition) -> Tensor:
        image = cond.image
        assert image is not None
        if x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last):
            image = image.contiguous(memory_format=torch.channels_last)  # or the result would lose the layout
        return network(torch.cat([x, image.to(x.dtype)], dim=1), t, cond.without("image"))

    return call
